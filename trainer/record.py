"""What a job leaves in its run folder: what it is, its best weights, its state, its result."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.checkpoint import is_finite, save_checkpoint
from trainer.errors import NonFiniteLoss, RunError
from trainer.job import Job
from trainer.resume import MAY_CHANGE, differences, settings, shown
from trainer.run import (
    device_name,
    environment,
    load_tensors,
    read_json,
    save_tensors,
    uncommitted_patch,
    write_file,
    write_json,
)
from trainer.run_log import RunLog
from trainer.state import State, snapshot
from trainer.summary import data_path


def describe(job: Job, run: Path) -> None:
    """Write what a new run is, before its first step."""
    write_file(run / "config.yaml", job.config.dump())
    write_json(run / "environment.json", environment(job.device))
    write_json(run / "data_path.json", data_path(job))
    write_file(run / "uncommitted.patch", uncommitted_patch())
    dataset = job.data.dataset
    write_json(run / "split.json", job.data.split, indent=2 if len(dataset) < 5000 else None)
    write_json(
        run / "result.json",
        {
            "status": "running",
            "name": job.config.name,
            "seed": job.config.seed,
            "device": device_name(job.device),
            "dataset": {
                "name": job.config.dataset.name,
                "note": dataset.note,
                "images": {name: len(part) for name, part in job.data.parts.items()},
                "left_out": [{"path": p, "reason": r} for p, r in job.data.skipped],
            },
            "split": job.data.split_digest,
        },
    )


def update_result(run: Path, **values: Any) -> dict[str, Any]:
    """Merge ``values`` into result.json; returns its content."""
    result = {k: v for k, v in read_json(run / "result.json").items() if k != "reason"} | values
    write_json(run / "result.json", result)
    return result


def keep_best(job: Job, run: Path, record: dict[str, Any]) -> None:
    """Write model.pt, a plain state_dict, and model.json, which says how to use it."""
    tensors = job.model.state_dict()  # kept as it is: a plain dict would lose its version numbers
    for name, tensor in tensors.items():
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    save_tensors(run / "model.pt", tensors)
    config = job.config.model_dump(mode="json")
    write_json(
        run / "model.json",
        {
            "classes": list(job.data.classes),
            "model": config["model"],
            "num_classes": len(job.data.classes),
            "in_channels": job.input_shape[0],
            "input_size": list(job.input_shape[1:]),
            "transforms": config["transforms"]["eval"],
            "metrics": record,
        },
    )


def save_state(job: Job, run: Path, state: State, log: RunLog) -> None:
    """Write a checkpoint of this moment; raises NonFiniteLoss rather than keep a ruined one."""
    content = snapshot(job, state, log.sync())
    if not is_finite(content["model"]) or not is_finite(content["optimizer"]):
        raise NonFiniteLoss(
            f"a weight is infinite or NaN after step {state.step}; that state is not saved. "
            "Try a lower optimizer.lr, or train.clip_grad_norm=1."
        )
    save_checkpoint(run, state.step, content, job.config.checkpoint.keep)
    state.saved_at = time.monotonic()


def load_best(model: nn.Module, run: Path) -> None:
    """Load the run's best weights; raises RunError where the file holds no such weights."""
    content = load_tensors(run / "model.pt")
    try:
        model.load_state_dict(content)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{run / 'model.pt'} does not fit the run's model: {reason}") from None
    if not is_finite(content):
        raise RunError(f"{run / 'model.pt'} holds weights that are no numbers.")


def refuse_other_run(job: Job, content: dict[str, Any], run: Path) -> None:
    """Raise where settings or data are not those of the state that is to be continued."""
    if not isinstance(content, dict) or not {"settings", "split"} <= content.keys():
        raise RunError(f"{run}: its checkpoint is none of ours.")
    changed = [
        f"{path} is {shown(new)}, but its checkpoint has {shown(old)}"
        for path, old, new in differences(content["settings"], settings(job.config))
        if not path.startswith(MAY_CHANGE)
    ]
    if changed:
        raise RunError(f"{run / 'config.yaml'} was changed: {'; '.join(changed)}.")
    if content["split"] != job.data.split_digest:
        raise RunError(
            f"{run} began with another split than {job.config.dataset.name} gives now: images were "
            "added, removed or changed. Bring them back, or start a new run."
        )
