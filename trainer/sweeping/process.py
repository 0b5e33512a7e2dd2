"""The process of a sweep's run: its command, its start, its GPU, its progress, its failure.

Where it can be, the process is a fork of the sweep, which has imported what a run imports.
"""

import math
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

from trainer.comparing.listing import number, read_object
from trainer.config.settings import LogItem
from trainer.drawing.page import compile_templates
from trainer.process.console import Say
from trainer.process.errors import RunError
from trainer.process.exits import Exit
from trainer.process.quit import IS_INSTALLED, SIGNALS, TRAINER, is_watching
from trainer.process.start import start
from trainer.run.environment import ROOT, keep_what_git_says
from trainer.run.folder import read_metrics
from trainer.sweeping.folder import SWEEP_MAY_CHANGE, Member, newest_run
from trainer.sweeping.plan import Plan

if TYPE_CHECKING:
    from trainer.process.child import Fork

MAX_REASON = 1000  # letters of the reason why a run failed
Process: TypeAlias = "subprocess.Popen[bytes] | Fork"


def train_command(plan: Plan, folder: Path, member: Member) -> list[str]:
    """The command that starts a run, or resumes it if it was started before."""
    command = [sys.executable, "-m", f"{TRAINER}.train"]
    if (run := newest_run(folder / member.name)) is not None:
        may = tuple(key for key in SWEEP_MAY_CHANGE if key != "notify")  # the sweep itself tells
        changed = [text for text in plan.overrides if text.startswith(may)]
        return [*command, "--resume", str(run), *changed]
    # The sweep writes TensorBoard's HPARAMS table itself: it has a row per trial, not per run.
    shown: list[LogItem] = [name for name in plan.config.log.show if name != "hparams"]
    arguments = [
        *plan.arguments(member.trial.settings, member.seed, member.fold),
        f"name={member.name}",
        f"log.show=[{', '.join(shown)}]",
        *(["notify=null"] if plan.config.notify else []),  # the sweep tells its own end
    ]
    return [*command, "--config", str(folder / "base.yaml"), *arguments, "--runs", str(folder)]


class Starter:
    """Starts the processes of runs: as forks of this process, or else by their commands.

    A fork begins at once, because it shares what this process has imported.
    """

    def __init__(self, plan: Plan, jobs: int, say: Say) -> None:
        """Import what a run imports, if this process may be forked. Call it before torch."""
        self.plan, self.jobs, self.say = plan, jobs, say
        # Where a program calls the sweep's ``main``, it may have threads, and torch set up.
        self.forks = sys.platform == "linux" and is_watching() and "torch" not in sys.modules
        if self.forks:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, no exit code is told
            os.environ |= self._threads()  # OpenMP reads it when torch is imported
            with start():
                import_what_runs_import()
            keep_what_git_says()  # three commands less for each run
            self.threads, self.code = thread_count(), state_of_code()
        self.gpus = gpus_of(plan)

    def start(
        self, command: list[str], log: Path, place: int, claim: IO[str], others: list[IO[str]]
    ) -> Process:
        """Start a run's command; its output is added to the file ``log``.

        place: from 0 to jobs - 1; chooses the GPU. claim: the run's claim, which its process holds
        too. others: the claims of other runs, which it must not hold.
        """
        environment, first = self._environment(place), end_with(os.getpid())
        uses_gpu = bool(self.gpus) or self.plan.config.train.device.startswith("cuda")
        with log.open("ab") as output:
            if command[1] != "-m" or not self.may_fork():
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=() if sys.platform == "win32" else (claim.fileno(),),
                    start_new_session=True,  # Ctrl-C reaches the sweep only, which asks it to save
                    preexec_fn=first,
                )
            from trainer.process.child import Fork

            def as_popen_does() -> None:
                os.setsid()
                if first is not None:
                    first()
                for other in others:
                    other.close()
                redirect_streams(output.fileno())
                os.environ |= environment
                if uses_gpu and cuda_is_lost():
                    os.set_inheritable(claim.fileno(), True)
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                    os.execve(command[0], command, environment)

            return Fork(command, as_popen_does)

    def may_fork(self) -> bool:
        """Whether a run may be a fork now. If that has changed, say why."""
        if not self.forks:
            return False
        import torch

        until, why = time.monotonic() + 1, ""
        while thread_count() > self.threads and time.monotonic() < until:
            time.sleep(0.001)  # they may be about to end
        if torch.cuda._initialized or thread_count() > self.threads:
            why = "a component has started threads or the GPU in the sweep's own process"
        elif not self.code.items() <= (now := state_of_code()).items():
            why = "the code has changed since the sweep began"
        else:
            self.code = now  # a component may have imported more
        if why:
            self.forks = False
            self.say(f"note    {why}: from now on, each run imports all anew, which takes longer")
        return self.forks

    def _threads(self) -> dict[str, str]:
        """The environment variable by which runs share the cores, unless the user has set it."""
        if self.jobs == 1 or self.plan.config.train.threads != "auto":
            return {}
        each = max(1, (os.cpu_count() or 1) // self.jobs)
        return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(each))}

    def _environment(self, place: int) -> dict[str, str]:
        environment = os.environ | self._threads()
        if not IS_INSTALLED:  # the checkout is on no path of another folder
            path = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{path}" if path else str(ROOT)
        if len(self.gpus) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        return environment


