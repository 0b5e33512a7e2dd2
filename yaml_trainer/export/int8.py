"""Rounds an exported ONNX file to 8-bit integers, and keeps it if val says that it costs little.

ONNX Runtime's static quantisation: weights and what flows between layers become integers, whose
ranges are those that images of train gave. Images of val only judge.
"""

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from datasets.temporary import unfinished
from trainer.build.trained import TrainedModel
from trainer.components.decisions import Answers, decided, likeliest
from trainer.components.metrics import accuracy
from trainer.inference.evaluation import open_part, require_unchanged
from trainer.input.data import load_subset
from trainer.input.loader import eval_loader
from trainer.input.subset import Subset
from trainer.loop.evaluate import answers_of, evaluate, scalars
from trainer.process.console import bar
from trainer.process.errors import RunError
from trainer.run import disk
from transforms.keyed import seed_of
from yaml_trainer.export import export_check, latency
from yaml_trainer.export.export_check import Network, note
from yaml_trainer.export.exporting import Exported, as_run_error, card_strings, onnx_model, quiet
from yaml_trainer.export.model_card import program

CALIBRATION = 512  # images of train
AT_ONCE = 16  # images; the quantiser keeps what all layers give for them
CERTAINTY = 0.95  # with which ``most_lost`` holds


@dataclass(frozen=True)
class Price:
    """What rounding costs on val: metrics of the float32 file and of the int8 file.

    images: those of val. lost: right before, wrong after; won: the other way round. changed: with
    another answer, right or wrong.
    """

    images: int
    before: dict[str, float]
    after: dict[str, float]
    lost: int
    won: int
    changed: int

    @property
    def drop(self) -> float:
        """The accuracy before, less that after."""
        return (self.lost - self.won) / self.images

    @property
    def in_words(self) -> str:
        """The metrics before and after, and how many answers changed."""
        pairs = [
            f"{name} {value:.4f} -> {self.after[name]:.4f}" for name, value in self.before.items()
        ]
        return (
            f"{self.images:,} val images: {', '.join(pairs)}; {self.changed:,} answers changed: "
            f"{self.lost:,} from right to wrong, {self.won:,} from wrong to right"
        )


def write_int8(done: Exported, folder: Path, max_drop: float) -> Path:
    """Write NAME.int8.onnx, with NAME.int8.json and NAME_int8.py, and print what it costs.

    max_drop: by so much val accuracy may fall. Raises RunError, and leaves no file, if it falls by
    more, also none of an earlier export; DataError if the run's images are absent or changed.
    """
    trained = dataclasses.replace(done.trained, config=export_check.offline(done.trained.config))
    saved = disk.read_json(trained.run / "split.json", disk.MAX_SPLIT)
    require_unchanged(trained.run, saved)
    if not saved["val"]:
        raise RunError(f"{trained.run} has no val images, which would tell what int8 costs.")
    name = trained.config.name
    path, card_file = folder / f"{name}.int8.onnx", folder / f"{name}.int8.json"
    use = folder / f"{name}_int8.py"
    train = calibration_images(trained, saved["train"])
    content = quantised(done.files["onnx"], train)
    unproven = path.with_name(f".unproven-{path.name}")
    with disk.all_or_nothing(), unfinished(unproven):
        disk.write_file(unproven, content)
        with as_run_error(f"{path.name} cannot be read back"):
            models = {"float32": onnx_model(done.files["onnx"]), "int8": onnx_model(unproven)}
        price = price_of(models["float32"], models["int8"], trained, saved)
        if not price.drop <= max_drop:
            for earlier in (path, card_file, use):
                earlier.unlink(missing_ok=True)
            raise RunError(
                f"{path.name} was removed: val accuracy falls by {price.drop:.4f}, and "
                f"--max-drop {max_drop:g} is allowed. On {price.in_words}."
            )
        card = done.card | {"int8": about_price(price, len(train))}
        disk.write_file(unproven, with_card(content, card))
        disk.rename(unproven, path)
        tell_sizes(path, done.files["onnx"])
        tell_price(price, f"{len(train):,} of {len(saved['train']):,}", max_drop)
        card["int8"] |= tell_times(done.files["onnx"], path, done.sample.inputs)
        disk.write_json(card_file, card)
        disk.write_file(use, program("int8", trained))
    return path


