"""The letters in pictures: Pillow's own font, or a Chinese one of the system's where needed."""

from functools import lru_cache

from PIL import ImageFont

# Fonts with Chinese letters, as Linux, macOS and Windows call the files; which face of a collection
# has the simplified forms.
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
    """Pillow's own font, or the system's Chinese one where ``text`` needs it and there is one."""
    found = None if _is_latin(text) else _cjk_font(size)
    return found or _own_font(size)


def drawable(name: str, index: int) -> str:
    """The name, or its place where no font can write it; to be drawn with ``font(size, name)``."""
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
        try:  # Pillow looks through the system's folders of fonts
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
    """Text of which every letter can be written."""
    text = text.replace("\u2192", "->")
    return "".join(c if c.isprintable() and _can_write(c) else "?" for c in text)


def fit_to_pixels(text: str, size: int, width: float) -> str:
    """Text no wider than ``width`` pixels in a font of this size."""
    face = font(size, text)
    if face.getlength(text) <= width:
        return text
    text = text[: int(width)]  # no letter is narrower than a pixel
    while text and face.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
