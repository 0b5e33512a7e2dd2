"""HEIC and other HEIF photographs, as phones make them, by pillow-heif (extra ``heif``)."""

import hashlib
import io
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datasets.images import MAX_PIXELS, Remark

HEIF_SUFFIXES = (".heic", ".heif", ".hif")
EXTRA = 'pip install -e ".[heif]"'


def has_heif() -> bool:
    """Whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def is_heif(content: bytes, path: str) -> bool:
    """Whether name and content tell of a HEIF file; with AVIF's content it is Pillow's."""
    named = path.lower().endswith(HEIF_SUFFIXES)
    return named and content[4:8] == b"ftyp" and content[8:12] not in (b"avif", b"avis")


def read_heif(content: bytes) -> tuple[npt.NDArray[np.uint8], Remark]:
    """The first image, upright: (H, W, C) uint8, where C is 3, or 4 with alpha.

    Of 10 or 12 bits the high ones are kept. Raises ValueError without the extra and for more than
    ``MAX_PIXELS``, and other types for a damaged file.
    """
    if not has_heif():
        raise ValueError(f"a HEIF file; to read it: {EXTRA}")
    import pillow_heif

    file = pillow_heif.open_heif(io.BytesIO(content))  # it decodes nothing yet
    if file.size[0] * file.size[1] > MAX_PIXELS:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels")
    remark = Remark.READ | (Remark.FIRST if len(file) > 1 else Remark(0))
    if file.info.get("bit_depth", 8) > 8:
        remark |= Remark.HIGH_BYTE
    picture = file.to_pillow()
    return np.array(picture.convert("RGBA" if file.has_alpha else "RGB")), remark


def recipe_of_heif(ids: Iterable[str], user: str) -> str:
    """What decides the pixels of HEIF files, if there are any that can be read; else "".

    user: the file whose code works on what ``read_heif`` returns.
    """
    if not has_heif() or not any(name.lower().endswith(HEIF_SUFFIXES) for name in ids):
        return ""
    import pillow_heif

    both = b"".join(Path(name).read_bytes() for name in (__file__, user))
    code = hashlib.sha256(both).hexdigest()
    decoder = pillow_heif.libheif_info()["libheif"]
    return f", pillow-heif {version('pillow-heif')} (libheif {decoder}), code {code}"
