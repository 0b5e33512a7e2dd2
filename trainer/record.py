"""What a job leaves in its run folder: what it is, its state, its result."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.disk import make_folder, read_json, write_file, write_json
from trainer.distributed import is_main
from trainer.environment import device_name, environment, uncommitted_patch
from trainer.errors import RunError
from trainer.job import Job
from trainer.restarts import launcher
from trainer.resume import MAY_CHANGE, as_yaml, differences, settings
from trainer.run_log import RunLog
from trainer.saver import Saver
from trainer.sharding import hand_over, is_sharded
from trainer.state import State, copied, made_on, snapshot
from trainer.summary import data_path


def describe(job: Job, run: Path) -> None:
    """Write what a new run is, before its first step; config.yaml last, by which runs are found."""
    write_json(run / "environment.json", environment(job.device))
    write_json(run / "data_path.json", data_path(job))
    write_launcher(run)
    write_file(run / "uncommitted.patch", uncommitted_patch())
    write_split(job, run)
    if not (run / "checkpoints").exists():
        make_folder(run / "checkpoints")
    write_json(run / "result.json", first_result(job))
    write_file(run / "config.yaml", job.config.dump())


def write_launcher(run: Path) -> None:
    """Write which torchrun trains this, for it may start its processes again."""
    if (this := launcher()) is not None:
        write_json(run / "launcher.json", this)


def write_split(job: Job, run: Path) -> None:
    """Write which image is in which part."""
    indent = 2 if len(job.data.dataset) < 5000 else None
    write_json(run / "split.json", job.data.split, indent)


def first_result(job: Job) -> dict[str, Any]:
    """What result.json says of a run that has begun."""
    return {
        "status": "running",
        "name": job.config.name,
        "seed": job.config.seed,
        "device": device_name(job.device),
        "dataset": {
            "name": job.config.dataset.name,
            "note": job.data.dataset.note,
            "images": {name: len(part) for name, part in job.data.parts.items()},
            "left_out": [{"path": p, "reason": r} for p, r in job.data.skipped],
        },
        "split": job.data.split_digest,
        **{key: job.data.split[key] for key in ("folds", "fold") if key in job.data.split},
        "parameters": sum(parameter.numel() for parameter in job.model.parameters()),
        **({"teacher": job.teacher.told()} if job.teacher else {}),
    }


def update_result(run: Path, **values: Any) -> dict[str, Any]:
    """Merge ``values`` into result.json; returns its content."""
    result = {k: v for k, v in read_json(run / "result.json").items() if k != "reason"} | values
    write_json(run / "result.json", result)
    return result


def card(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    """What model.json says: how to use the weights of the epoch that ``record`` describes."""
    config = job.config.model_dump(mode="json")
    return {
        "classes": list(job.data.classes),
        "model": config["model"],
        "num_classes": len(job.data.classes),
        "in_channels": job.input_shape[0],
        "input_size": list(job.input_shape[1:]),
        "image_channels": job.data.image_channels,
        "transforms": config["transforms"]["eval"],
        "metrics": record,
    }


def save(
    job: Job,
    state: State,
    log: RunLog,
    saver: Saver,
    best: dict[str, Any] | None = None,
    checkpoint: bool = True,
) -> None:
    """Hand a copy of this moment to the saver: a checkpoint, the weights of a ``best`` epoch."""
    saver.wait()  # one copy at a time, always in the same memory
    if checkpoint:
        state.saved_at, state.saved = time.monotonic(), state.moment
    if not is_main():
        if is_sharded(job.model):
            hand_over(job.model.state_dict())
            hand_over(job.optimizer.state_dict())
        return
    content = saver.memory = snapshot(job, state, log.flush(), saver.memory)
    judged = None
    if best and job.average is not None:
        judged = {name: copied(w).contiguous() for name, w in job.average.weights().items()}
    saver.save(state.step, content, best and card(job, best), checkpoint, judged)


def require_same_split(job: Job, digest: object, run: Path) -> None:
    """Raise RunError where the images are no longer those that the run began with."""
    if digest != job.data.split_digest:
        raise RunError(
            f"{run} began with another split than {job.config.dataset.name} gives now: images were "
            "added, removed or changed. Bring them back, or start a new run."
        )


def require_same_teacher(job: Job, digest: object, run: Path) -> None:
    """Raise RunError where the teacher's weights are no longer those that the run began with."""
    if job.teacher is not None and digest != job.teacher.digest:
        raise RunError(
            f"{run} began with another teacher than {job.teacher.run}, whose best weights have "
            f"SHA-256 {job.teacher.digest[:12]}..., and were {str(digest)[:12]}...: name the one "
            "that it began with, distill.run=..., or start a new run."
        )


def compare(job: Job, content: dict[str, Any], run: Path, say: Callable[[str], None]) -> None:
    """Say what differs from the state that is to be continued; raise where it must not."""
    try:
        json.dumps([content["settings"], content["split"], content["made_on"]])  # plain values
        is_ours = isinstance(content["settings"]["train"]["epochs"], int)
    except (KeyError, TypeError, ValueError, RecursionError):
        is_ours = False
    if not is_ours:
        raise RunError(f"{run}: its checkpoint is none of ours.")
    refused = []
    for path, old, new in differences(content["settings"], settings(job.config)):
        if path.startswith(MAY_CHANGE):
            say(f"changed {path} is now {as_yaml(new)}, was {as_yaml(old)}")
        else:
            refused.append(f"{path} is {as_yaml(new)}, but its checkpoint has {as_yaml(old)}")
    if refused:
        raise RunError(f"{run / 'config.yaml'} was changed: {'; '.join(refused)}.")
    require_same_split(job, content["split"], run)
    require_same_teacher(job, content.get("teacher"), run)
    for name, old, new in differences(content["made_on"], made_on(job)):
        say(f"note    {name} is now {new}, was {old}: last bits may differ from here on")
