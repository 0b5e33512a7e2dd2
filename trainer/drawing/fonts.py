"""Finds fonts for pictures: Pillow's own, or a Chinese font of the system if a text needs it."""

from functools import lru_cache

from PIL import ImageFont

# Font files with Chinese letters on Linux, macOS and Windows, and the index of the face with
# simplified forms.
CJK_FONTS = (
    ("NotoSansCJK-Regular.ttc", 2),
    ("NotoSansCJKsc-Regular.otf", 0),
    ("NotoSansSC-Regular.otf", 0),
    ("SourceHanSansSC-Regular.otf", 0),
    ("SourceHanSansCN-Regular.otf", 0),
    ("SourceHanSans.ttc", 2),
    ("wqy-microhei.ttc", 0),
    ("wqy-zenhei.ttc", 0),
    ("PingFang.ttc", 0),
    ("STHeiti Light.ttc", 0),
    ("msyh.ttc", 0),
    ("simhei.ttf", 0),
)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font(size: int, text: str = "") -> Font:
    """Return Pillow's own font, or the system's Chinese one if ``text`` needs it and it exists."""
    found = None if _is_latin(text) else _cjk_font(size)
    return found or _own_font(size)


def drawable(name: str, index: int) -> str:
    """Return ``name``, or "#index" if no font can write it. Draw it with ``font(size, name)``."""
    return name if name.isprintable() and all(map(_can_write, name)) else f"#{index}"


@lru_cache
def _own_font(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache
def _cjk_font(size: int) -> Font | None:
    if not (place := _cjk_file()):
        return None
    return ImageFont.truetype(place[0], size, place[1], layout_engine=ImageFont.Layout.BASIC)


@lru_cache
def _cjk_file() -> tuple[str, int] | None:
    for name, face in CJK_FONTS:
        try:  # Pillow searches the system's font folders
            return str(ImageFont.truetype(name, 16, face).path), face
        except OSError:
            continue
    return None


@lru_cache(maxsize=4096)
def _can_write(letter: str) -> bool:
    if _is_latin(letter):
        return True
    if not (chinese := _cjk_font(16)):
        return False
    return bytes(chinese.getmask(letter)) != bytes(chinese.getmask("\uffff"))  # the empty box


def _is_latin(text: str) -> bool:
    return max(map(ord, text), default=0) < 256


def legible(text: str) -> str:
    """Return text with "?" in place of letters that no font can write."""
    text = text.replace("\u2192", "->")
    return "".join(c if c.isprintable() and _can_write(c) else "?" for c in text)


def fit_to_pixels(text: str, size: int, width: float, end: int = 0) -> str:
    """Return text; if wider than ``width`` pixels, "..." stands before its last ``end`` letters."""
    face = font(size, text)
    if face.getlength(text) <= width:
        return text
    text, tail = text[: len(text) - end], text[len(text) - end :] if end else ""
    text = text[: int(width)]  # no letter is narrower than a pixel
    while text and face.getlength(f"{text}...{tail}") > width:
        text = text[:-1]
    return f"{text}...{tail}"
