"""Writes the facts about a dataset for people: data.md, data.json and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from datasets import DataError
from datasets.words import label_names
from trainer.config import Config
from trainer.drawing.charts import draw_bars
from trainer.drawing.fonts import drawables
from trainer.drawing.pictures import png, sheet
from trainer.drawing.text import markdown, markdown_table, shown
from trainer.input.data import transform_fault
from trainer.input.subset import Subset, labels_of, order_of
from trainer.insight.data_facts import Inspection, differs, split_of_each
from trainer.insight.samples import as_pictures, one_crop
from trainer.process.errors import ComponentError, ConfigError
from trainer.process.words import visible
from trainer.run.disk import all_or_nothing, make_output_folder, write_file, write_json

EPOCHS = 7  # columns of augmentation.png beside the image itself
SAMPLES = 6  # rows of augmentation.png
OF_A_CLASS = 8  # columns of classes.png
MAX_CLASS_ROWS = 40  # rows of classes.png
MAX_GROUPS = 16  # rows of duplicates.png, a group of equal or similar images in each
OF_A_GROUP = 6  # columns of duplicates.png
MAX_TABLE_ROWS = 100  # rows of a table of data.md; data.json holds all
RED = "#d62728"


def write_data_report(found: Inspection, folder: Path) -> list[Path]:
    """Write data.md, data.json and pictures, and return the files; RunError for a linked folder."""
    pictures = {
        "counts.png": draw_bars(
            found.dataset.classes,
            {split: list(counts.values()) for split, counts in found.facts["counts"].items()},
        ),
        "augmentation.png": draw_augmentation(found),
        "classes.png": draw_classes(found),
        "duplicates.png": draw_duplicates(found),
    }
    with all_or_nothing():
        make_output_folder(folder)
        for name, picture in pictures.items():
            if picture is None:
                (folder / name).unlink(missing_ok=True)  # from an earlier inspection
            else:
                write_file(folder / name, png(picture))
        drawn = [name for name, picture in pictures.items() if picture is not None]
        write_json(folder / "data.json", found.facts)
        write_file(folder / "data.md", as_markdown(found.facts, drawn))
    return [folder / name for name in ("data.md", "data.json", *drawn)]


def is_ours(folder: Path) -> bool:
    """Return whether a folder is empty or holds an earlier report: only these are written to."""
    return (folder / "data.json").is_file() or not any(folder.iterdir())


def draw_augmentation(found: Inspection) -> Image.Image:
    """Draw training images as they are, and as the first EPOCHS epochs will augment them."""
    indices = torch.tensor(found.splits["train"])
    labels = labels_of(found.dataset, indices)
    two = torch.arange(min(2, len(indices)))
    subset = Subset(found.dataset, found.pipelines["train"], indices, labels, None, two)
    names = drawables(found.dataset.classes)
    pictures: list[Tensor] = []
    captions: list[list[str | list[str]]] = []
    for row in evenly(range(len(subset)), SAMPLES):
        index = int(indices[row])
        pictures.append(found.dataset.image(index))
        captions.append([label_names(labels[row].tolist(), names), tail(found.dataset.ids[index])])
        for epoch in range(EPOCHS):
            try:
                images, shares = augmented(found.config, subset, row, epoch)
            except (DataError, ComponentError) as error:
                raise ConfigError([transform_fault(found.config, "train", error)]) from None
            pictures.append(as_pictures(subset.pipeline, one_crop(images))[0])
            mixed = [] if torch.equal(shares[0], labels[row]) else mixture(shares[0], names)
            captions.append([f"epoch {epoch + 1}", *mixed])
    return sheet(pictures, captions, columns=EPOCHS + 1, size=120)


def augmented(config: Config, subset: Subset, row: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Return the image and label (1, ...) that training makes of a row of ``subset`` in an epoch.

    MixUp and CutMix mix it with the rows before it in the epoch's order. If balanced sampling
    leaves the row out of the epoch, it counts as the first row.
    """
    order = order_of(subset.labels, config.seed, epoch, config.loader.sampling)
    place = next(iter((order == row).nonzero().flatten().tolist()), 0)
    before = torch.arange(place - subset.pipeline.predecessors, place) % len(subset)
    return subset.batch(torch.cat([order[before], torch.tensor([row])]), epoch)


