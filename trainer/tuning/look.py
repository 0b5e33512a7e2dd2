"""Looks at data before there is a YAML: which dataset reads it, and what its pictures are like."""

import re
import shlex
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from datasets import (
    DATASETS,
    UNSUPPORTED,
    BrokenImage,
    DataError,
    Dataset,
    has_several_labels,
)
from datasets.csv_columns import USUAL
from datasets.csv_table import Table
from datasets.files import missing_folder, user_path
from datasets.folders import part_of
from datasets.shards import INDEX
from datasets.split import PARTS, expected_part
from datasets.walk import SYSTEM
from datasets.words import counted
from trainer.build.prepare import require_good_components
from trainer.components.decisions import number_of_each
from trainer.config import Config, load_config
from trainer.config.document import flow
from trainer.input.cut import BrokenImages, open_dataset
from trainer.input.data import check_channels
from trainer.process.errors import ConfigError, UsageError
from trainer.process.words import listed
from transforms.floats import normalized

LOOKED_AT = 256  # pictures that are decoded, spread evenly over all
KEPT_SIDE = 224  # of a picture that is looked at, so that hundreds fit into memory
MANY = 5000  # up to so many pictures the whole training is prepared before the file is written
MOST_ADVICES = 5  # that a dataset gives, one after the other, before it can read a table
MOST_TABLES = 20
MOST_TOLD = 3  # tables that are named in a message
# The folder of a set in IDX files -> the dataset that looks for it below its root.
IDX_SETS = {
    "FashionMNIST": "FashionMNIST",
    "MNIST": "torchvision/MNIST",
    "KMNIST": "torchvision/KMNIST",
}
IDX_FILES = "*-idx?-ubyte*"
NOTES = "1 2 5 10 20 50 100".split()  # face values in yuan

# The scene, and the number of the shot, in file names such as 17_03.jpg and "IMG 5 (2).jpg".
BURST = r"^(.*\d.*?)[_\-. ]\D{0,12}\d+\)?(\.\w+)?$"

Arguments = dict[str, Any]


def _table(root: Path, file: Path) -> Arguments:
    return {"name": "CSVImages", "root": str(root), "csv": str(file)}


def _in(folder: Path, pattern: str) -> list[Path]:
    """What lies in a folder by this pattern, in order; hidden, as ``._a.npz`` of macOS, is not."""
    found = ((entry, entry.relative_to(folder).parts) for entry in folder.glob(pattern))
    return sorted(
        entry
        for entry, parts in found
        if not any(part.startswith(".") or part in SYSTEM for part in parts)
    )


def _folder(path: Path) -> Iterator[Arguments]:
    """What may read a folder, the most special one first. Raises UsageError for a choice."""
    if (path / INDEX).is_file():
        yield {"name": "Shards", "root": str(path)}
        return
    names = [entry.name for entry in _in(path, "*") if entry.is_dir()]
    parquet = _in(path, "*.parquet") or _in(path, "*/*.parquet")
    several = _in(path, "*.npy")
    packed = _in(path, "*.npz") if parquet or several or not names else []  # beside classes: no
    if len(packed) + bool(parquet) + bool(several) > 1:
        raise _choice(path, [*packed, *parquet, *several], path, path)
    if parquet or several or packed:
        root = packed[0] if packed else path
        yield {"name": "Parquet" if parquet else "Arrays", "root": str(root)}
        return
    yield {"name": "RMB" if names and {*names} <= {*NOTES} else "ImageFolder", "root": str(path)}
    beside = path.parent if path.name not in ("", "..") else path.resolve().parent
    for place in (path, beside):  # a table in the folder of the pictures, or beside it
        tables = [file for file in _in(place, "*.[ct]sv") if file.is_file()]
        yield from (_table(path, file) for file in tables[:MOST_TABLES])