def calibration_images(trained: TrainedModel, train: Mapping[str, str]) -> Subset:
    """At most CALIBRATION images of ``train``, the part of split.json, drawn by the run's seed."""
    names = sorted(train)
    generator = torch.Generator().manual_seed(seed_of(trained.config.seed, "int8"))
    drawn = torch.randperm(len(names), generator=generator)[:CALIBRATION].sort().values.tolist()
    chosen = {names[row]: train[names[row]] for row in drawn}
    return load_subset(trained.config, chosen, torch.device("cpu"))[1]


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Gives the quantiser the images of a subset, a few at a time, after the eval transforms."""

    def __init__(self, subset: Subset) -> None:
        rows = torch.split(torch.arange(len(subset)), AT_ONCE)
        read = (subset.sample(some)[0] for some in rows)
        self.batches = bar(read, "calibrating", len(rows), unit="batch")

    def get_next(self) -> dict[str, Any] | None:
        """The next batch (B, C, H, W) by the name of the file's input; None after the last."""
        for images in self.batches:
            return {"images": images.flatten(0, -4).contiguous().numpy()}
        return None


def quantised(file: Path, images: Subset) -> bytes:
    """An ONNX file in int8, with the ranges that ``images`` give; the same bytes each time.

    Weights have 7 bits and a scale for each channel. Processors without VNNI add pairs of products
    in 16 bits, which 8-bit weights can exceed: what was measured here would not hold there.
    """
    with tempfile.TemporaryDirectory() as place, as_run_error(f"{file.name} in int8"), quiet():
        fused, result = Path(place, "fused.onnx"), Path(place, "int8.onnx")
        quant_pre_process(file, fused)
        quantize_static(
            fused,
            result,
            Calibration(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Its Entropy takes the same ranges, and Percentile keeps all that the layers gave.
            calibrate_method=CalibrationMethod.MinMax,
        )
        content = result.read_bytes()
    if not any(
        node.op_type == "QuantizeLinear" for node in onnx.load_from_string(content).graph.node
    ):
        raise RunError(f"{file.name} in int8: it has no layer that ONNX Runtime computes in int8.")
    return content


def with_card(content: bytes, card: Mapping[str, Any]) -> bytes:
    """An ONNX file with a card as its metadata, instead of any other."""
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    for key, value in card_strings(card).items():
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString())


def price_of(
    before: Network, after: Network, trained: TrainedModel, saved: dict[str, Any]
) -> Price:
    """How the answers of two models to val's images differ. saved: the content of split.json."""
    config = trained.config
    subset, loss_fn = open_part(trained, saved, "val")
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with closing(eval_loader(config, subset, torch.device("cpu"))) as loader:
        for images, labels in bar(loader.epoch(), "val", len(loader), unit="batch"):
            found.append((logits_of_file(before, images), logits_of_file(after, images), labels))
    *both, labels = map(torch.cat, zip(*found, strict=True))
    values, answers = [], []
    for logits in both:
        values.append(scalars(evaluate(config, logits, labels, loss_fn, trained.thresholds)))
        answers.append(answers_of(config, logits, labels, trained.thresholds))
        values[-1].setdefault("accuracy", accuracy(**answers[-1]._asdict()))
    (old, was_right), (new, is_right) = map(chosen_and_right, answers)
    changed = (old != new).view(len(labels), -1).any(dim=1)
    return Price(
        images=len(labels),
        before=values[0],
        after=values[1],
        lost=int((was_right & ~is_right).sum()),
        won=int((is_right & ~was_right).sum()),
        changed=int(changed.sum()),
    )


