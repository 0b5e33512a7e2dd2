"""What was found of a dataset, as a person reads it: data.md, data.json and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from datasets import DataError
from trainer.config import Config
from trainer.disk import write_file, write_json
from trainer.errors import ConfigError, RunError
from trainer.insight.charts import draw_bars
from trainer.insight.columns import visible
from trainer.insight.data_facts import Look, differs
from trainer.insight.pictures import sheet, write_picture
from trainer.insight.samples import as_seen, one_crop
from trainer.insight.text import markdown, markdown_table, shown
from trainer.loader import Part, order_of
from trainer.parts import transform_fault

EPOCHS = 7  # columns of augmentation.png beside the image itself
SAMPLES = 6  # its rows
OF_A_CLASS = 8  # columns of classes.png
MAX_CLASSES = 40  # its rows
MAX_SHOWN = 24  # pairs of duplicates.png
MAX_LISTED = 100  # rows of a table of data.md; data.json holds all
RED = "#d62728"


def write_data_report(look: Look, folder: Path) -> list[Path]:
    """Write data.md, data.json and the pictures into ``folder``, making it; returns the files."""
    if folder.is_symlink():
        raise RunError(f"{folder} is a link; nothing is written behind it.")
    pictures = {
        "counts.png": draw_bars(
            look.dataset.classes,
            {part: list(counts.values()) for part, counts in look.facts["counts"].items()},
        ),
        "augmentation.png": draw_augmentation(look),
        "classes.png": draw_classes(look),
        "duplicates.png": draw_duplicates(look),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        if picture is None:
            (folder / name).unlink(missing_ok=True)  # an earlier look's
        else:
            write_picture(folder / name, picture)
    drawn = [name for name, picture in pictures.items() if picture is not None]
    write_json(folder / "data.json", look.facts)
    write_file(folder / "data.md", as_markdown(look.facts, drawn))
    return [folder / name for name in ("data.md", "data.json", *drawn)]


def is_ours(folder: Path) -> bool:
    """Whether a folder is empty, or holds an earlier look: nothing else is written over."""
    return (folder / "data.json").is_file() or not any(folder.iterdir())


def draw_augmentation(look: Look) -> Image.Image:
    """Training images as they are, and as they will be in the first epochs."""
    indices = torch.tensor(look.parts["train"])
    labels = torch.tensor(look.dataset.labels)[indices]
    two = torch.arange(min(2, len(indices)))
    part = Part(look.dataset, look.pipelines["train"], indices, labels, None, two)
    pictures: list[Tensor] = []
    captions: list[list[str]] = []
    for row in evenly(range(len(part)), SAMPLES):
        index = int(indices[row])
        pictures.append(look.dataset.image(index))
        captions.append([look.dataset.classes[int(labels[row])], tail(look.dataset.ids[index])])
        for epoch in range(EPOCHS):
            try:
                images, shares = augmented(look.config, part, row, epoch)
            except DataError as error:
                raise ConfigError([transform_fault(look.config, "train", error)]) from None
            pictures.append(as_seen(part.pipeline, one_crop(images))[0])
            captions.append([f"epoch {epoch + 1}", *mixture(shares[0], look.dataset.classes)])
    return sheet(pictures, captions, columns=EPOCHS + 1, size=120)


def augmented(config: Config, part: Part, row: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The image and label (1, ...) that training on ``part`` makes of one of its rows in an epoch.

    MixUp and CutMix mix it with those that come before it in that epoch's order; one that balanced
    sampling leaves out of the epoch is shown as if it began it.
    """
    order = order_of(part.labels, config.seed, epoch, config.loader.sampling)
    place = next(iter((order == row).nonzero().flatten().tolist()), 0)
    before = torch.arange(place - part.pipeline.predecessors, place) % len(part)
    return part.batch(torch.cat([order[before], torch.tensor([row])]), epoch)


def mixture(label: Tensor, classes: Sequence[str]) -> list[str]:
    """ "70 % 1" and "30 % 100" of a label that MixUp or CutMix made; nothing of any other."""
    if not label.ndim:
        return []
    shares, labels = label.sort(descending=True)
    pairs = zip(shares.tolist(), labels.tolist(), strict=True)
    return [f"{share:.0%} {classes[k]}" for share, k in list(pairs)[:2] if share > 0.005]