def _choice(path: Path, files: Sequence[Path], place: Path, root: Path) -> UsageError:
    """The refusal of several files of ``place`` that may each be the data of ``path``.

    root: where the images of the first are.
    """
    shown = listed([str(file.relative_to(place)) for file in files[:MOST_TOLD]], "or")
    shown += f" or {len(files) - MOST_TOLD:,} more" * (len(files) > MOST_TOLD)
    if place == path:
        return UsageError(f"--data {path}: it holds {shown}; name one of them")
    typed = f"--data {shlex.quote(str(files[0]))} dataset.root={shlex.quote(str(root))}"
    return UsageError(
        f"--data {path}: beside it, in {place}, is {shown}; name one of them, as in {typed}"
    )


# What may read a path, by its suffix; "" is a folder. The first that opens is taken, but of
# several tables that open in one place the user names one.
WAYS: Mapping[str, Callable[[Path], Iterator[Arguments]]] = {
    "": _folder,
    ".csv": lambda path: iter([_table(path.parent, path)]),
    ".tsv": lambda path: iter([_table(path.parent, path)]),
    ".npz": lambda path: iter([{"name": "Arrays", "root": str(path)}]),
    ".npy": lambda path: iter([{"name": "Arrays", "root": str(path)}]),
    ".parquet": lambda path: iter([{"name": "Parquet", "root": str(path)}]),
}


