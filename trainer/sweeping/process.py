"""The process of a sweep's run: its command, its GPU, its progress, and why it failed."""

import math
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from trainer.comparing.listing import number, read_object
from trainer.config.settings import LogItem
from trainer.process.errors import RunError
from trainer.process.exits import Exit
from trainer.run.folder import read_metrics
from trainer.sweeping.folder import SWEEP_MAY_CHANGE, Member, newest_run
from trainer.sweeping.plan import Plan

MAX_REASON = 1000  # letters of the reason why a run failed


def train_command(plan: Plan, folder: Path, member: Member) -> list[str]:
    """The command that starts a run, or resumes it if it was started before."""
    command = [sys.executable, "-m", "trainer.train"]
    if (run := newest_run(folder / member.name)) is not None:
        changed = [text for text in plan.overrides if text.startswith(SWEEP_MAY_CHANGE)]
        return [*command, "--resume", str(run), *changed]
    # The sweep writes TensorBoard's HPARAMS table itself: it has a row per trial, not per run.
    shown: list[LogItem] = [name for name in plan.config.log.show if name != "hparams"]
    arguments = [
        *plan.arguments(member.trial.settings, member.seed, member.fold),
        f"name={member.name}",
        f"log.show=[{', '.join(shown)}]",
    ]
    return [*command, "--config", str(folder / "base.yaml"), *arguments, "--runs", str(folder)]


def end_with(parent: int) -> Callable[[], None] | None:
    """A ``preexec_fn``: Linux then sends the new process SIGTERM when this process dies."""
    if not sys.platform.startswith("linux"):
        return None  # the run goes on to its end, and keeps its claim until then
    import ctypes

    prctl = ctypes.CDLL(None).prctl

    def first() -> None:
        prctl(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # the parent died before prctl
            os._exit(Exit.STOPPED)

    return first


def gpus_of(plan: Plan) -> list[str]:
    """The GPUs over which runs are spread; [] if there is only one, or if the YAML names one."""
    if plan.config.train.device not in ("auto", "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    named = [name for name in visible.split(",") if name] or [str(i) for i in range(count)]
    return named if count > 1 else []


def metrics_length(run: Path | None) -> int:
    """The size of a run's metrics.jsonl in bytes; 0 if there is none."""
    try:
        return 0 if run is None else (run / "metrics.jsonl").stat().st_size
    except OSError:
        return 0


def values_of(run: Path, monitor: str) -> dict[int, float]:
    """The monitored value of each epoch so far, by the epoch's number."""
    path = run / "metrics.jsonl"
    try:
        lines = read_metrics(path, path.read_bytes().rfind(b"\n") + 1)  # the run may write one now
    except (OSError, RunError):  # damaged: the run itself will tell
        return {}
    return {
        line["epoch"]: line[monitor]
        for line in lines
        if "train/loss_epoch" in line
        and isinstance(line.get("epoch"), int)
        and isinstance(line.get(monitor), float)
        and (loss := number(line.get("val/loss", 0.0))) is not None
        and math.isfinite(loss)  # else the epoch cannot be the best
    }


def reason_of(folder: Path, run: Path | None, code: int) -> str:
    """Why a run failed, in one line: from its result.json, or else the end of its output."""
    result = {} if run is None else read_object(run / "result.json")[0]
    if reason := result.get("reason"):
        return " ".join(str(reason).split())[:MAX_REASON]
    text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    heads = [at for at, line in enumerate(lines) if re.fullmatch(r"\d+ faults?( in .*)?", line)]
    if code == Exit.CONFIG and heads:  # keep the faults, drop the YAML's lines below each
        lines = [line for line in lines[heads[-1] + 1 :] if not line.startswith(" ")]
    else:
        lines = lines[-3:]
    return " / ".join(line.strip() for line in lines)[:MAX_REASON] or "it said nothing"