def draw_classes(look: Look) -> Image.Image:
    """Some images of each class, a row each; of many classes some."""
    usable = sorted(index for indices in look.parts.values() for index in indices)
    by_class: dict[int, list[int]] = {label: [] for label in range(len(look.dataset.classes))}
    for index in usable:
        by_class[look.dataset.labels[index]].append(index)
    pictures: list[Image.Image | Tensor] = []
    captions: list[list[str]] = []
    for label in evenly(range(len(by_class)), MAX_CLASSES):
        shown = evenly(by_class[label], OF_A_CLASS)
        pictures += [look.dataset.image(index) for index in shown]
        captions += [[look.dataset.classes[label], tail(look.dataset.ids[i])] for i in shown]
        missing = OF_A_CLASS - len(shown)
        pictures += [Image.new("RGB", (8, 8), "#f2f2f2")] * missing
        captions += [[look.dataset.classes[label], "(no more)"]] * missing
    return sheet(pictures, captions, columns=OF_A_CLASS, size=120)


def draw_duplicates(look: Look) -> Image.Image | None:
    """Equal and similar images side by side, three pairs a row; red where it spoils a result."""
    part_of = look.part_of()
    pairs = [(group[0], other_of(look, group, part_of), "equal") for group in look.exact]
    pairs = pairs[: MAX_SHOWN // 2] if look.near else pairs
    pairs += [(i, j, f"likeness {likeness:.3f}") for i, j, likeness in look.near]
    pictures: list[Tensor] = []
    captions: list[list[str]] = []
    colours: list[str | None] = []
    for i, j, what in pairs[:MAX_SHOWN]:
        spoils = part_of[i] != part_of[j] or look.dataset.labels[i] != look.dataset.labels[j]
        for index in (i, j):
            name = look.dataset.classes[look.dataset.labels[index]]
            pictures.append(look.dataset.image(index))
            captions.append([f"{part_of[index]}: {name}", tail(look.dataset.ids[index]), what])
            colours.append(RED if spoils else None)
    return sheet(pictures, captions, colours, columns=6, size=150) if pairs else None


def other_of(look: Look, group: Sequence[int], part_of: Mapping[int, str]) -> int:
    """Of a group of equal images the one to show beside the first: of another class or part."""

    def key(index: int) -> tuple[bool, bool]:
        same_class = look.dataset.labels[index] == look.dataset.labels[group[0]]
        return same_class, part_of[index] == part_of[group[0]]

    return min(group[1:], key=key)


def evenly(items: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def tail(name: str) -> str:
    """The end of a path, which is what tells files apart, short enough for a picture's caption."""
    return visible(name if len(name) <= 18 else f"...{name[-16:]}")


def as_markdown(facts: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The whole of data.md."""
    dataset, pixels, sizes = facts["dataset"], facts["pixels"], facts["sizes"]
    parts = [f"# Data: {dataset['name']}", f"{dataset['images']:,} images."]
    parts += [f"**Note:** {markdown(dataset['note'])}"] if dataset["note"] else []
    parts += ["## Warnings"]
    parts += ["\n".join(f"- {markdown(line)}" for line in facts["warnings"]) or "None."]
    parts += ["## Images by class and part"]
    counts = facts["counts"]
    rows = [
        [name, *numbers, sum(numbers)]
        for name in dataset["classes"]
        for numbers in [[counts[part][name] for part in counts]]
    ]
    totals = [sum(row[k] for row in rows) for k in range(1, len(counts) + 2)]
    parts += [table(["class", *counts, "all"], [*rows, ["all", *totals]])]
    parts += ["![images by class and part](counts.png)"]
    parts += ["## Sizes"]
    names = {"height": "height", "width": "width", "aspect_ratio": "width / height"}
    spread = [[names[key], *sizes[key].values()] for key in names]
    parts += [table(["pixels", "smallest", "middle", "largest"], spread)]
    common = ", ".join(f"{h} x {w} ({n:,})" for h, w, n in sizes["most_common"])
    parts += [f"{sizes['distinct']:,} different sizes; height x width of most: {common}."]
    if facts["formats"]:
        parts += ["Files: " + ", ".join(f"{n:,} {name}" for name, n in facts["formats"].items())]
    parts += ["## Mean and std"]
    after = f"after {', '.join(pixels['after'])}" if pixels["after"] else "as they are"
    parts += [
        f"Of the {pixels['images']:,} training images {after} (`transforms.eval` up to the first "
        "transform of floats), every image counting alike, 1.0 being white:"
    ]
    rows = [["measured", *map(numbers_of, (pixels["mean"], pixels["std"]))]]
    if pixels["after"]:
        rows += [["before any transform", *(numbers_of(pixels["raw"][key]) for key in MEAN_STD)]]
    if pixels["config"]:
        rows += [["Normalize in the YAML", *(numbers_of(pixels["config"][k]) for k in MEAN_STD)]]
    parts += [table(["", *MEAN_STD], rows), f"    {pixels['yaml']}"]
    if differs(pixels):
        parts += [
            "The YAML's numbers are not those measured here. A model with pretrained weights wants "
            "the numbers that it was trained with."
        ]
    parts += duplicates_of(facts, "duplicates.png" in pictures)
    parts += ["## Images of nearly one colour", listing(facts["one_colour"])]
    broken = [f"{entry['path']}: {entry['reason']}" for entry in facts["broken"]]
    parts += ["## Images that cannot be read", listing(broken)]
    parts += ["## Augmentation", "The image itself, then as training will see it in its epochs."]
    parts += ["![augmentation](augmentation.png)", "## Classes", "![classes](classes.png)"]
    return "\n\n".join(parts) + "\n"


MEAN_STD = ("mean", "std")


def duplicates_of(facts: Mapping[str, Any], drawn: bool) -> list[str]:
    """The section on equal and on similar images."""

    def rows(found: Sequence[Mapping[str, Any]]) -> str:
        lines = []
        for group in found[:MAX_LISTED]:
            what = [" and ".join(w for w in ("classes", "parts") if group[f"across_{w}"])]
            names = ", ".join(
                f"{one['id']} ({one['part']}, {one['class']})" for one in group["samples"][:10]
            )
            more = len(group["samples"]) - 10
            lines.append([names + (f" and {more} more" if more > 0 else ""), *what])
            if "likeness" in group:
                lines[-1].append(f"{group['likeness']:.4f}")
        head = ["images", "in different"] + ["likeness"] * ("likeness" in found[0])
        left = len(found) - MAX_LISTED
        return table(head, lines) + (f"\n\n{left:,} more are in data.json." if left > 0 else "")

    exact, near = facts["exact_duplicates"], facts["near_duplicates"]
    parts = ["## Equal images", rows(exact) if exact else "None."]
    parts += ["## Similar images"]
    if not facts["near_searched"]:
        parts += ["Not searched for (`--no-near`)."]
    else:
        parts += [
            "Pictures that are nearly the same: re-encoded, resized, brightened, slightly cropped. "
            "Look at them before removing any: small pictures of like things can be alike too.",
            rows(near) if near else "None.",
        ]
    return parts + (["![equal and similar images](duplicates.png)"] if drawn else [])


def listing(lines: Sequence[str]) -> str:
    """Lines as a list, of many the first."""
    shown = [f"- {markdown(line)}" for line in lines[:MAX_LISTED]]
    left = len(lines) - MAX_LISTED
    return "\n".join(shown + [f"- {left:,} more are in data.json"] * (left > 0)) or "None."


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, numbers to the right."""
    shown_rows = [[shown(v) if isinstance(v, int) else v for v in row] for row in rows]
    return markdown_table(header, shown_rows)


def numbers_of(values: Any) -> str:
    """A list of shares of full scale, one a channel."""
    if not isinstance(values, list | tuple):
        return str(values)
    return ", ".join(f"{value:.4f}" for value in values)


def summary(facts: Mapping[str, Any]) -> list[str]:
    """The few lines that are printed."""
    dataset, sizes, pixels = facts["dataset"], facts["sizes"], facts["pixels"]
    totals = {part: sum(counts.values()) for part, counts in facts["counts"].items()}
    of_parts = ", ".join(f"{part} {total:,}" for part, total in totals.items())
    lines = [
        f"{dataset['name']}: {dataset['images']:,} images of {len(dataset['classes'])} classes "
        f"({of_parts})"
    ]
    lines += [f"note        {dataset['note']}"] if dataset["note"] else []
    sides = [sizes[key] for key in ("height", "width")]
    if sizes["distinct"] == 1:
        told = f"all {sides[0]['min']} x {sides[1]['min']}"
    else:
        spread = ["{min} to {max}".format(**side) for side in sides]
        told = f"{sizes['distinct']:,} different, heights {spread[0]}, widths {spread[1]}"
    lines.append(f"sizes       {told}")
    after = f" after {', '.join(pixels['after'])}" if pixels["after"] else ""
    lines.append(
        f"training    mean {numbers_of(pixels['mean'])}, std {numbers_of(pixels['std'])}{after}"
    )
    if pixels["after"]:
        mean, std = (numbers_of(pixels["raw"][key]) for key in MEAN_STD)
        lines.append(f"as read     mean {mean}, std {std}")
    if pixels["config"]:
        mean, std = (numbers_of(pixels["config"][key]) for key in MEAN_STD)
        lines.append(f"the YAML's  mean {mean}, std {std}")
    lines.append(f"            {pixels['yaml']}")
    near = f"{len(facts['near_duplicates']):,} pairs" if facts["near_searched"] else "not searched"
    lines.append(f"duplicates  {len(facts['exact_duplicates']):,} groups equal, {near} similar")
    lines += [f"warning     {visible(line)}" for line in facts["warnings"]]
    return lines
