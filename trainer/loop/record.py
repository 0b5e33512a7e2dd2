"""The files of a run: its description, its best weights, its checkpoints, its result."""

import csv
import io
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets.bands import form_in
from trainer.build.job import Job, data_path
from trainer.comparing.grown import BEFORE, lines_before
from trainer.components.calibration import Calibration
from trainer.distributed.fsdp import hand_over, is_sharded
from trainer.distributed.processes import is_main
from trainer.loop.snapshot import copied, snapshot
from trainer.loop.state import State
from trainer.process.errors import RunError
from trainer.run.checkpoint import Entry
from trainer.run.disk import (
    Digest,
    make_folder,
    read_json,
    write_file,
    write_json,
    write_long_json,
    write_with,
)
from trainer.run.environment import device_name, environment, uncommitted_patch
from trainer.run.folder import keep_own_file
from trainer.run.log import RunLog
from trainer.run.restarts import launcher
from trainer.run.saver import Saver


def write_description(job: Job, run: Path) -> None:
    """Write a new run's files before its first step. config.yaml is last: it marks a run."""
    write_json(run / "environment.json", environment(job.device))
    write_json(run / "data_path.json", data_path(job))
    write_launcher(run)
    write_file(run / "uncommitted.patch", uncommitted_patch())
    write_split(job, run)
    if not (run / "checkpoints").exists():
        make_folder(run / "checkpoints")
    write_json(run / "result.json", first_result(job) | keep_before(job, run))
    keep_own_file(job.config, run)
    write_file(run / "config.yaml", job.config.dump())


def keep_before(job: Job, run: Path) -> dict[str, Any]:
    """Keep in before.csv what the run that gave the weights answered: its folder may go.

    Returns what result.json has of that run, with the reason if nothing can be kept.
    """
    if "run" not in job.origin:
        return {}
    try:
        lines = lines_before(Path(job.origin["run"]), job.data.split["test"])
    except RunError as error:
        return {"weights": job.origin | {"not_compared": str(error)}}
    write_file(run / BEFORE, "".join(f"{line}\n" for line in lines))
    return {}


def write_launcher(run: Path) -> None:
    """Write which torchrun trains this run, for it may restart its processes."""
    if (this := launcher()) is not None:
        write_json(run / "launcher.json", this)


def write_split(job: Job, run: Path) -> None:
    """Write which image is in which split."""
    write = write_json if len(job.data.dataset) < 5000 else write_long_json
    write(run / "split.json", job.data.split)


def first_result(job: Job) -> dict[str, Any]:
    """The content of result.json when a run has begun."""
    return {
        "status": "running",
        "name": job.config.name,
        "seed": job.config.seed,
        "device": device_name(job.device),
        "dataset": about_data(job),
        "split": job.data.split_digest,
        **{
            key: job.data.split[key]
            for key in ("folds", "fold", "group", "fixes")
            if key in job.data.split
        },
        "parameters": sum(parameter.numel() for parameter in job.model.parameters()),
        **({"notes": job.notes} if job.notes else {}),
        **({"weights": job.origin} if job.origin else {}),
        **({"teacher": job.teacher.description()} if job.teacher else {}),
        **({"components": job.config.own.sha256} if job.config.own.sha256 else {}),
    }


def about_data(job: Job) -> dict[str, Any]:
    """What result.json tells of the data; training may since have met images that are broken."""
    return {
        "name": job.config.dataset.name,
        "note": job.data.dataset.note,
        "notes": job.data.notes,
        "images": {name: len(subset) for name, subset in job.data.subsets.items()},
        "left_out": [{"path": p, "reason": r} for p, r in job.data.left_out],
    }


def update_result(run: Path, **values: Any) -> dict[str, Any]:
    """Merge ``values`` into result.json; returns its content."""
    result = {k: v for k, v in read_json(run / "result.json").items() if k != "reason"} | values
    write_json(run / "result.json", result)
    return result


def set_aside(run: Path, test: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Test values for result.json. Of the confusion matrix it has the name of a file of its own.

    That file has a line for each pair of a true and a predicted class that has images: of
    thousands of classes, nearly all pairs have none.
    """
    if (matrix := test.get("confusion_matrix")) is None:
        return test

    def fill(file: Digest) -> None:
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["true", "predicted", "images"])
        for row, counts in enumerate(matrix):
            if not any(counts):
                continue
            pairs = [(column, count) for column, count in enumerate(counts) if count]
            writer.writerows((classes[row], classes[column], count) for column, count in pairs)
        file.write(lines.getvalue().encode(errors="backslashreplace"))

    write_with(run / "confusion_matrix.csv", fill)
    return test | {"confusion_matrix": "confusion_matrix.csv"}


def card(job: Job, epoch_metrics: dict[str, Any]) -> dict[str, Any]:
    """The content of model.json: how to use the weights of the epoch with these metrics."""
    config, metrics = job.config.model_dump(mode="json"), dict(epoch_metrics)
    thresholds = metrics.pop("thresholds", None)
    return {
        "classes": list(job.data.classes),
        "model": config["model"],
        "num_classes": len(job.data.classes),
        "in_channels": job.input_shape[0],
        "input_size": list(job.input_shape[1:]),
        "image_channels": job.data.image_channels,
        "image_bits": form_in(job.config.dataset.arguments).bits,
        "transforms": config["transforms"]["eval"],
        "evaluation": config["evaluation"],
        **({"components": config["components"]} if config["components"] else {}),
        "metrics": metrics,
        **({} if thresholds is None else {"thresholds": thresholds}),
    }


def keep_calibration(run: Path, calibration: Calibration) -> None:
    """Write into model.json what val says about a temperature of the weights that it describes."""
    card = read_json(run / "model.json")
    write_json(run / "model.json", card | {"calibration": calibration._asdict()})


def best_card(job: Job, run: Path, best: dict[str, Any], weights: Entry) -> dict[str, Any]:
    """The content of model.json for a resumed run's best weights, with the metrics ``best``.

    It has the calibration of the model.json that is there, if that is of the same weights.
    """
    made, old = card(job, best) | {"weights": weights}, {}
    with suppress(RunError):
        old = read_json(run / "model.json")
    if all(old.get(key) == made[key] for key in ("weights", "evaluation")) and "calibration" in old:
        made["calibration"] = old["calibration"]
    return made


def save(
    job: Job,
    state: State,
    log: RunLog,
    saver: Saver,
    best_metrics: dict[str, Any] | None = None,
    checkpoint: bool = True,
) -> None:
    """Give the saver a copy of the state: checkpoint, best weights or both. All ranks call it."""
    saver.wait()  # one copy at a time, always in the same memory
    if checkpoint:
        state.saved_at, state.saved = time.monotonic(), state.position
    if not is_main():
        if is_sharded(job.model):
            hand_over(job.model.state_dict())
            hand_over(job.optimizer.state_dict())
        return
    content = saver.memory = snapshot(job, state, log.flush(), saver.memory)
    averaged = None
    if best_metrics and job.average is not None:
        averaged = {name: copied(w).contiguous() for name, w in job.average.weights().items()}
    saver.save(state.step, content, best_metrics and card(job, best_metrics), checkpoint, averaged)
