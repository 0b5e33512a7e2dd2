"""A run of a sweep as a process: its command, where it computes, how far it is, why it failed."""

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from trainer import disk
from trainer.exits import Exit
from trainer.folder import read_metrics
from trainer.settings import Shown
from trainer.sweeping.folder import MAY_CHANGE, Member, newest_run
from trainer.sweeping.reading import Plan

MAX_REASON = 1000  # letters of why a run failed


def train_command(plan: Plan, folder: Path, member: Member) -> list[str]:
    """The command that makes a run, or goes on with the one that is there."""
    command = [sys.executable, "-m", "trainer.train"]
    if (run := newest_run(folder / member.name)) is not None:
        moved = [text for text in plan.overrides if text.startswith(MAY_CHANGE)]
        return [*command, "--resume", str(run), *moved]
    # TensorBoard's table is of trials, not of single runs: the sweep writes it.
    shown: list[Shown] = [name for name in plan.config.log.show if name != "hparams"]
    arguments = [
        *plan.arguments(member.trial.settings, member.seed, member.fold),
        f"name={member.name}",
        f"log.show=[{', '.join(shown)}]",
    ]
    return [*command, "--config", str(folder / "base.yaml"), *arguments, "--runs", str(folder)]


def end_with(parent: int) -> Callable[[], None] | None:
    """What a new process does first: ask Linux for SIGTERM when this one dies, however it does."""
    if not sys.platform.startswith("linux"):
        return None  # elsewhere such a run goes on to its end, and keeps its claim until then
    import ctypes

    prctl = ctypes.CDLL(None).prctl

    def first() -> None:
        prctl(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died in between
            os._exit(Exit.STOPPED)

    return first


def gpus_of(plan: Plan) -> list[str]:
    """The GPUs among which runs are shared out; none where there is one, or the YAML names it."""
    if plan.config.train.device not in ("auto", "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    named = [name for name in visible.split(",") if name] or [str(i) for i in range(count)]
    return named if count > 1 else []


def metrics_length(run: Path | None) -> int:
    """Bytes of a run's metrics.jsonl."""
    try:
        return 0 if run is None else (run / "metrics.jsonl").stat().st_size
    except OSError:
        return 0


def values_of(run: Path, monitor: str) -> dict[int, float]:
    """What a run's epochs reached so far, by their number."""
    lines = read_metrics(run / "metrics.jsonl", _whole_lines(run / "metrics.jsonl"))
    return {
        line["epoch"]: line[monitor]
        for line in lines
        if "train/loss_epoch" in line and isinstance(line.get(monitor), float)
    }


def _whole_lines(path: Path) -> int:
    """Bytes up to the last line's end: the run may be writing the next."""
    return path.read_bytes().rfind(b"\n") + 1


def reason_of(folder: Path, run: Path | None, code: int) -> str:
    """Why a run failed, in one line: as its result says, or the end of what it printed."""
    if run is not None and (told := disk.read_json(run / "result.json").get("reason")):
        return " ".join(str(told).split())[:MAX_REASON]
    text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    heads = [at for at, line in enumerate(lines) if re.fullmatch(r"\d+ faults?( in .*)?", line)]
    if code == Exit.CONFIG and heads:  # its faults, without the lines of the file below each
        lines = [line for line in lines[heads[-1] + 1 :] if not line.startswith(" ")]
    else:
        lines = lines[-3:]
    return " / ".join(line.strip() for line in lines)[:MAX_REASON] or "it said nothing"