def mixture(label: Tensor, classes: Sequence[str]) -> list[str]:
    """Return ["70 % 1", "30 % 100"] for a label that MixUp or CutMix made, [] for any other."""
    if not label.ndim:
        return []
    shares, labels = label.sort(descending=True)
    pairs = zip(shares.tolist(), labels.tolist(), strict=True)
    return [f"{share:.0%} {classes[k]}" for share, k in list(pairs)[:2] if share > 0.005]


def draw_classes(found: Inspection) -> Image.Image:
    """Draw some images of each class in a row of its own, for at most MAX_CLASS_ROWS classes."""
    usable = sorted(index for indices in found.splits.values() for index in indices)
    by_class: dict[int, list[int]] = {label: [] for label in range(len(found.dataset.classes))}
    for index in usable:
        label = found.dataset.labels[index]
        has = [k for k, s in enumerate(label) if s > 0.5] if isinstance(label, tuple) else [label]
        for number in has:
            by_class[number].append(index)
    names = drawables(found.dataset.classes)
    pictures: list[Image.Image | Tensor] = []
    captions: list[list[str]] = []
    for label in evenly(range(len(by_class)), MAX_CLASS_ROWS):
        shown = evenly(by_class[label], OF_A_CLASS)
        pictures += [found.dataset.image(index) for index in shown]
        captions += [[names[label], tail(found.dataset.ids[i])] for i in shown]
        missing = OF_A_CLASS - len(shown)
        pictures += [Image.new("RGB", (8, 8), "#f2f2f2")] * missing
        captions += [[names[label], "(no more)"]] * missing
    return sheet(pictures, captions, columns=OF_A_CLASS, size=120)