@dataclass(frozen=True)
class Sight:
    """What is known of data before a YAML is written.

    config names the dataset only. sizes: (height, width) of each picture that was looked at.
    pixels: those of train among them, (C, H, W), 0 to 255, at most KEPT_SIDE a side. is_grey: they
    have one channel, or equal ones. broken: those that cannot be read. notes: on how the data
    were found.
    """

    config: Config
    dataset: Dataset
    sizes: list[tuple[int, int]]
    pixels: list[Tensor]
    is_grey: bool
    broken: list[BrokenImage]
    notes: Sequence[str] = ()

    @property
    def side(self) -> int:
        """The median of the shorter sides, in pixels."""
        return int(statistics.median(min(size) for size in self.sizes))

    @property
    def parts(self) -> Counter[str]:
        """How many images each official split has, in order; empty if there is none."""
        counts = Counter(self.dataset.parts)
        return Counter({part: counts[part] for part in PARTS if counts[part]})

    @property
    def num_train(self) -> int:
        """About how many images train will have, with ratios of 8 to 1 to 1."""
        free = sum(part is None for part in self.dataset.parts)
        shares = 8 + ("val" not in self.parts) + ("test" not in self.parts)
        return (self.parts["train"] + free) * 8 // shares

    @property
    def class_sizes(self) -> list[int]:
        """Images of each class, in the order of the classes, without those of test."""
        is_seen = torch.tensor([part != "test" for part in self.dataset.parts])
        labels = torch.tensor(self.dataset.labels)[is_seen]
        return number_of_each(labels, len(self.dataset.classes))

    @property
    def least_held_out(self) -> int:
        """Of each class at least so many images are in val, and in test, with ratios 8 to 1 to 1.

        A part that is cut off has at least half its share of a class.
        """
        classes, parts = len(self.dataset.classes), self.dataset.parts
        labels, free = torch.tensor(self.dataset.labels), {None, "train"}
        shares, least = 8 + ("val" not in self.parts) + ("test" not in self.parts), list[int]()
        for name in ("val", "test"):
            wanted = {name} if name in self.parts else free
            rows = torch.tensor([part in wanted for part in parts])
            fewest = min(number_of_each(labels[rows], classes))
            least.append(fewest if name in self.parts else fewest // (2 * shares))
        return min(least)

    @property
    def has_several_labels(self) -> bool:
        """Whether an image may have several labels: a share of each class."""
        return has_several_labels(self.dataset.labels)

    @property
    def channels(self) -> int:
        """Channels of an image before any transform."""
        return self.pixels[0].shape[0]

    def statistics(self, side: int) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, 0 to 1, of pictures of this size."""
        joins = self.is_grey and self.channels > 1
        grey = [functional.rgb_to_grayscale(one) if joins else one for one in self.pixels]
        every = [functional.resize(one, [side, side], antialias=True) for one in grey]
        values = torch.stack(every).double() / 255
        std = values.std((0, 2, 3)).clamp(min=0.01)  # of pictures of one colour
        return values.mean((0, 2, 3)).tolist(), std.tolist()

    def bursts(self) -> int:
        """How many groups the file names tell, such as 17 in ``17_03.jpg``; 0 if they tell none."""
        firsts = (re.search(BURST, one.rpartition("/")[2]) for one in self.dataset.ids)
        groups = Counter(found and found[1] for found in firsts)
        is_one = groups[None] == 0 and len(groups) > len(self.dataset.classes)
        return len(groups) if is_one and 2 * len(groups) <= len(self.dataset) else 0


def look_at_data(path: str, typed: Sequence[str]) -> Sight:
    """Open ``path`` by the dataset that can, and decode some of its pictures.

    typed: overrides of the dataset's arguments. Raises DataError with each reason if none can.
    """
    notes = list[str]()
    config, dataset = _found(user_path(path, "--data"), typed, notes)
    is_free = [part in (None, "train") for part in dataset.parts]
    rows = [index for index, free in enumerate(is_free) if free or not any(is_free)]
    how = config.split
    expected = expected_part(dataset.parts, how.ratios, how.seed)
    sizes, broken, spread = list[tuple[int, int]](), list[BrokenImage](), 0.0
    pixels, others = list[Tensor](), list[Tensor]()
    channels = dict[int, tuple[int, str]]()  # of each number, how many images and the first
    for index in rows[:: -(-len(rows) // LOOKED_AT)]:
        try:
            image = dataset.image(index)
            part = expected(dataset.digest(index), dataset.parts[index])
        except BrokenImage as error:
            broken.append(error)
            continue
        sizes.append((image.shape[1], image.shape[2]))
        number, first = channels.get(len(image), (0, dataset.ids[index]))
        channels[len(image)] = number + 1, first
        if image.dtype == torch.uint16:
            image = normalized(image[None])[0] * 255
        factor = min(1.0, KEPT_SIDE / max(image.shape[1:]))
        small = [max(1, round(length * factor)) for length in image.shape[1:]]
        image = functional.resize(image.contiguous(), small, antialias=True)
        spread = max(spread, (image.amax(0).float() - image.amin(0).float()).mean().item())
        (pixels if part == "train" else others).append(image)
    if not sizes:
        raise BrokenImages(broken, len(dataset))
    check_channels(channels)
    return Sight(config, dataset, sizes, pixels or others, spread < 1, broken, notes)


def _found(path: Path, typed: Sequence[str], notes: list[str]) -> tuple[Config, Dataset]:
    """The configuration and dataset of the first way that opens ``path``; ``notes`` are added.

    Raises UsageError if several tables of a folder open.
    """
    refusals = list[tuple[Arguments, str]]()
    kind: type[Exception] = UsageError  # unless data were looked at

    def place_of(way: Arguments) -> Path | None:
        return Path(way["csv"]).parent if "csv" in way else None

    for place, ways in groupby(_ways(path, typed), place_of):
        opened = dict[str, tuple[Config, Dataset]]()  # by the table, which may be typed
        for arguments in ways:
            try:
                found = _opened(arguments, typed)
            except ConfigError as error:
                if not typed:
                    raise
                refusals.append((arguments, "\n".join(map(str, error.faults))))
            except DataError as error:
                refusals.append((arguments, str(error)))
                kind = DataError
            else:
                if place is None:
                    return found
                opened.setdefault(str(found[0].dataset.arguments["csv"]), found)
        if place is not None and opened:
            notes += _notes_on_tables(place, refusals)
            config, dataset = _of_tables(path, place, opened, typed)
            if path.is_dir() and not any(word.startswith("dataset.root=") for word in typed):
                notes += _note_on_root(path, config)
            return _with_parts(config, dataset, typed, notes)
    raise kind("\n".join(_told(path, refusals)))


def _notes_on_tables(place: Path, refusals: Sequence[tuple[Arguments, str]]) -> list[str]:
    """A note on each of the first tables of ``place`` that cannot be read beside one that can."""
    others = [(Path(way["csv"]), why) for way, why in refusals if "csv" in way]
    others = [(table, why) for table, why in others if table.parent == place]
    told = [f"{t} is not used: {why.splitlines()[0][:200]}" for t, why in others[:MOST_TOLD]]
    more = len(others) - MOST_TOLD
    return told + [f"and {counted(more, 'table')} more of {place}"] * (more > 0)


def _note_on_root(path: Path, config: Config) -> list[str]:
    """A note if the images of a table are not in the folder that was asked for."""
    root = Path(config.dataset.arguments["root"])
    if root.resolve().is_relative_to(path.resolve()):
        return []
    tables = listed(tables_of(config), "and")
    return [f"{path} is not read: none of its files is in {tables}, whose images are in {root}"]


def tables_of(config: Config) -> list[str]:
    """The tables that list the images, in their order; [] for a dataset without."""
    csv = config.dataset.arguments.get("csv") or []
    return [csv] if isinstance(csv, str) else [*csv.values()] if isinstance(csv, dict) else csv


def _of_tables(
    path: Path, place: Path, opened: Mapping[str, tuple[Config, Dataset]], typed: Sequence[str]
) -> tuple[Config, Dataset]:
    """The only table, or several that are the parts by their names. Else raises UsageError."""
    first = next(iter(opened.values()))
    if len(opened) == 1:
        return first
    part_by = {table: part_of(Path(table).stem) for table in opened}
    parts = {part: table for part in PARTS for table, own in part_by.items() if own == part}
    if len(parts) < len(opened) or "train" not in parts:
        root = Path(first[0].dataset.arguments["root"])
        raise _choice(path, [*map(Path, opened)], place, root)
    arguments = {"name": "CSVImages", **first[0].dataset.arguments, "csv": parts}
    return _opened(arguments, typed)


def _ways(path: Path, typed: Sequence[str]) -> list[Arguments]:
    """What may read a path, the most special first. Raises DataError and UsageError for none."""
    if not path.exists():
        if (name := str(path)) in DATASETS or name in UNSUPPORTED:
            why = UNSUPPORTED.get(name) or f"type --data FOLDER dataset.name={name}"
            raise UsageError(f"--data {name}: expected the folder with the files; {why}")
        raise missing_folder(path)
    kind = "" if path.is_dir() else path.suffix.lower() or "."
    named = [word.partition("=")[2] for word in typed if word.startswith("dataset.name=")]
    try:
        ways = _idx_ways(path)
    except UsageError:
        if not named:
            raise
        ways = []
    if not ways and (kind in WAYS or not named):
        if kind not in WAYS:
            suffixes = ", ".join(filter(None, WAYS))
            raise UsageError(f"--data {path}: expected a folder, or a file of {suffixes}")
        try:
            ways = list(WAYS[kind](path))
        except UsageError:
            if not named:
                raise
    same = [way for way in ways if way["name"] in named]
    return same or [{"name": name, "root": str(path)} for name in named[-1:]] or ways


def _idx_ways(path: Path) -> list[Arguments]:
    """What reads IDX files, as those of MNIST are; [] if these are none.

    Raises UsageError if they do not lie where a dataset looks for them.
    """
    place = path.absolute()  # "." has no name
    inner = [place, place / "raw", *(place / name / "raw" for name in IDX_SETS)]
    if place.is_file():
        inner = [place.parent] * place.match(IDX_FILES)
    for raw in (folder for folder in inner if _in(folder, IDX_FILES)):
        name = IDX_SETS.get(raw.parent.name)
        if name and raw.name == "raw":
            root = path if place == raw.parent.parent else raw.parent.parent
            return [{"name": name, "root": str(root), "download": False}]
        raise UsageError(
            f"--data {path}: IDX files, as those of MNIST; move all four into FOLDER/NAME/raw, "
            f"where NAME is {listed(IDX_SETS, 'or')}, and type --data FOLDER"
        )
    return []


def _told(path: Path, refusals: Sequence[tuple[Arguments, str]]) -> list[str]:
    """Why nothing reads a path: of many tables the first, and of several beside it their names."""
    if len({refusal for _, refusal in refusals}) == 1:
        return [refusals[0][1]]
    tables = [Path(way["csv"]) for way, _ in refusals if "csv" in way]
    inner = [table for table in tables if table.parent == path]
    outer = [table for table in tables if table.parent != path]
    outer *= len(outer) > 1  # a single one is most likely meant
    beside = outer[0].parent if outer else path.parent
    hidden = {"more": inner[MOST_TOLD:], f"beside it, in {beside},": outer}
    lines = list[str]()
    for way, refusal in refusals:
        table = Path(way["csv"]) if "csv" in way else None
        if table not in [one for some in hidden.values() for one in some]:
            lines.append(f"as {way['name']}{f' by {table.name}' if table else ''}: {refusal}")
    for where, some in hidden.items():
        named = ", ".join(table.name for table in some[:MOST_TOLD])
        named += f" and {len(some) - MOST_TOLD:,} more" * (len(some) > MOST_TOLD)
        typed = f"--data TABLE.csv dataset.root={shlex.quote(str(path))}"
        told = f"{counted(len(some), 'table')} {where} cannot be read for it ({named})"
        lines += [f"{told}; if one belongs to it: {typed}"] * bool(some)
    return lines


def _opened(arguments: Arguments, typed: Sequence[str]) -> tuple[Config, Dataset]:
    """Open a dataset; what its refusal says to type is typed, where it says one thing only."""
    advices: list[str] = []
    while True:
        config = _config_of(arguments, [*advices, *typed])
        require_good_components(config)
        try:
            return config, open_dataset(config)
        except DataError as error:
            more = [word for word in advice_in(str(error)) if word not in advices]
            if not more or len(advices) >= MOST_ADVICES:
                raise
            advices += more


def advice_in(refusal: str) -> list[str]:
    """The ``dataset.KEY=VALUE`` that a refusal says to type; [] if it has a choice or a doubt."""
    lines = [line for line in refusal.splitlines() if re.search(r"ype '?dataset\.", line)]
    doubt = r"\bNAME\b|dataset\.download=|\b(If|For|To leave|or) .*ype '?dataset"
    if len(lines) != 1 or re.search(doubt, lines[0]):
        return []
    typed = re.sub(r".*?ype (?='?dataset\.)", "", lines[0], count=1)
    try:
        return [word for word in shlex.split(typed) if word.startswith("dataset.")]
    except ValueError:  # an apostrophe in a text behind it
        return []


def _with_parts(
    config: Config, dataset: Dataset, typed: Sequence[str], notes: list[str]
) -> tuple[Config, Dataset]:
    """The same, with ``part_column`` if the tables have a column of parts.

    A column of other words only is no column of parts, and a note says so. Raises DataError if one
    has words of both kinds.
    """
    known = config.dataset.arguments
    if "part_column" in known or isinstance(known["csv"], dict):
        return config, dataset
    wanted = [known.get("path_column", "path"), known.get("label_column", "label")]
    tables = [Table(user_path(file, "dataset.csv"), wanted) for file in tables_of(config)]
    for name in dict.fromkeys(column for table in tables for column in table.header):
        if name.lower() not in USUAL["part_column"] or name in wanted:
            continue
        if not any(part_of(word) for table in tables for word in _words_in(table, name)):
            notes.append(f"the column '{name}' names no part (train, val or test), and is not used")
            continue
        settings = {"name": config.dataset.name, **known, "part_column": name}
        split = _config_of(settings, typed)
        try:
            return split, open_dataset(split)
        except DataError as error:
            raise DataError(
                f"{error}\nThe column '{name}' seems to have the data's own parts: correct it, "
                "or name another: dataset.part_column=NAME; null is none."
            ) from None
    return config, dataset


def _words_in(table: Table, name: str) -> set[str]:
    """The different texts in a column of a table; none if it has no such column."""
    places = [at for at, column in enumerate(table.header) if column == name]
    rows = islice(table.rows(), 1, None) if places else ()
    return {row[at] for row in rows for at in places if at < len(row)}


def _config_of(arguments: Arguments, typed: Sequence[str]) -> Config:
    """A configuration that names the dataset; all else in it is of no account."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.yaml"
        file.write_text(
            "transforms: {both: []}\nmodel: MLP\noptimizer: {name: SGD, lr: 1}\n"
            "loss: BCEWithLogitsLoss\n"  # which fits several labels too
            "train: {epochs: 1}\n"
        )
        return load_config(file, [f"dataset={flow(arguments)}", *typed])
