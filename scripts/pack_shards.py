"""Pack an image folder into tar files: large sets are then copied and read faster.

python -m scripts.pack_shards --source DIR --target DIR --size 256M

TARGET gets shards.json and shard-000000.tar and so on, which hold the files unchanged. Train on it
with ``dataset: {name: Shards, root: TARGET}``; the results are those of the folder. The tar files
have WebDataset's form: 00000000.jpg beside 00000000.cls, the label.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.ending import code_of_writing

if TYPE_CHECKING:
    from datasets import BrokenImage
    from datasets.image_folder import ImageFolder

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def main(argv: Sequence[str] | None = None) -> int:
    """Pack a folder. Returns the exit code: 0, 2, 3 (bad data), 5 (target not written) or 130."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.pack_shards",
        description="Pack SOURCE/CLASS/IMAGE into TARGET/shard-000000.tar and so on.",
    )
    add = parser.add_argument
    add("--source", type=Path, required=True, help="an image folder, with or without train/, ...")
    add("--target", type=Path, required=True, help="a folder that is new or empty")
    add("--size", type=_bytes, default="256M", help="bytes a shard, about (default: 256M)")
    add("--layout", choices=["auto", "parts", "classes"], default="auto", help="as dataset.layout")
    add("--channels", choices=["rgb", "keep"], default="rgb", help="as dataset.channels")
    add("--bits", type=int, choices=[8, 16], default=8, help="as dataset.bits")
    add("--skip-broken", action="store_true", help="leave out images that cannot be decoded")
    arguments = parser.parse_args(argv)
    source, target = arguments.source, arguments.target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        parser.error(f"--target {target}: exists already; name a folder that is new or empty")
    if target.is_relative_to(source.resolve()):
        parser.error(f"--target {target}: lies inside --source {source}, among its images")

    try:
        import webdataset  # noqa: F401 - here, so that a missing package is named before any work
    except ImportError:
        parser.error('packing needs the library webdataset: pip install -e ".[shards]"')
    from datasets.image_folder import ImageFolder
    from trainer.process.words import visible

    def work() -> None:
        form = {"channels": arguments.channels, "bits": arguments.bits}
        dataset = ImageFolder(str(source), layout=arguments.layout, **form)
        if dataset.note:
            print("\n".join(map(visible, dataset.note.splitlines())), file=sys.stderr)
        digests = _check(dataset, arguments.skip_broken)
        print(_pack(dataset, digests, target, arguments.size))

    return code_of_writing(target, work, "interrupted: nothing was written.")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)", text)
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a size such as 500K, 256M or 1G")
    return int(match[1]) * _UNITS[match[2]]


def _check(dataset: "ImageFolder", skip_broken: bool) -> dict[int, str]:
    """Decode every image; return index -> SHA-256 of the good ones. DataError for broken ones."""
    from datasets import BrokenImage, DataError
    from datasets.bands import decode_as, notes_on_bits
    from datasets.images import notes_on, read_file
    from trainer.process.console import bar

    def check(index: int) -> "str | BrokenImage":
        path = dataset.root / dataset.ids[index]
        try:
            content = read_file(path)
            _, dataset.remarks[index] = decode_as(dataset.form, content, str(path))
        except BrokenImage as error:
            return error
        return hashlib.sha256(content).hexdigest()

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        tried = pool.map(check, range(len(dataset)))
        results = list(bar(tried, "checking images", len(dataset)))
    finally:
        pool.shutdown(cancel_futures=True)  # at Ctrl-C, the images in the queue are dropped
    broken = [result for result in results if not isinstance(result, str)]
    report = "".join(f"\n{error}" for error in broken)
    if broken and not skip_broken or len(broken) == len(dataset):
        raise DataError(f"{len(broken)} broken images (--skip-broken leaves them out):{report}")
    if broken:
        print(f"left out {len(broken)} broken images:{report}", file=sys.stderr)
    for note in [*notes_on(dataset.remarks), *notes_on_bits(dataset.remarks)]:
        print(f"note    {note} when they are used", file=sys.stderr)
    return {index: result for index, result in enumerate(results) if isinstance(result, str)}


def _pack(dataset: "ImageFolder", digests: dict[int, str], target: Path, size: int) -> str:
    """Write everything beside the target, then rename. Returns a line for the user."""
    from datasets.shards import FORMAT, INDEX, shard_name
    from trainer.process.console import bar

    shards: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    indices = bar(digests, "packing images", len(digests))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        while len(samples) < len(digests):
            path = partial / shard_name(len(shards))
            packed = _write_shard(path, dataset, digests, indices, len(samples), size)
            places = _images_in(path)
            for index, (offset, length) in zip(packed, places, strict=True):
                sample = {"id": dataset.ids[index], "label": dataset.labels[index]}
                sample |= {"part": dataset.parts[index], "sha256": digests[index]}
                samples.append(sample | {"shard": len(shards), "offset": offset, "size": length})
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            shards.append({"name": path.name, "size": path.stat().st_size, "sha256": sha256})
        head = {"format": FORMAT, "classes": dataset.classes, "shards": shards}
        lines = ",\n".join(json.dumps(sample) for sample in samples)  # a line each, to grep in
        text = f'{json.dumps(head)[:-1]}, "samples": [\n{lines}\n]}}\n'
        (partial / INDEX).write_text(text, "ascii")
        for path in (*partial.iterdir(), partial):
            _sync(path)
        partial.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already if all went well
    total = sum(shard["size"] for shard in shards)
    return f"{target}: {len(samples)} images in {len(shards)} shards, {total:,} bytes"


def _write_shard(
    path: Path,
    dataset: "ImageFolder",
    digests: dict[int, str],
    indices: Iterator[int],
    first: int,
    size: int,
) -> list[int]:
    """Fill one tar file from ``indices`` until it has ``size`` bytes; return the packed indices.

    ``first`` is the number of the first sample; a sample's number is its key. A name cannot be the
    key: a/1.jpg and a/1.png would be one sample, and a tar header holds 100 ASCII characters.
    """
    from webdataset import TarWriter

    from datasets import DataError
    from datasets.heif import HEIF_SUFFIXES
    from datasets.images import SUFFIXES, read_file
    from datasets.walk import suffix_by_content

    known = SUFFIXES | dataset.form.suffixes | {*HEIF_SUFFIXES}
    packed: list[int] = []
    # Fixed owner and time: equal images give equal bytes. encoder=False: files as they are.
    with (
        open(path, "wb") as file,
        TarWriter(file, user="", group="", mtime=0, encoder=False) as tar,
    ):
        for index in indices:
            source = dataset.root / dataset.ids[index]
            content = read_file(source)
            if hashlib.sha256(content).hexdigest() != digests[index]:
                raise DataError(f"{source}: has changed while it was packed; start again.")
            key = f"{first + len(packed):08d}"
            label = str(dataset.labels[index]).encode()
            # WebDataset's readers find the picture by its suffix, which must be in lower case.
            suffix = source.suffix.lower()
            suffix = suffix if suffix in known else suffix_by_content(str(source))
            tar.write({"__key__": key, suffix[1:]: content, "cls": label})
            packed.append(index)
            if file.tell() >= size:
                break
    return packed


def _images_in(path: Path) -> list[tuple[int, int]]:
    """First byte and length of each image in a tar file, by its own headers."""
    with tarfile.open(path, "r:") as tar:
        return [(file.offset_data, file.size) for file in tar if not file.name.endswith(".cls")]


def _sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing half-written stays
    sys.exit(main())
