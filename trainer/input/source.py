"""A dataset's files as a run reads them: each once, and remembered in the store from then on."""

import errno
import hashlib
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets import BrokenImage, DataError, Dataset
from trainer.config import Config
from trainer.input.file_index import FileIndex, clock, states_of
from trainer.input.kept import (
    CPU,
    available_memory,
    choose_keeping,
    has_one_size,
    kept_in,
    on_device,
    place_kept,
)
from trainer.input.pool import WIDE, Digests, Pool, Records, as_digests, image_bytes
from trainer.input.reading import Pick, Reader, Side, naming_side, read_files
from trainer.input.store import Store, has_own_decoding, recipe_of
from trainer.input.subset import (
    MetImages,
    Subset,
    at_least_of,
    decoded,
    decodes_content,
    labels_of,
    subset_in_memory,
)
from trainer.process.launch import local_world_size
from transforms.pipeline import Pipeline

SIDES = ("train", "eval")
PROBED = 8  # images that are decoded first, to learn their size
SIZED = 2**14  # images that are there already, of which the mean size is taken
BY_NAME = 2**32  # bytes of files from which on they are not all read before the first step


class Source:
    """The files of a dataset: their digests, and their prepared images.

    digests (N, 32), known (N,): the SHA-256 of each sample's content, where it is known. broken:
    the images that cannot be read. notes: lines for the user. channels: by number of the
    side, of each number of channels of its images, how many have it, and the id of the first.
    """

    def __init__(
        self,
        dataset: Dataset,
        pipelines: Mapping[str, Pipeline],
        config: Config,
        device: torch.device,
    ) -> None:
        self.dataset, self.config, self.device = dataset, config, device
        self.notes: list[str] = []
        self.broken: dict[int, BrokenImage] = {}
        self.left_out: set[int] = set()  # by fixes
        self.channels: dict[int, dict[int, tuple[int, str]]] = {}
        self.digests: Digests = np.zeros((len(dataset), 32), np.uint8)
        self.known = np.zeros(len(dataset), bool)
        self.store = Store(config.store)
        self._no_store = self.store.unusable or self.store.is_in(getattr(dataset, "root", None))
        self._index: FileIndex | None = None
        self._states: NDArray[np.int64] | None = None
        self._sizes: NDArray[np.int64] | None = None  # bytes of each file
        self._look()
        self._pipelines = pipelines
        self.sides: list[Side] = []
        for name in SIDES:
            side = self._side(pipelines[name])
            if not self.sides or side.recipe is None or side.recipe != self.sides[0].recipe:
                self.sides.append(side)
                self._open_pool(side)

    def _look(self) -> None:
        """Learn the digests that need no reading."""
        dataset: Any = self.dataset
        self._given: Sequence[str] | None
        self._given = known = dataset.digests(range(len(dataset)))
        if known is not None:
            self.digests, self.known[:] = as_digests(known), True
            self._sizes = getattr(dataset, "sizes", None)  # packed images are split as files are
        elif hasattr(dataset, "content") and hasattr(dataset, "root"):
            own_states = getattr(dataset, "states", None)
            self._states = own_states() if own_states else states_of(dataset.root, dataset.ids)
            self._sizes = self._states[:, 0]
            # A class of one's own may give other bytes for the same file.
            own = not decodes_content(type(dataset)) or has_own_decoding(type(dataset))
            if not self._no_store and not own:
                self._index = self.store.index(Path(dataset.root))
                self._recall()

    def _recall(self) -> None:
        """Learn what the index knows, beside what this process has read itself."""
        if self._index is not None and self._states is not None:
            digests, known = self._index.recall(self.dataset.ids, self._states)
            new = known & ~self.known
            self.digests[new], self.known[new] = digests[new], True

    def _side(self, pipeline: Pipeline) -> Side:
        at_least = at_least_of(self.dataset, pipeline)
        recipe = recipe_of(self.dataset, pipeline.fixed, at_least)
        return Side(pipeline, Pool(), at_least, recipe)

    def _open_pool(self, side: Side) -> None:
        if side.recipe is not None and self.config.loader.cache != "ram" and not self._no_store:
            try:
                side.pool = self.store.pool(side.recipe)
            except OSError as error:
                self._no_store = f"{self.store.root}: {error.strerror or error}"

    @property
    def is_by_name(self) -> bool:
        """Whether images are split by name, for reading all of them first would take too long."""
        by = self.config.split.by
        if self._sizes is None or by == "content":  # without files, split.json has no sizes
            return False
        if self.config.split.group == "duplicates" or self.has_fixes:  # they need all contents
            return False
        return by == "name" or int(self._sizes.sum()) > BY_NAME

    @property
    def has_fixes(self) -> bool:
        """Whether a file of fixes goes by the images' contents."""
        return self.config.dataset.trainer_arguments.get("fixes") is not None

    def remembered(self, about: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """``Store.remembered``; without a store, ``make`` is called."""
        return make() if self._no_store else self.store.remembered(about, make)

    def number(self, split: str) -> int:
        """The number in ``sides`` of train, val or test."""
        return 0 if split == "train" else len(self.sides) - 1

    def identities(self) -> Sequence[str]:
        """What split.json holds of each sample: its content's digest in hex, or its file's size.

        "" where the digest is not known.
        """
        if self.is_by_name and self._sizes is not None:
            return [f"{size} bytes" for size in self._sizes.tolist()]
        if self._given is not None:
            return self._given
        return [
            text if known else ""
            for first in range(0, len(self.known), 4096)  # one text takes 128 bytes each
            for text, known in zip(
                hex_texts(self.digests[first : first + 4096]),
                self.known[first : first + 4096].tolist(),
                strict=True,
            )
        ]

    def split_keys(self) -> Sequence[str]:
        """What decides the split of each sample: its content's digest, or that of its name."""
        if not self.is_by_name:
            return self.identities()
        return [hashlib.sha256(os.fsencode(name)).hexdigest() for name in self.dataset.ids]

    def read_unknown(self, pick: Pick, counts: Sequence[int]) -> None:
        """Read each file whose digest is not known, and prepare it for the side of ``pick``.

        ``counts``: about how many samples each side gets.
        """

        def missing() -> NDArray[np.int64]:
            unknown = ~self.known
            unknown[list(self.broken)] = False
            return np.flatnonzero(unknown)

        share = len(missing()) / max(len(self.known), 1)
        if share:
            for side, count in zip(self.sides, counts, strict=True):
                self._decide(side, np.arange(len(self.known)), count, round(count * share))
            self._read(missing, pick)

    def decide(self, splits: Mapping[str, Sequence[int]]) -> None:
        """Decide where the images of these splits are kept, each Side's together."""
        for number, side in enumerate(self.sides):
            rows = [rows for split, rows in splits.items() if self.number(split) == number]
            if rows and self.dataset.images is None:
                chosen = np.concatenate(rows).astype(np.int64)
                self._decide(side, chosen, len(chosen), len(self._missing(side, chosen)))

    def _missing(self, side: Side, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the samples that are to be read for a side."""
        is_kept = side.keeping is not None or not side.is_decided
        there = side.pool.find(self.digests[chosen], kept=is_kept) >= 0
        broken = np.isin(chosen, list(self.broken))
        return chosen[~(there & self.known[chosen]) & ~broken]

    def prepare(self, split: str, indices: Sequence[int]) -> None:
        """Prepare the samples ``indices`` of train, val or test, as far as they are not there."""
        self.decide({split: indices})
        number = self.number(split)
        side, chosen = self.sides[number], np.asarray(indices, np.int64)
        if self.dataset.images is not None:
            return

        def missing() -> NDArray[np.int64]:
            return self._missing(side, chosen)

        # Packed images were checked then. Of others, what is broken is found when it is met.
        if side.keeping is None and (self.is_by_name or self._given is not None):
            if split == "train" or self.dataset.on_broken == "error":
                return
        if len(missing()):
            self._read(missing, lambda *_: number)

    def _decide(self, side: Side, indices: NDArray[np.int64], total: int, missing: int) -> None:
        """Decide where the images of a side are kept, if that is not decided."""
        if side.is_decided or self.config.loader.cache == "off":
            side.is_decided = True
            return
        size = self._mean_size(side, indices)
        why_not = self._no_store
        if side.recipe is None:
            why_not = "what decides the pixels of this dataset is not known"
            if self.config.loader.cache == "store":
                self._without_store(why_not)
        elif missing and self.config.loader.cache != "ram":
            why_not = why_not or self.store.room(round(size * missing), self._folders())
            if why_not:
                self._without_store(why_not)
        side.keeping = choose_keeping(self.config, round(size * total), why_not, self.device)
        side.is_decided = True
        if side.keeping == "ram" and (ranks := local_world_size()) > 1:
            self._note(f"each of {ranks} ranks reads all files and keeps a copy of the images")

    def _folders(self) -> list[Any]:
        return [side.pool.folder for side in self.sides]

    def _without_store(self, why: str) -> None:
        self._note(f"prepared images are not stored ({why}); a next start prepares them again")

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _mean_size(self, side: Side, indices: NDArray[np.int64]) -> float:
        """Bytes of a prepared image: of some that are there, or of a few that are decoded."""
        places = side.pool.find(self.digests[sampled(indices, SIZED)], kept=False)
        if (places >= 0).any():
            return float(image_bytes(side.pool.records[places[places >= 0]]).mean())
        sizes = []
        for index in sampled(indices, PROBED).tolist():
            with suppress(BrokenImage):
                image = decoded(self.dataset, index, side.at_least)
                sizes.append(side.make(image, self.sides.index(side)).nbytes)
        return float(np.mean(sizes)) if sizes else 0.0

    def _read(self, missing: Callable[[], NDArray[np.int64]], pick: Pick) -> None:
        """Read the ``missing`` samples, one process of the machine at a time."""
        durable = not self._no_store and any(side.is_durable for side in self.sides)
        with ExitStack() as stack:
            if durable:
                stack.enter_context(self.store.builder(self._name))
                for side in self.sides:
                    side.pool.read_new()
                self._recall()
            indices = missing()
            if not len(indices):
                return
            began = clock()
            try:
                for side in self.sides:
                    side.begin(self.store if durable else None)
                reader = Reader(self.dataset, self.sides, pick, self.digests, self.known)
                what = "preparing" if any(side.keeping for side in self.sides) else "checking"
                self.broken |= read_files(reader, indices, self._sizes, f"{what} images", durable)
                for side in self.sides:
                    side.finish()
            except OSError as error:
                if not durable or error.errno in (errno.EMFILE, errno.ENFILE):
                    raise
                self._no_store = f"{self.store.root}: {error.strerror or error}"
            finally:
                for side in self.sides:
                    side.discard()
            if self._index is not None and self._states is not None and not self._no_store:
                with suppress(OSError):
                    self._index.remember(
                        self.dataset.ids, self._states, self.digests, self.known, began
                    )
        if durable and self._no_store:
            self._without_store(self._no_store)
            for side in self.sides:
                side.is_decided = side.keeping != "store"
                self._decide(side, indices, len(indices), 0)
            self._read(missing, pick)

    @property
    def _name(self) -> str:
        return str(getattr(self.dataset, "root", self.config.dataset.name))

    def subset(self, split: str, indices: Sequence[int]) -> Subset:
        """The samples ``indices`` of a split, with the images that ``prepare`` has prepared."""
        side, dataset = self.sides[self.number(split)], self.dataset
        pipeline = self._pipelines["train" if split == "train" else "eval"]
        rows = torch.tensor(indices, dtype=torch.int64)
        if dataset.images is not None:
            with naming_side(self.number(split), dataset.images):
                return subset_in_memory(dataset, pipeline, rows, self.config, self.device)
        labels = labels_of(dataset, rows)
        places = side.pool.find(self.digests[rows.numpy()], kept=side.keeping is not None)
        if side.keeping is None and (places < 0).any():  # not all was read
            extremes = self._extremes_of_some(split, indices)
            met = MetImages() if split == "train" and dataset.on_broken == "skip" else None
            return Subset(dataset, pipeline, rows, labels, None, extremes, met=met)
        used, places_of = None, places
        if (places < 0).any():  # broken images, of a split by name
            assert self.broken.keys() >= {*rows[torch.from_numpy(places < 0)].tolist()}
            if (places < 0).all():
                raise DataError(f"no image of {split} can be read")
            used = next_readable(places >= 0)
            places = places[used]
        records = side.pool.records[places]
        if isinstance(remarks := getattr(dataset, "remarks", None), bytearray | array):
            own = np.flatnonzero(places_of >= 0)
            np.asarray(remarks)[rows.numpy()[own]] = records["remark"][own]
        shown_rows = rows.numpy() if used is None else rows.numpy()[used]
        self._count_channels(self.number(split), records, shown_rows)
        extremes = torch.from_numpy(extreme_rows(records["shape"][:, -2:]))
        shown = None if used is None else torch.from_numpy(used)
        if side.keeping is None:
            return Subset(dataset, pipeline, rows, labels, None, extremes)
        kept = kept_in(side.pool, places, side.keeping, available_memory())
        one_size = has_one_size(records)
        is_wide = bool(records["layout"][0] & WIDE)
        place = place_kept(self.config, pipeline, kept.nbytes, one_size, self.device, is_wide)
        images = kept if place == CPU else on_device(kept, place)
        return Subset(dataset, pipeline, rows, labels, images, extremes, shown)

    def _count_channels(self, side: int, records: Records, indices: NDArray[np.int64]) -> None:
        column, found = records["shape"][:, 1], self.channels.setdefault(side, {})
        for channels in np.flatnonzero(np.bincount(column)).tolist():
            has = column == channels
            count, first = found.get(channels, (0, self.dataset.ids[indices[has.argmax()]]))
            found[channels] = count + int(has.sum()), first

    def _extremes_of_some(self, split: str, indices: Sequence[int]) -> Tensor:
        """The rows of the smallest and largest of a few images. Raises BrokenImage."""
        number, found = self.number(split), dict[int, tuple[int, int]]()
        side = self.sides[number]
        for row in sampled(np.arange(len(indices)), PROBED).tolist():
            try:
                image = side.make(decoded(self.dataset, indices[row], side.at_least), number)
            except BrokenImage:
                if self.dataset.on_broken == "error":
                    raise
            else:
                found[row] = image.shape[-2], image.shape[-1]
        if not found:
            raise DataError(f"none of {PROBED} images of {split} can be read")
        chosen = extreme_rows(np.array(list(found.values())))
        return torch.tensor(list(found))[torch.from_numpy(chosen)]


def next_readable(readable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row itself, or the first row behind it that is readable, in a circle."""
    rows = np.flatnonzero(readable)
    places = np.searchsorted(rows, np.arange(len(readable))) % len(rows)
    found: NDArray[np.int64] = rows[places]
    return found


def hex_texts(digests: Digests) -> list[str]:
    """Each of the digests (N, 32) in hex."""
    text = digests.tobytes().hex()
    return [text[place : place + 64] for place in range(0, len(text), 64)]


def sampled(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most ``count`` of ``indices``, evenly spread."""
    chosen: NDArray[np.int64] = indices[:: max(1, -(-len(indices) // count))]
    return chosen


def extreme_rows(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of the lowest, narrowest, highest and widest of (height, width), and two more."""
    rows = {*range(min(2, len(sizes)))}
    if len(sizes):
        rows |= {int(found) for found in (*sizes.argmin(axis=0), *sizes.argmax(axis=0))}
    return np.array(sorted(rows), np.int64)