@torch.inference_mode()
def logits_of_file(model: Network, images: Tensor) -> Tensor:
    """Logits (B, K) of (B, C, H, W); of (B, crops, C, H, W) the mean over crops."""
    logits = model(images.flatten(0, -4).contiguous())[0]
    return logits if images.ndim < 5 else logits.view(*images.shape[:2], -1).mean(dim=1)


def chosen_and_right(answers: Answers) -> tuple[Tensor, Tensor]:
    """The answers, (N,) classes or (N, K) labels, and whether each is right in all, (N,) bool."""
    if answers.labels.ndim == 2:
        chosen = decided(answers.probabilities, answers.thresholds)
        return chosen, (chosen == (answers.labels > 0.5)).all(dim=1)
    chosen = likeliest(answers.probabilities)
    return chosen, chosen == answers.labels


def most_lost(lost: int, images: int) -> float:
    """The share of images that turn wrong, at most, if ``lost`` of ``images`` did.

    It is Clopper's and Pearson's bound (1934), which holds with CERTAINTY: the share p with
    P(at most ``lost`` of ``images``) = 1 - CERTAINTY.
    """
    if lost >= images:
        return 1.0
    low, high = lost / images, 1.0
    for _ in range(60):
        p = (low + high) / 2
        logs = (
            math.lgamma(images + 1) - math.lgamma(k + 1) - math.lgamma(images - k + 1)
            + k * math.log(p) + (images - k) * math.log1p(-p)
            for k in range(lost + 1)
        )  # fmt: skip
        low, high = (p, high) if math.fsum(map(math.exp, logs)) > 1 - CERTAINTY else (low, p)
    return low


def about_price(price: Price, calibrated: int) -> dict[str, Any]:
    """What a card tells of int8."""
    return {
        "calibration_images": calibrated,
        "val_images": price.images,
        "val_float32": price.before,
        "val_int8": price.after,
        "val_drop": price.drop,
        "val_changed": price.changed,
        "val_right_to_wrong": price.lost,
        "val_wrong_to_right": price.won,
    }


def tell_sizes(rounded: Path, plain: Path) -> None:
    """Print the int8 file's size, and what share it is of the float32 file's."""
    size = rounded.stat().st_size
    share = size / plain.stat().st_size
    print(f"{'int8':<12} {rounded} ({size / 2**20:,.1f} MiB, {share:.0%} of the float32 file)")


def tell_price(price: Price, calibrated: str, max_drop: float) -> None:
    """Print what the int8 file was calibrated on, and what it costs on val."""
    print(f"{'':<12} calibrated on {calibrated} training images")
    print(f"{'':<12} {price.in_words}")
    most = most_lost(price.lost, price.images)
    print(
        f"{'':<12} of images like these at most {most:.2%} turn wrong ({CERTAINTY:.0%} certainty)"
    )
    if most > max_drop:
        note(
            f"{price.images:,} val images are too few to rule out a drop above --max-drop "
            f"{max_drop:g}: it may be up to {most:.4f}"
        )


def tell_times(plain: Path, rounded: Path, inputs: Tensor) -> dict[str, Any]:
    """Time both files on one thread and on all, print that, and return it for the card."""
    own = torch.get_num_threads()
    latency.tell_if_busy(latency.about_machine(own))
    times = []
    for threads in sorted({1, own}):
        models = {"float32": onnx_model(plain, threads), "int8": onnx_model(rounded, threads)}
        turns = latency.take_turns(models, inputs, (1, 32))
        machine = latency.about_machine(threads)
        print(f"{'':<12} {latency.in_words(machine)}:")
        for line in latency.lines_of(turns):
            print(f"{'':<12} {line}")
        times.append({"machine": machine, "models": latency.facts_of(turns)})
        if (ratio := turns["int8"][1].times_as_fast_as(turns["float32"][1])) < 1:
            note(f"int8 is slower here for single images: {ratio:.2f} times as fast as float32")
    sizes = {"float32": plain.stat().st_size, "int8": rounded.stat().st_size}
    return {"bytes": sizes, "times": times}