def draw_duplicates(found: Inspection) -> Image.Image | None:
    """Draw groups of equal and similar images, red if in two splits or classes; None for none."""
    split_of, labels = split_of_each(found.splits), found.dataset.labels
    names = drawables(found.dataset.classes)
    groups = [(group, "equal") for group in found.exact]
    groups = groups[: MAX_GROUPS // 2] if found.near else groups
    groups += [(group, f"likeness {likeness:.3f}") for group, likeness in found.near]
    pictures: list[Tensor | Image.Image] = []
    captions: list[list[str | list[str]]] = []
    colours: list[str | None] = []
    for group, what in groups[:MAX_GROUPS]:
        kinds = {index: (split_of[index], labels[index]) for index in group}
        shown = one_of_each_first(kinds)[:OF_A_GROUP]
        for index in shown:
            shown_names = label_names(labels[index], names)
            shown_names[0] = f"{split_of[index]}: {shown_names[0]}"
            pictures.append(found.dataset.image(index))
            is_end = index == shown[-1] and len(shown) < len(group)
            more = f", {len(group) - len(shown):,} more" if is_end else ""
            captions.append([shown_names, tail(found.dataset.ids[index]), what + more])
            colours.append(RED if len(set(kinds.values())) > 1 else None)
        blank = OF_A_GROUP - len(shown)
        pictures += [Image.new("RGB", (8, 8), "#f2f2f2")] * blank
        captions += [[""] * 3] * blank
        colours += [None] * blank
    return sheet(pictures, captions, colours, columns=OF_A_GROUP, size=150) if groups else None


def one_of_each_first(kinds: Mapping[int, tuple[str, object]]) -> list[int]:
    """Return a group's images, the first one of each (split, class) before the others."""
    firsts = {kind: index for index, kind in reversed(list(kinds.items()))}.values()
    return sorted(kinds, key=lambda index: index not in firsts)


def evenly(items: Sequence[int], count: int) -> list[int]:
    """Return at most ``count`` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def tail(name: str) -> str:
    """Return the end of a path, short enough for a caption: paths differ at their ends."""
    return visible(name if len(name) <= 18 else f"...{name[-16:]}")


def as_markdown(facts: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """Return the content of data.md; ``pictures``: the names of the drawn pictures."""
    dataset, pixels, sizes = facts["dataset"], facts["pixels"], facts["sizes"]
    blocks = [f"# Data: {dataset['name']}", f"{dataset['images']:,} images."]
    blocks += [f"**Note:** {markdown(note)}" for note in dataset["note"].splitlines()]
    blocks += ["## Warnings"]
    blocks += ["\n".join(f"- {markdown(line)}" for line in facts["warnings"]) or "None."]
    blocks += ["## Images by class and split"]
    counts = facts["counts"]
    rows = [
        [name, *numbers, sum(numbers)]
        for name in dataset["classes"]
        for numbers in [[counts[split][name] for split in counts]]
    ]
    images = list(facts["images_of_splits"].values())
    kind, all_of_them = "class", "all"
    if facts["several_labels"]:
        kind, all_of_them = "label", "images, with any label or none"
    blocks += [data_table([kind, *counts, "all"], [*rows, [all_of_them, *images, sum(images)]])]
    blocks += ["![images by class and split](counts.png)"]
    blocks += ["## Sizes"]
    names = {"height": "height", "width": "width", "aspect_ratio": "width / height"}
    spread = [[names[key], *sizes[key].values()] for key in names]
    blocks += [data_table(["pixels", "smallest", "middle", "largest"], spread)]
    common = ", ".join(f"{h} x {w} ({n:,})" for h, w, n in sizes["most_common"])
    blocks += [f"{sizes['distinct']:,} different sizes; height x width of most: {common}."]
    if facts["formats"]:
        blocks += ["Files: " + ", ".join(f"{n:,} {name}" for name, n in facts["formats"].items())]
    if facts["converted"]:
        blocks += ["\n".join(f"- {line}" for line in facts["converted"])]
    blocks += ["## Mean and std"]
    after = f"after {', '.join(pixels['after'])}" if pixels["after"] else "as they are"
    blocks += [
        f"Of the {pixels['images']:,} training images {after} (`transforms.eval` up to the first "
        "transform of floats). Every image has the same weight; 1.0 is white:"
    ]
    rows = [["measured", *map(by_channel, (pixels["mean"], pixels["std"]))]]
    if bare := pixels["before_pad"]:
        rows += [["before Pad", *(by_channel(bare[key]) for key in MEAN_STD)]]
    if pixels["after"]:
        rows += [["before any transform", *(by_channel(pixels["raw"][key]) for key in MEAN_STD)]]
    if pixels["config"]:
        rows += [["Normalize in the YAML", *(by_channel(pixels["config"][k]) for k in MEAN_STD)]]
    blocks += [data_table(["", *MEAN_STD], rows), f"    {pixels['yaml']}"]
    if pixels["before_pad"]:
        blocks += [PADDED]
    if differs(pixels):
        blocks += [
            "The YAML's numbers are not those measured here. A model with pretrained weights needs "
            "the numbers that it was trained with."
        ]
    blocks += groups_section(facts["groups"]) if facts["groups"] else []
    blocks += duplicates_of(facts, "duplicates.png" in pictures)
    blocks += ["## Images of nearly one colour", listing(facts["one_colour"])]
    broken = [f"{entry['path']}: {entry['reason']}" for entry in facts["broken"]]
    blocks += ["## Images that cannot be read", listing(broken)]
    blocks += ["## Augmentation", "The image itself, then as training will see it in its epochs."]
    blocks += ["![augmentation](augmentation.png)", "## Classes", "![classes](classes.png)"]
    return "\n\n".join(blocks) + "\n"


MEAN_STD = ("mean", "std")
PADDED = (
    "The edge of `Pad` counts in the first row, and not in the second. Both may stand in the YAML; "
    "`python -m trainer.new` writes the second, which is that of the images alone."
)


def groups_section(groups: Mapping[str, Any]) -> list[str]:
    """Return the section on the groups of ``split.group``."""
    rows = [[one["name"], one["images"], one["part"]] for one in groups["largest"]]
    return ["## Groups", f"{markdown(groups_in_words(groups))}. The largest:"] + (
        [data_table(["group", "images", "split"], rows)] if rows else []
    )


def groups_in_words(groups: Mapping[str, Any]) -> str:
    """Return number, sizes and places of groups in one line."""
    where = ", ".join(f"{part} {number:,}" for part, number in groups["by_part"].items())
    text = f"{groups['groups']:,} by {groups['by']}" + (f" ({where})" if where else "")
    if groups["sizes"]:
        least, middle, most = groups["sizes"]
        text += f", of {least:,} to {most:,} images (half of them at most {middle:,})"
    return f"{text}; {groups['in_no_group']:,} images in none"


def duplicates_of(facts: Mapping[str, Any], drawn: bool) -> list[str]:
    """Return the sections on equal and on similar images."""

    def rows(found: Sequence[Mapping[str, Any]]) -> str:
        lines = []
        for group in found[:MAX_TABLE_ROWS]:
            across = {"classes": group["across_classes"], "splits": group["across_parts"]}
            what = [" and ".join(name for name, is_so in across.items() if is_so)]
            names = ", ".join(
                f"{one['id']} ({one['part']}, {one['class']})" for one in group["samples"][:10]
            )
            more = len(group["samples"]) - 10
            lines.append([names + (f" and {more} more" if more > 0 else ""), *what])
            if "likeness" in group:
                lines[-1].append(f"{group['likeness']:.4f}")
        head = ["images", "in different"] + ["likeness"] * ("likeness" in found[0])
        left = len(found) - MAX_TABLE_ROWS
        rest = f"\n\n{left:,} more are in data.json." if left > 0 else ""
        return data_table(head, lines) + rest

    exact, near = facts["exact_duplicates"], facts["near_duplicates"]
    blocks = ["## Equal images", rows(exact) if exact else "None."]
    blocks += ["## Similar images"]
    if not facts["near_searched"]:
        blocks += ["Not searched for (`--no-near`)."]
    else:
        blocks += [
            "Images that are nearly the same: re-encoded, resized, brightened, slightly cropped. "
            "Look at them before removing any: small images of like things can be alike too.",
            rows(near) if near else "None.",
        ]
    return blocks + (["![equal and similar images](duplicates.png)"] if drawn else [])


def listing(lines: Sequence[str]) -> str:
    """Return a Markdown list of the first MAX_TABLE_ROWS lines."""
    shown = [f"- {markdown(line)}" for line in lines[:MAX_TABLE_ROWS]]
    left = len(lines) - MAX_TABLE_ROWS
    return "\n".join(shown + [f"- {left:,} more are in data.json"] * (left > 0)) or "None."


def data_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table with all columns but the first aligned right."""
    shown_rows = [[shown(v) if isinstance(v, int) else v for v in row] for row in rows]
    return markdown_table(header, shown_rows)


def by_channel(values: Any) -> str:
    """Return one number for each channel, in units of full scale, as text."""
    if not isinstance(values, list | tuple):
        return str(values)
    return ", ".join(f"{value:.4f}" for value in values)


def summary(facts: Mapping[str, Any]) -> list[str]:
    """Return the lines that the command prints."""
    dataset, sizes, pixels = facts["dataset"], facts["sizes"], facts["pixels"]
    totals = dict(facts["images_of_splits"])
    totals |= {"unreadable": len(facts["broken"])} if facts["broken"] else {}
    by_split = ", ".join(f"{split} {total:,}" for split, total in totals.items())
    lines = [
        f"{dataset['name']}: {dataset['images']:,} images of {len(dataset['classes'])} classes "
        f"({by_split})"
    ]
    lines += [f"note        {visible(note)}" for note in dataset["note"].splitlines()]
    sides = [sizes[key] for key in ("height", "width")]
    if sizes["distinct"] == 1:
        text = f"all {sides[0]['min']} x {sides[1]['min']}"
    else:
        spread = ["{min} to {max}".format(**side) for side in sides]
        text = f"{sizes['distinct']:,} different, heights {spread[0]}, widths {spread[1]}"
    lines.append(f"sizes       {text}")
    after = f" after {', '.join(pixels['after'])}" if pixels["after"] else ""
    lines.append(
        f"training    mean {by_channel(pixels['mean'])}, std {by_channel(pixels['std'])}{after}"
    )
    if bare := pixels["before_pad"]:
        mean, std = (by_channel(bare[key]) for key in MEAN_STD)
        after = f"after {', '.join(bare['after'])}, " if bare["after"] else ""
        after += "before Pad: as python -m trainer.new writes"
        lines.append(f"no edge     mean {mean}, std {std} {after}")
    if pixels["after"]:
        mean, std = (by_channel(pixels["raw"][key]) for key in MEAN_STD)
        lines.append(f"as read     mean {mean}, std {std}")
    if pixels["config"]:
        mean, std = (by_channel(pixels["config"][key]) for key in MEAN_STD)
        lines.append(f"the YAML's  mean {mean}, std {std}")
    lines.append(f"            {pixels['yaml']}")
    if facts["groups"]:
        lines.append(f"groups      {visible(groups_in_words(facts['groups']))}")
    counts = []
    for key in ("exact_duplicates", "near_duplicates"):
        images = sum(len(group["samples"]) for group in facts[key])
        counts.append(f"{len(facts[key]):,} groups ({images:,} images)")
    near = counts[1] if facts["near_searched"] else "not searched"
    lines.append(f"duplicates  {counts[0]} equal, {near} similar")
    lines += [f"converted   {line}" for line in facts["converted"]]
    lines += [f"warning     {visible(line)}" for line in facts["warnings"]]
    return lines
