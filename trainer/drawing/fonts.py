"""Finds fonts for pictures: Pillow's own, or one of the system if a text needs it."""

from collections.abc import Sequence
from functools import lru_cache
from unicodedata import bidirectional, category, normalize

from PIL import ImageFont

# Font files with letters of many languages on Linux, macOS and Windows.
WIDE_FONTS = (
    ("DejaVuSans.ttf", 0),
    ("LiberationSans-Regular.ttf", 0),
    ("NotoSans-Regular.ttf", 0),
    ("Arial.ttf", 0),
    ("arial.ttf", 0),
)
# Font files with Chinese letters, and the index of the face with simplified forms.
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
    ("malgun.ttf", 0),
)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
FontPlace = tuple[str, int] | None  # a font's file and face; None: Pillow's own


def font(size: int, text: str = "") -> Font:
    """Return Pillow's own font, or the system's first one that has the most letters of ``text``."""
    return _font_at(_place(text), size)


def drawable(name: str, index: int) -> str:
    """Return ``name``, or "#index" if no font can write it. Draw it with ``font(size, name)``."""
    name = normalize("NFC", name)
    return name if _can_write(_place(name), name) else f"#{index}"


def drawables(names: Sequence[str]) -> list[str]:
    """Return the classes' names as pictures have them: "#index" for one that no font can write."""
    return [drawable(name, index) for index, name in enumerate(names)]


def note_on_names(names: Sequence[str]) -> str:
    """Return a note on classes whose names pictures cannot show, with their numbers, or ""."""
    drawn = enumerate(zip(names, drawables(names), strict=True))
    lost = [(name, shown) for i, (name, shown) in drawn if shown == f"#{i}" != name]
    no_letters = [one for one in lost if not one[0].isprintable()]
    no_font = [one for one in lost if one[0].isprintable()]
    notes = []
    if no_letters:
        notes.append(
            f"{len(no_letters):,} of {len(names):,} class names hold control characters, or others "
            f"that are no letters; pictures have their numbers: {_listed(no_letters)}. Rename the "
            "classes to see their names"
        )
    if no_font:
        notes.append(
            f"no font here can write {len(no_font):,} of {len(names):,} class names; pictures have "
            f"their numbers: {_listed(no_font)}. Install a font with their letters (Debian: "
            "fonts-noto-cjk for Chinese, Japanese and Korean, fonts-dejavu for accents; letters "
            "that are written from right to left or join others have none)"
        )
    return ". ".join(notes)


def _listed(lost: Sequence[tuple[str, str]]) -> str:
    more = f" and {len(lost) - 20:,} more" if len(lost) > 20 else ""
    return ", ".join(f"{shown} is {name!r}" for name, shown in lost[:20]) + more


@lru_cache
def _font_at(place: FontPlace, size: int) -> Font:
    if place is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(place[0], size, place[1], layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4096)
def _place(text: str) -> FontPlace:
    """The first font that has the most letters of a text; others are sought only if needed."""
    if _can_write(None, text):
        return None
    places: list[FontPlace] = [None, *_system_fonts()]
    return max(places, key=lambda place: sum(_can_write(place, letter) for letter in text))


@lru_cache
def _system_fonts() -> list[tuple[str, int]]:
    found = []
    for name, face in (*WIDE_FONTS, *CJK_FONTS):
        try:  # Pillow searches the system's font folders
            found.append((str(ImageFont.truetype(name, 16, face).path), face))
        except OSError:
            continue
    return found


def _can_write(place: FontPlace, text: str) -> bool:
    return text.isprintable() and all(_has(place, letter) for letter in text)


@lru_cache(maxsize=4096)
def _has(place: FontPlace, letter: str) -> bool:
    """Whether a font has a letter, and the letter stands by itself, from left to right."""
    if letter.isascii() or not letter.isprintable():
        return letter.isprintable()
    if bidirectional(letter) in ("R", "AL") or category(letter).startswith("M"):
        return False
    drawn, box = (_font_at(place, 16).getmask(one) for one in (letter, "\uffff"))
    return (drawn.size, bytes(drawn)) != (box.size, bytes(box))  # the box of a missing letter


def legible(text: str) -> str:
    """Return text with "?" in place of letters that its font cannot write."""
    text = normalize("NFC", text).replace("\u2192", "->")
    place = _place(text)
    return "".join(c if _has(place, c) else "?" for c in text)


def names_in_lines(names: Sequence[str], size: int, width: float, lines: int = 4) -> list[str]:
    """Names with ", " between them on at most ``lines`` lines of ``width`` pixels.

    A name that is too wide is shortened. "+2" at the end counts the names without room.
    """
    made: list[str] = []
    first = 0
    while first < len(names) and len(made) < lines:
        is_last, after, fitted = len(made) + 1 == lines, first, ""
        while after < len(names):
            after += 1
            more = f", +{len(names) - after}" * (is_last and after < len(names))
            text = ", ".join(names[first:after])
            if fitted and font(size, text).getlength(text + more) > width:
                after -= 1
                break
            fitted = fit_to_pixels(text + more, size, width, end=len(more))
        made.append(fitted)
        first = after
    return made


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
