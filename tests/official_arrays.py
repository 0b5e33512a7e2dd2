"""Small files in the form of torchvision's sets of arrays, with their checksums as official."""

import bz2
import csv
import gzip
import hashlib
import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import torchvision
from PIL import Image

OF = torchvision.datasets


def noise(*shape: int) -> np.ndarray:
    """Pixels (uint8) that are the same each time, and other ones for another shape."""
    seed = int(hashlib.sha256(repr(shape).encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def picture(path: Path, mode: str = "RGB") -> None:
    """An image file of some pixels that its path decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(ord(c) * (i + 1) for i, c in enumerate(f"{path.parent.name}/{path.name}"))
    pixels = noise(9 + seed % 5, 8, 3, 1 + seed % 97)[..., 0]
    Image.fromarray(pixels).convert(mode).save(path)


def write(path: Path, content: bytes | str) -> str:
    """Write a file; its MD5."""
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx(values: np.ndarray) -> bytes:
    """An IDX file of bytes, or of 32-bit integers."""
    kind = 8 if values.dtype == np.uint8 else 12
    head = struct.pack(f">{1 + values.ndim}i", kind << 8 | values.ndim, *values.shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def mat(**values: Any) -> bytes:
    """A .mat file."""
    out = io.BytesIO()
    scipy.io.savemat(out, values)
    return out.getvalue()


def digits(count: int, classes: int = 10) -> np.ndarray:
    """Labels in which each class occurs, not in order."""
    return ((np.arange(count) * 7 + 3) % classes).astype(np.uint8)


def mnist(name: str) -> Callable[[Path, Any], None]:
    """MNIST and its kinds: raw IDX files."""

    def make(root: Path, patch: Any) -> None:
        for part, count in (("train", 30), ("t10k", 20)):
            raw = root / name / "raw"
            write(raw / f"{part}-images-idx3-ubyte", idx(noise(count, 28, 28)))
            write(raw / f"{part}-labels-idx1-ubyte", idx(digits(count)))

    return make


def make_gz(root: Path, patch: Any) -> None:
    """MNIST as it is downloaded: four .gz files."""
    md5s = {}
    for part, count in (("train", 30), ("t10k", 20)):
        for kind, values in (("images-idx3", noise(count, 28, 28)), ("labels-idx1", digits(count))):
            name = f"{part}-{kind}-ubyte.gz"
            md5s[name] = write(root / "MNIST/raw" / name, gzip.compress(idx(values)))
    patch.setattr(OF.MNIST, "resources", [(name, md5s[name]) for name, _ in OF.MNIST.resources])


def emnist(root: Path, patch: Any) -> None:
    """EMNIST's letters, whose labels begin at 1."""
    for part, count in (("train", 60), ("test", 30)):
        start = root / "EMNIST/raw" / f"emnist-letters-{part}"
        write(Path(f"{start}-images-idx3-ubyte"), idx(noise(count, 28, 28)))
        write(Path(f"{start}-labels-idx1-ubyte"), idx(digits(count, 26) + 1))


def qmnist(root: Path, patch: Any) -> None:
    """QMNIST, with eight numbers for each image."""
    for part, count in (("train", 30), ("test", 20)):
        labels = np.zeros((count, 8), np.int32)
        labels[:, 0], labels[:, 1:] = digits(count), 70_000
        write(root / f"QMNIST/raw/qmnist-{part}-images-idx3-ubyte", idx(noise(count, 28, 28)))
        write(root / f"QMNIST/raw/qmnist-{part}-labels-idx2-int", idx(labels))


def cifar(name: str, classes: int, key: str, each: int) -> Callable[[Path, Any], None]:
    """CIFAR's pickles."""

    def make(root: Path, patch: Any) -> None:
        kind = getattr(OF, name)
        lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
        for which, listed in lists.items():
            for number, (file, _) in enumerate(getattr(kind, which)):
                labels = digits(each + number, classes).tolist()
                batch = {"data": noise(each + number, 3072), key: labels}
                content = pickle.dumps(batch, protocol=2)
                listed.append([file, write(root / kind.base_folder / file, content)])
            patch.setattr(kind, which, listed)
        meta = {kind.meta["key"]: [f"class {k}" for k in range(classes)]}
        md5 = write(root / kind.base_folder / kind.meta["filename"], pickle.dumps(meta, protocol=2))
        patch.setattr(kind, "meta", {**kind.meta, "md5": md5})

    return make


def svhn(root: Path, patch: Any) -> None:
    """SVHN, of which 10 is the digit 0."""
    official = {}
    for part, count in (("train", 20), ("extra", 14), ("test", 12)):
        content = mat(X=noise(32, 32, 3, count), y=digits(count)[:, None] + 1)
        url, file, _ = OF.SVHN.split_list[part]
        official[part] = [url, file, write(root / file, content)]
    patch.setattr(OF.SVHN, "split_list", official)


def stl10(root: Path, patch: Any) -> None:
    """STL10, with two official sets of training images."""
    folder = root / "stl10_binary"
    contents = {"train_y.bin": digits(20) + 1, "test_y.bin": digits(12) + 1}
    contents |= {"train_X.bin": noise(20, 3, 96, 96), "test_X.bin": noise(12, 3, 96, 96)}
    contents["unlabeled_X.bin"] = noise(1, 3, 96, 96)
    md5s = {name: write(folder / name, values.tobytes()) for name, values in contents.items()}
    for which in ("train_list", "test_list"):
        patch.setattr(OF.STL10, which, [[n, md5s[n]] for n, _ in getattr(OF.STL10, which)])
    write(folder / "class_names.txt", "\n".join(f"thing {k}" for k in range(10)))
    write(folder / "fold_indices.txt", "0 1 2 3 4 5 6 7 8 9 10 11\n3 1 5 7 9 11 13 15 17 19 2 4\n")


def usps(root: Path, patch: Any) -> None:
    """USPS: text, packed."""
    official = {}
    for part, count in (("train", 20), ("test", 12)):
        url, file, _ = OF.USPS.split_list[part]
        rows = [
            " ".join([str(label + 1), *(f"{k}:{v / 127.5 - 1:.4f}" for k, v in enumerate(row, 1))])
            for label, row in zip(digits(count), noise(count, 256), strict=True)
        ]
        content = bz2.compress("\n".join(rows).encode())
        official[part] = [url, file, write(root / file, content)]
    patch.setattr(OF.USPS, "split_list", official)


def semeion(root: Path, patch: Any) -> None:
    """SEMEION: text."""
    rows = np.hstack([noise(20, 256) % 2, np.eye(10, dtype=np.uint8)[digits(20)]])
    text = "\n".join(" ".join(f"{value:.4f}" for value in row) for row in rows)
    patch.setattr(OF.SEMEION, "md5_checksum", write(root / "semeion.data", text))


def fer2013(root: Path, patch: Any) -> None:
    """FER2013's first file."""
    out = io.StringIO(newline="")
    rows = csv.writer(out)
    rows.writerow(["emotion", "pixels", "Usage"])
    for number, row in enumerate(noise(21, 48 * 48)):
        usage = ("Training", "PublicTest", "PrivateTest")[number // 7]
        rows.writerow([number * 3 % 7, " ".join(map(str, row)), usage])
    md5 = write(root / "fer2013/fer2013.csv", out.getvalue())
    patch.setattr(OF.FER2013, "_RESOURCES", {**OF.FER2013._RESOURCES, "fer": ("fer2013.csv", md5)})


def faces_by_kaggle(root: Path, patch: Any) -> None:
    """The same faces in the other file, whose columns have another order and spaces."""
    lines = ["emotion, Usage, pixels"]
    for number, row in enumerate(noise(21, 48 * 48)):
        usage = ("Training", "PublicTest", "PrivateTest")[number // 7]
        lines.append(f"{number * 3 % 7},{usage},{' '.join(map(str, row))}")
    name = "icml_face_data.csv"
    md5 = write(root / "fer2013" / name, "\n".join(lines))
    patch.setattr(OF.FER2013, "_RESOURCES", {**OF.FER2013._RESOURCES, "icml": (name, md5)})


def pcam(root: Path, patch: Any) -> None:
    """PCAM: six HDF5 files."""
    (root / "pcam").mkdir()
    for part, count in (("train", 6), ("valid", 4), ("test", 5)):
        for axis, values in (
            ("x", noise(count, 96, 96, 3)),
            ("y", (digits(count) % 2)[:, None, None, None]),
        ):
            name = root / f"pcam/camelyonpatch_level_2_split_{part}_{axis}.h5"
            with h5py.File(name, "w") as file:
                file.create_dataset(axis, data=values)
