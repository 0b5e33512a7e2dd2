"""Training in Python: ``train`` what a YAML file describes. Its faults are told before torch."""

import json
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.process.console import say
from trainer.process.errors import Stopped, UsageError
from trainer.process.exits import Exit, message_of
from trainer.process.launch import is_one_of_several
from trainer.process.stop import StopRequest
from yaml_trainer.errors import TrainerError, all_errors
from yaml_trainer.model import Model, load
from yaml_trainer.process_state import kept

if TYPE_CHECKING:
    from trainer.config import Config

Overrides = Sequence[str] | Mapping[str, object]


@dataclass(frozen=True)
class Run:
    """A run's folder, and what is read from it.

    folder: holds config.yaml, result.json, metrics.jsonl, model.pt, the report.
    """

    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json: status, best epoch, val and test results, seconds."""
        from trainer.run.disk import read_json

        with all_errors():
            return read_json(self.folder / "result.json")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The epochs of metrics.jsonl, each with its metrics: "train/loss_epoch", "val/loss" ..."""
        from trainer.run.folder import read_metrics

        with all_errors():
            lines = read_metrics(self.folder / "metrics.jsonl")
        return [line for line in lines if "train/loss_epoch" in line]

    def model(self, *, device: str | None = None, threads: int | None = None) -> Model:
        """The best model; see ``load``."""
        return load(self.folder, device=device, threads=threads)


def train(
    file: str | os.PathLike[str] | None = None,
    overrides: Overrides = (),
    *,
    runs: str | os.PathLike[str] = "runs",
    resume: str | os.PathLike[str] | Run | None = None,
) -> Run:
    """Train what a YAML file describes, as ``python -m trainer.train`` does, with the same bits.

    Prints what the command prints. One training or prediction at a time runs in a process; others
    wait.

    Args:
        file: the YAML file; None if ``resume`` names a run.
        overrides: settings to change: ["train.epochs=3"] or {"train.epochs": 3}.
        runs: the folder in which the run's folder is made.
        resume: a run to go on with, or a folder of runs for its newest.

    Returns:
        The run, which is done.

    Raises:
        TrainerError: what the command would tell, with its exit code; if the run has a folder,
            the message says how to go on. A ``train.budget`` that is used up has exit code 75.
        KeyboardInterrupt: after Ctrl-C, when the step is done and saved; the message says how to
            go on. A second Ctrl-C stops at once, unsaved. In a thread no signal stops a run.
    """
    for name, path in {"file": file, "runs": runs, "resume": resume}.items():
        if path == "" or not isinstance(path, str | os.PathLike | Run | None):
            raise TrainerError(f"{name}: {path!r}; expected a path")
    with all_errors():
        config, folder = _read(file, _as_typed(overrides), Path(runs), resume)
        for message in config.messages:
            print(message, file=sys.stderr)
    with all_errors():
        return Run(_until_stopped(config, Path(runs), folder))


def _read(
    file: str | os.PathLike[str] | None,
    overrides: Sequence[str],
    runs: Path,
    resume: str | os.PathLike[str] | Run | None,
) -> "tuple[Config, Path | None]":
    """The configuration, and the folder of a run to resume; without torch."""
    if is_one_of_several():
        raise UsageError(
            "train() runs in one process; for several: torchrun --nproc-per-node 2 -m trainer.train"
        )
    if resume is not None:
        from trainer.run.resume import find_resumable

        named = os.fspath(resume.folder if isinstance(resume, Run) else resume)
        yaml = None if file is None else os.fspath(file)
        return find_resumable(named, yaml, overrides, runs)
    if file is None:
        raise UsageError("name a file: train('configs/lenet_rmb.yaml'), or a run to resume.")
    from trainer.config import load_config

    return load_config(os.fspath(file), overrides, by_user=True), None


def _as_typed(overrides: Overrides) -> list[str]:
    """Overrides as on the command line; the values of a mapping are written as JSON, as in YAML."""
    if isinstance(overrides, str):
        return [overrides]
    if not isinstance(overrides, Iterable):
        wanted = 'expected such as ["train.epochs=3"] or {"train.epochs": 3}'
        raise TrainerError(f"overrides: {overrides!r}; {wanted}")
    if not isinstance(overrides, Mapping):
        return [str(word) for word in overrides]
    try:
        return [f"{key}={json.dumps(value, default=_plain)}" for key, value in overrides.items()]
    except (TypeError, ValueError) as error:  # ValueError: a list that holds itself
        raise TrainerError(f"overrides: {error}; expected numbers, texts, lists and such") from None


def _plain(value: object) -> object:
    """A path as a text, a number or an array of NumPy or torch as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(tolist := getattr(value, "tolist", None)):
        return tolist()
    raise TypeError(f"{value!r} cannot be written in a YAML file")


def _until_stopped(config: "Config", runs: Path, folder: Path | None) -> Path:
    """Train; returns the run's folder. A stop becomes what a caller in Python expects of it."""
    stop = StopRequest(at_second=signal.default_int_handler)
    is_main = threading.current_thread() is threading.main_thread()
    try:
        with kept(), stop if is_main else nullcontext():
            return _train(config, runs, folder, stop)
    except BaseException as error:
        # Libraries can turn an early Stopped into an error of their own.
        if not (isinstance(error, Stopped) or stop.came_early):
            raise
        told = message_of(error) if isinstance(error, Stopped) else f"stopped by {stop.reason}"
    if found := re.search(r"--resume (.*)", told):
        told += f"\n  or, in Python:  train(resume={shlex.split(found[1])[0]!r})"
    if stop.came_early:
        told += "\nbefore training began, nothing was written"
    if stop.reason == "SIGINT":
        raise KeyboardInterrupt(told)
    if hasattr(signal, stop.reason):  # as if it came now: the caller's handler decides
        signal.raise_signal(signal.Signals[stop.reason])
    raise TrainerError(told, Exit.STOPPED)


def _train(config: "Config", runs: Path, folder: Path | None, stop: StopRequest) -> Path:
    """What ``trainer.train`` does in one process."""
    import torch

    from trainer.loop.fit import fit, prepare_run
    from trainer.process.start import collecting_later
    from yaml_trainer.notifying import result_text, telling

    with (
        telling(config, "run", config.name) as notice,
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        notice.folder = folder
        notice.check()
        with collecting_later():
            job = prepare_run(config, folder)
        try:
            run = fit(job, runs, folder, say, stop)
            notice.text = result_text(run)
            return run
        finally:  # also of a run that found no folder
            notice.folder = job.folder or folder
            job.train_loader.close()
            job.val_loader.close()
