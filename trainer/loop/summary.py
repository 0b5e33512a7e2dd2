"""Prints a summary of a job: before it runs, after it, or for a dry run."""

import shlex
from pathlib import Path
from typing import Any

import torch

from trainer.build.job import Job, data_path
from trainer.build.notes import never_averages
from trainer.build.precision import note_on_unused
from trainer.comparing.grown import about_grown
from trainer.components import SCORES
from trainer.config import Config
from trainer.config.notes import Note, as_lines
from trainer.distributed.processes import world_size
from trainer.drawing.columns import hang, terminal_width
from trainer.loop.evaluate import scalars
from trainer.process.console import Say, duration
from trainer.run.environment import device_name
from trainer.run.folder import tensorboard_command


def introduce(job: Job, say: Say) -> None:
    """Print what will be trained, on which device and data."""
    config, data = job.config, job.data
    parameters = list(job.model.parameters())
    count = sum(p.numel() for p in parameters)
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    sizes = ", ".join(f"{name} {len(subset):,}" for name, subset in data.subsets.items())
    several = f"{world_size()} processes ({config.train.parallel}), each " * (world_size() > 1)
    device = device_name(job.device)
    say(f"device  {several}{device}, torch {torch.__version__}, seed {config.seed}")
    held_out = f"; fold {config.split.fold} of {config.split.folds} (from 0) held out"
    held_out = held_out if config.split.folds else ""
    say(f"data    {config.dataset.name}, {len(data.classes)} classes: {sizes}{held_out}")
    for name in dict.fromkeys(data.subsets["train"].pipeline.without_batched_form):
        say(f"note    {name} has no batched form: it runs sample by sample, which takes longer")
    size = " x ".join(map(str, job.input_shape))
    still = f" ({frozen:,} frozen)" if frozen else ""
    say(f"model   {config.model.name}, {count:,} parameters{still}, input {size}")
    if chosen := ", ".join(f"{path} {value}" for path, value in chosen_ways(config)):
        say(f"train   {chosen}")
    if later := data.subsets["train"].pipeline.sizes:
        shown = [f"{h} x {w} from epoch {first + 1} on" for first, (h, w) in later.items()]
        say(f"sizes   training images are {', '.join(shown)}; evaluation resizes none")
    if config.average is not None and not never_averages(config, len(job.train_loader)):
        say(f"average {config.average.name}, whose weights are evaluated and saved as model.pt")
    if job.teacher is not None:
        epoch = "" if job.teacher.epoch is None else f", weights of epoch {job.teacher.epoch}"
        say(f"teacher {job.teacher.run}{epoch}")


def chosen_ways(config: Config) -> list[tuple[str, object]]:
    """(name, value) of the settings of training that differ from their defaults."""
    names = ["precision", "compile", "cuda_graphs", "activation_checkpointing", "accumulate"]
    names += ["sync_batch_norm"] if world_size() > 1 else []
    defaults = {name: type(config.train).model_fields[name].default for name in names}
    chosen: list[tuple[str, object]] = [
        (name.replace("_", " "), getattr(config.train, name))
        for name in names
        if getattr(config.train, name) != defaults[name]
    ]
    if config.loader.sampling != "shuffle":
        chosen.append(("sampling", config.loader.sampling))
    return chosen


def conclude(run: Path, config: Config, result: dict[str, Any], say: Say) -> None:
    """Print the results, and the commands that may follow."""
    test = ", ".join(f"{name} {value:.4f}" for name, value in scalars(result["test"]).items())
    if plain := result.get("test_plain"):
        test += f", tta {result['tta']}; plain: "
        test += ", ".join(f"{name} {value:.4f}" for name, value in scalars(plain).items())
    unknown = result.get("novelty", {}).get("unknown") or {}
    if auroc := unknown.get("auroc", {}).get(SCORES[0]):
        fpr = unknown["fpr95"][SCORES[0]]
        apart = f"AUROC {auroc:.4f}, FPR95 {fpr:.4f} ({SCORES[0]})"
        say(f"unknown {apart}, {unknown['images']:,} images of dataset.unknown")
    speed = result["images_per_second"]
    per_second = f", {speed:,.0f} images/s" if speed else ""
    say(f"best    epoch {result['best']['epoch']} of {result['epochs']}")
    for line in hang(f"test    {test}", 8, terminal_width(without=10_000)):
        say(line)
    for what in about_grown(result.get("grown", {}), result.get("weights", {})):
        for line in hang(f"grown   {what}", 8, terminal_width(without=10_000)):
            say(line)
    say(f"time    {duration(result['train_seconds'])} of training{per_second}")
    if (page := run / "report" / "report.html").exists():  # unless log.show leaves it out
        say(f"report  {page}")
    quoted = shlex.quote(str(run))
    say(f"next    python -m trainer.predict {quoted} IMAGES...")
    say(f"        python -m trainer.evaluate {quoted}")
    if shows_tensorboard(config):
        say(f"        {tensorboard_command(run.parent.parent, pictures_of_a_tag(config))}")


def shows_tensorboard(config: Config) -> bool:
    """Whether ``log.show`` leaves anything for TensorBoard."""
    return bool(set(config.log.show) - {"report"})


def pictures_of_a_tag(config: Config) -> int:
    """The largest number of pictures that TensorBoard gets of one tag: one an epoch, or few."""
    return config.train.epochs if "confusion_matrix" in config.log.show else 0


def dry_run(job: Job, say: Say) -> None:
    """Print how data is prepared, what the model is, what it costs. The job cannot train later."""
    introduce(job, say)
    decided = data_path(job)
    kept = {"off": "decoded anew each epoch", "ram": "kept in memory", "store": "kept in the store"}
    for side in ("train", "eval"):
        way = decided[side]
        cache = kept.get(way["cache"], f"kept on {way['cache']}")
        size = f", {way['bytes'] / 2**20:,.1f} MiB" if way["bytes"] else ""
        say(f"{side:<7} {cache}{size}, batches of {way['batch_size']}, workers {way['workers']}")
        for transform in way["transforms"]:
            say(f"        {transform['name']:<24} {transform['runs']}")
    widest = max(len(group.get("name", "")) for group in job.optimizer.param_groups)
    rates = zip(job.optimizer.param_groups, job.schedule.first_lrs, strict=True)
    for number, (group, rate) in enumerate(rates):
        if "name" in group:
            count = f"{sum(p.numel() for p in group['params']):,} parameters"
            name = group["name"].ljust(widest)
            say(f"group{number:<2} {name} {count}, lr {float(rate):.3g} at the start")
    layout = "channels last" if decided["channels_last"] else "channels first"
    say(f"compute {device_name(job.device)}, {layout}, {len(job.train_loader):,} steps an epoch")
    if unused := note_on_unused(job.config, job.device):
        say(f"note    {as_lines(job.config, [Note('train.precision', unused)])[0]}")
    from trainer.loop.model_summary import lines, summarize  # a run has no need of it

    try:
        for line in lines(summarize(job), terminal_width()):
            say(line)
    finally:
        job.train_loader.close()
        job.val_loader.close()
    say("dry run: no run was begun")
