"""Sort an image folder into train, valid and test folders, for tools that need these.

python -m scripts.split_dataset --source DIR --target DIR --ratios 8 1 1

DIR/CLASS/IMAGE becomes TARGET/{train,valid,test}/CLASS/IMAGE. TARGET/split.json lists each split's
images with their SHA-256. Training makes the same split from these images, ratios and seed.
"""

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from scripts.ending import code_of_writing

if TYPE_CHECKING:
    from datasets.image_folder import ImageFolder

FOLDERS = {"train": "train", "val": "valid", "test": "test"}


def main(argv: Sequence[str] | None = None) -> int:
    """Split a folder. Returns the exit code: 0, 3 (bad data) or 5 (target cannot be written)."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    source, target = arguments.source, arguments.target
    if any(ratio < 0 for ratio in arguments.ratios) or not arguments.ratios[0] > 0:
        parser.error(f"--ratios {arguments.ratios}: expected three numbers >= 0, the first > 0")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        parser.error(f"--target {target}: exists already; name a folder that is new or empty")
    if target.resolve().is_relative_to(source.resolve()):
        parser.error(
            f"--target {target}: lies inside --source {source}, whose images it would join"
        )

    def work() -> None:
        from datasets.image_folder import ImageFolder  # torch: a mistyped argument need not wait
        from trainer.process.words import visible

        form = {"channels": arguments.channels, "bits": arguments.bits}
        dataset = ImageFolder(str(source), arguments.on_broken, arguments.layout, **form)
        if dataset.note:
            print("\n".join(map(visible, dataset.note.splitlines())), file=sys.stderr)
        _write(dataset, target, arguments.ratios, arguments.seed, arguments.mode)

    return code_of_writing(target, work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.split_dataset",
        description="Sort SOURCE/CLASS/IMAGE into TARGET/{train,valid,test}/CLASS/IMAGE.",
    )
    add = parser.add_argument
    add("--source", type=Path, required=True, help="an image folder; its own train/... stay")
    add("--target", type=Path, required=True, help="a folder that is new or empty")
    add("--ratios", type=float, nargs=3, default=[8, 1, 1], metavar=("TRAIN", "VAL", "TEST"))
    add("--seed", type=int, default=0, help="as split.seed in the YAML (default: 0)")
    add(
        *("--mode",),
        choices=["link", "copy"],
        default="link",
        help="link: hard links, which take no space, or copies where the disk has no hard links; "
        "copy: always copies (default: link)",
    )
    add("--layout", choices=["auto", "parts", "classes"], default="auto", help="as dataset.layout")
    add("--channels", choices=["rgb", "keep"], default="rgb", help="as dataset.channels")
    add("--bits", type=int, choices=[8, 16], default=8, help="as dataset.bits")
    add(
        *("--on-broken",),
        choices=["error", "skip"],
        default="error",
        help="what to do about an image that cannot be decoded (default: error)",
    )
    return parser


def _write(
    dataset: "ImageFolder", target: Path, ratios: Sequence[float], seed: int, mode: str
) -> None:
    from datasets.split import conflicts, manifest, split

    kept = _readable(dataset)
    ids = [dataset.ids[i] for i in kept]
    labels = [dataset.labels[i] for i in kept]
    parts = [dataset.parts[i] for i in kept]
    digests = [dataset.digest(i) for i in kept]
    chosen = split(labels, digests, parts, ratios, seed)

    target = target.resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    copied = 0
    try:
        for part, folder in FOLDERS.items():
            for i in chosen[part]:
                # Without the source's own split: "train/cat/1.jpg" may become "valid/cat/1.jpg".
                name = PurePosixPath(ids[i]).parts
                name = name[name.index(dataset.classes[labels[i]], 1 if parts[i] else 0) :]
                copied += _place(dataset.root / ids[i], partial / folder / Path(*name), mode)
        content = {"ratios": list(ratios), "seed": seed, **manifest(chosen, ids, digests)}
        (partial / "split.json").write_text(json.dumps(content, indent=1) + "\n")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already if all went well

    for part, folder in FOLDERS.items():
        count = Counter(dataset.classes[labels[i]] for i in chosen[part])
        counts = ", ".join(f"{name}: {count[name]}" for name in dataset.classes)
        print(f"{target / folder}: {len(chosen[part])} images ({counts})")
    if mode == "link" and copied:
        print(f"{copied} images were copied: they could not be linked to {target}.")
    for conflict in conflicts(ids, labels, digests, chosen):
        print(f"warning: {conflict}", file=sys.stderr)


def _readable(dataset: "ImageFolder") -> list[int]:
    """Decode every image; return the indices of the good ones. DataError for broken ones."""
    from tqdm import tqdm

    from datasets import BrokenImage, DataError

    good, broken = [], []
    for index in tqdm(range(len(dataset)), "checking", unit="image", leave=False, disable=None):
        try:
            dataset.image(index)
            good.append(index)
        except BrokenImage as error:
            broken.append(error)
    report = "\n".join(str(error) for error in broken)
    if broken and dataset.on_broken == "error":
        raise DataError(
            f"{len(broken)} broken images (--on-broken skip leaves them out):\n{report}"
        )
    if broken:
        print(f"left out {len(broken)} broken images:\n{report}", file=sys.stderr)
    return good


def _place(source: Path, target: Path, mode: str) -> bool:
    """Link or copy the file; return whether it was copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if mode == "link":
        try:
            os.link(source.resolve(), target)  # resolved: of a symbolic link, the file it points to
            return False
        except OSError:
            pass  # another disk, a disk without hard links, a file of another user
    shutil.copyfile(source, target)
    return True


if __name__ == "__main__":
    sys.exit(main())