def import_what_runs_import() -> None:
    """Import the modules that a run uses, and compile its report's template.

    Three of them are such that PyTorch and TensorBoard import only when they trace or save a model.

    Of these modules only numpy's OpenBLAS starts threads, and it expects forks.
    """
    import numpy.ma  # noqa: F401
    import torch.ao.quantization
    import torch.utils.serialization.config  # noqa: F401
    from PIL import Image

    from trainer.build import prepare  # noqa: F401
    from trainer.insight.report_page import REPORT_TEMPLATE
    from trainer.loop import fit  # noqa: F401
    from trainer.run import restarts  # noqa: F401

    Image.init()  # imports the formats
    compile_templates(REPORT_TEMPLATE.parent)


def thread_count() -> int:
    """The number of this process's threads. Linux only."""
    return len(os.listdir("/proc/self/task"))


def state_of_code() -> dict[str, int]:
    """When each file of code that a run may import, or this process has imported, was changed."""
    paths = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    for package in ("trainer", "models", "datasets", "transforms"):
        paths |= {str(path) for path in (ROOT / package).rglob("*.py")}
    state = {}
    for path in filter(None, paths):
        with suppress(OSError):
            state[path] = os.stat(path).st_mtime_ns
    return state


def redirect_streams(output: int) -> None:
    """Let standard output and error go to the descriptor ``output``; nothing comes in."""
    for standard, target in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(target, standard)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)


def cuda_is_lost() -> bool:
    """Whether CUDA cannot be used in this fork, because its parent has counted GPUs by CUDA."""
    import torch

    return bool(torch.cuda._is_in_bad_fork())


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


def wait_for_one(processes: Sequence[Process], seconds: float) -> None:
    """Wait until one of the processes ends, or for ``seconds``."""
    if sys.platform != "linux":
        time.sleep(seconds)
        return
    descriptors = []
    try:
        for process in processes:
            with suppress(OSError):  # it has been reaped
                descriptors.append(os.pidfd_open(process.pid))
        select.select(descriptors, [], [], seconds)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def gpus_of(plan: Plan) -> list[str]:
    """The GPUs over which runs are spread; [] if the YAML names one, or there is none."""
    if plan.config.train.device not in ("auto", "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    named = [name for name in visible.split(",") if name] or [str(i) for i in range(count)]
    return named if count > 0 else []


def metrics_length(run: Path | None) -> int:
    """The size of a run's metrics.jsonl in bytes; 0 if there is none."""
    try:
        return 0 if run is None else (run / "metrics.jsonl").stat().st_size
    except OSError:
        return 0


def when_written(run: Path | None) -> int:
    """When a run's result.json was last written, in the file system's nanoseconds; 0 if never."""
    try:
        return 0 if run is None else (run / "result.json").stat().st_mtime_ns
    except OSError:
        return 0


def only_writes(run: Path) -> bool:
    """Whether a run on a CPU has its test result, so that it only draws and writes from now on."""
    result = read_object(run / "result.json")[0]
    return "test" in result and str(result.get("device")).startswith("cpu")


def has_room_beside(process: Process) -> bool:
    """Whether the free memory is what the process held at most; False if nobody tells."""
    from trainer.input.kept import available_memory

    with suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        if peak := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
            return available_memory() > int(peak[1]) * 1024
    return False


def step_back(process: Process) -> None:
    """Let a process that only writes have what a training run leaves of the cores."""
    with suppress(OSError):  # it has just ended
        os.setpriority(os.PRIO_PROCESS, process.pid, 10)


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
