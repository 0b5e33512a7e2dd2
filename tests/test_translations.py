"""Each Chinese page says what the English one says: headings, code, tables, links and numbers."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from trainer.config.schema_page import anchor, in_chinese

PAIRS = [
    (path, path.with_name(f"{path.stem}.zh.md"))
    for path in sorted(Path("docs").glob("*.md"))
    if path.with_name(f"{path.stem}.zh.md").exists()
]
WRITTEN = [pair for pair in PAIRS if pair[0].name != "yaml.md"]  # that one is generated
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
each_pair = pytest.mark.parametrize("pair", WRITTEN, ids=lambda pair: pair[0].stem)


def texts(pair: tuple[Path, Path]) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in pair]


def headings(text: str) -> list[str]:
    return re.findall("^#+ .*$", FENCED.sub("", text), re.MULTILINE)


def sections(text: str) -> list[str]:
    """The text below each heading, without blocks of code."""
    return re.split("^#+ .*$", FENCED.sub("", text), flags=re.MULTILINE)


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each row of each table."""
    return [
        [re.split(r"(?<!\\)\|", row)[1:-1] for row in table.splitlines()]
        for table in re.findall(r"(?:^\|.*\n?)+", FENCED.sub("", text), re.MULTILINE)
    ]


def english_links(text: str, folder: Path) -> list[str]:
    """The links of a Chinese page in ``folder``, as ``](LINK)`` of the English page."""
    found = []
    for to in LINK.findall(FENCED.sub("", text)):
        file, _, heading = to.partition("#")
        page = Path(os.path.normpath(folder / file))
        english = file.replace(".zh.md", ".md").replace("README.zh-CN.md", "README.md")
        if heading and english != file:
            both = [page, page.with_name(Path(english).name)]
            own, theirs = (headings(one.read_text(encoding="utf-8")) for one in both)
            place = [anchor(one.lstrip("# ")) for one in own].index(heading)
            heading = anchor(theirs[place].lstrip("# "))
        found.append(f"]({english}{'#' * bool(heading)}{heading})")
    return found


def code(text: str) -> Counter[str]:
    """What stands between backquotes, on one line."""
    return Counter(" ".join(one.split()) for one in re.findall("`[^`]+`", text))


def numbers(text: str) -> Counter[str]:
    """The numbers of a text outside links and code."""
    text = re.sub("`[^`]+`", " ", re.sub(r"\]\([^)]*\)", "]", text))
    return Counter(re.findall(r"(?<![A-Za-z_])\d+(?:[.,:/-]\d+)*", text))


def test_most_pages_are_translated_and_none_is_left_over():
    assert len(PAIRS) >= 12
    for chinese in Path("docs").glob("*.zh.md"):
        assert chinese.with_name(chinese.name.replace(".zh.md", ".md")).exists()


@each_pair
def test_a_translation_has_the_same_headings_and_the_same_blocks_of_code(pair):
    english, chinese = texts(pair)
    levels = [[one.split(" ")[0] for one in headings(text)] for text in (english, chinese)]
    assert levels[0] == levels[1]
    assert FENCED.findall(english) == FENCED.findall(chinese)


@each_pair
def test_a_translation_has_the_same_tables_with_the_same_names_and_numbers_in_each_row(pair):
    english, chinese = (tables(text) for text in texts(pair))
    shapes = [[[len(row) for row in table] for table in page] for page in (english, chinese)]
    assert shapes[0] == shapes[1]
    for ours, theirs in zip(sum(english, []), sum(chinese, []), strict=True):
        rows = [" | ".join(row) for row in (ours, theirs)]
        assert code(rows[0]) == code(rows[1])
        assert numbers(rows[0]) - numbers(rows[1]) == Counter(), rows[0]


@each_pair
def test_a_translation_has_the_same_links(pair):
    english, chinese = texts(pair)
    own = LINK.findall(FENCED.sub("", english))
    ours = Counter(f"]({to})" for to in own if not to.startswith("#"))
    theirs = Counter(to for to in english_links(chinese, Path("docs")) if "](#" not in to)
    assert ours == theirs
    for text in (english, chinese):  # those within the page: as many, to headings that are there
        anchors = [anchor(one.lstrip("# ")) for one in headings(text)]
        assert {to[1:] for to in LINK.findall(text) if to.startswith("#")} <= set(anchors)
    within = [
        [anchors.index(to[1:]) for to in LINK.findall(text) if to.startswith("#")]
        for text in (english, chinese)
        for anchors in [[anchor(one.lstrip("# ")) for one in headings(text)]]
    ]
    assert Counter(within[0]) == Counter(within[1])


@each_pair
def test_a_section_of_a_translation_has_the_same_names_and_no_number_less(pair):
    english, chinese = (sections(text) for text in texts(pair))
    for number, (ours, theirs) in enumerate(zip(english, chinese, strict=True)):
        place = f"{pair[1]}, section {number}"
        assert code(ours) == code(theirs), place
        assert numbers(ours) - numbers(theirs) == Counter(), place


def test_the_chinese_page_of_the_yaml_has_the_words_of_the_english_one_and_their_numbers():
    english, chinese = (Path("docs", name).read_text("utf-8") for name in ("yaml.md", "yaml.zh.md"))
    words = json.loads(Path("docs/yaml.zh.json").read_text(encoding="utf-8"))
    assert in_chinese(english, words) == chinese
    cells = {cell for row in english.splitlines() for cell in re.split(r"(?<!\\) \| ", row[2:-2])}
    assert [text for text in words if text not in cells | set(english.splitlines())] == []
    for text, translated in words.items():
        assert numbers(text) - numbers(translated) == Counter(), text
        assert code(text) == code(translated), text
    rows = [row for row in chinese.splitlines() if row.startswith("| `")]
    left = [row for row in rows if not re.search("[一-鿿]", row)]
    assert len(left) <= 0.1 * len(rows)
