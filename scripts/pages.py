"""The pages of the site: docs/ and the READMEs, with links that hold there. mkdocs.yml names it.

    python -m mkdocs build --strict     write site/
    python -m mkdocs serve              show it at http://127.0.0.1:8000, and follow changes
    python -m scripts.pages PAGE...     let a translation's links lead to Chinese pages and headings

mkdocs reads one folder of Markdown, whose links may not leave it. So the pages are copied to such a
folder. The README is its index. A link to code, which the site does not hold, becomes plain text.
A page that has no translation stands among the Chinese pages in English, and says so.
"""

import argparse
import atexit
import base64
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority

from trainer.config.schema_page import anchor

ROOT = Path(__file__).parent.parent
# Pages of the checkout outside docs/, and their names in the site.
OUTSIDE = {
    "README.md": "index.md",
    "README.zh-CN.md": "index.zh.md",
    "CONTRIBUTING.md": "contributing.md",
    "DECISIONS.md": "decisions.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
PAST = ("DECISIONS.md", "CHANGELOG.md")  # the search answers how things are now
SHOWN = (".png", ".svg", ".yaml")  # files that the site takes along if a page links to them
UNTRANSLATED = "*本页尚无中文版，以下是英文原文。*"
LINK = re.compile(r"(!?)\[([^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
BETWEEN_CHARACTERS = re.compile(r"(?<=[一-鿿])(?=[\w一-鿿])|(?<=\w)(?=[一-鿿])")


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite Chinese pages, whose links may still be those of the English ones; 0."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.pages",
        description="Let links of Chinese pages (docs/NAME.zh.md, README.zh-CN.md) lead to Chinese "
        "pages and their headings. Where there is no translation they stay.",
    )
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    for path in parser.parse_args(argv).pages:
        english = path.name.replace(".zh.md", ".md").replace(".zh-CN.md", ".md")
        text = in_chinese(path.read_text(encoding="utf-8"), path.resolve().with_name(english))
        if path.name.startswith("README"):  # the switch of languages leads to the other one
            text = text.replace(f"]({path.name})", f"]({english})")
        _write(path, text)
    return 0


def on_config(config: Any) -> Any:
    """mkdocs calls this before it reads the pages, once for each language."""
    config.docs_dir = str(place())
    stage(place())
    return config


@cache
def place() -> Path:
    """The folder that mkdocs reads, which goes when the program ends."""
    folder = Path(tempfile.mkdtemp(prefix="pages-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def on_post_page(output: str, page: Any, config: Any) -> str:
    """mkdocs calls this with the HTML of each page: a Chinese one searches the Chinese pages."""
    return output.replace('"base": ".."', '"base": "."') if page.url.startswith("zh/") else output


@event_priority(-200)  # after the index of both languages is written
def on_post_build(config: Any) -> None:
    """mkdocs calls this at the end: the index of the search becomes one for each language."""
    folder = Path(config.site_dir)
    index = json.loads((folder / "search" / "search_index.json").read_text(encoding="utf-8"))
    english, chinese = list[dict[str, str]](), list[dict[str, str]]()
    for entry in index["docs"]:
        own = entry["location"].removeprefix("zh/")
        (english if own == entry["location"] else chinese).append({**entry, "location": own})
    for entry in chinese:  # Chinese has no spaces: each of its characters becomes a word
        for field in ("title", "text"):
            entry[field] = BETWEEN_CHARACTERS.sub("\u200b", entry[field])
    for place, docs in ((folder, english), (folder / "zh", chinese)):
        (place / "search").mkdir(parents=True, exist_ok=True)
        text = json.dumps({**index, "docs": docs}, ensure_ascii=False)
        (place / "search" / "search_index.json").write_text(text, encoding="utf-8")
    shutil.copy2(folder / "sitemap.xml", folder / "zh")  # the switch of languages asks for it


def stage(folder: Path) -> None:
    """Write all pages, and the files that they link to, into an empty or an older such folder."""
    pages = {ROOT / name: new for name, new in OUTSIDE.items()}
    pages |= {path: path.name for path in sorted((ROOT / "docs").glob("*.md"))}
    pages[ROOT / "docs" / "tour.ipynb"] = "tour.md"
    shutil.copy2(ROOT / "docs" / "site.css", folder)
    for path, name in pages.items():
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = "\n\n".join(_cells(json.loads(text), folder))
        elif path.name.startswith("README"):  # the site has a switch of languages
            text = re.sub(r"^.*\]\(README[^)]*\.md\).*\n\n", "", text, count=1, flags=re.MULTILINE)
        head = "---\nsearch: {exclude: true}\n---\n" if path.name in PAST else ""
        _write(folder / name, head + _with_links_of_the_site(text, path, pages, folder))
        if not name.endswith(".zh.md") and translation(path) == path:
            title, _, rest = text.partition("\n")
            text = "\n".join([title, "", UNTRANSLATED, in_chinese(rest, path)])
            text = _with_links_of_the_site(text, path, pages, folder)
            _write(folder / name.replace(".md", ".zh.md"), head + text)


def translation(path: Path) -> Path:
    """The Chinese page of an English page; the page itself if there is none."""
    own = path.with_name("README.zh-CN.md" if path.name == "README.md" else f"{path.stem}.zh.md")
    return own if own.exists() else path


def in_chinese(text: str, path: Path) -> str:
    """The text of an English page ``path`` whose links lead to Chinese pages and their headings."""

    def changed(link: re.Match[str]) -> str:
        file, _, heading = link[3].partition("#")
        to = Path(os.path.normpath(path.parent / file)) if file else path
        if re.match("[a-z]+:", file) or translation(to) == to:
            return link[0]
        own = translation(to)
        file = f"{file.rpartition('/')[0]}/{own.name}".lstrip("/") if file else ""
        if heading:
            ours, theirs = anchors(to), anchors(own)
            if len(ours) != len(theirs):
                raise PluginError(
                    f"{own} has {len(theirs)} headings, {to} has {len(ours)}: they must be the same"
                )
            heading = "#" + theirs[ours.index(heading)] if heading in ours else f"#{heading}"
        return f"{link[1]}[{link[2]}]({file}{heading})"

    return _outside_code(changed, text)


def anchors(path: Path) -> list[str]:
    """The anchors of a page's headings, in their order."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    return [anchor(heading) for heading in re.findall("^#+ (.*)$", text, re.MULTILINE)]


def _with_links_of_the_site(text: str, path: Path, pages: dict[Path, str], folder: Path) -> str:
    """A page's text whose links lead to pages and files of the site, or are plain text."""

    def changed(link: re.Match[str]) -> str:
        file, _, heading = link[3].partition("#")
        if not file or re.match("[a-z]+:", file) or file.startswith("tour-"):
            return link[0]
        to = Path(os.path.normpath(path.parent / file))
        if to in pages:
            new = re.sub(r"\.zh\.md$", ".md", pages[to])  # each language has its own of a name
        elif to.suffix in SHOWN:
            new = to.relative_to(ROOT).as_posix()
            (folder / new).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(to, folder / new)
        else:
            return link[2]
        return f"{link[1]}[{link[2]}]({new}{'#' * bool(heading)}{heading})"

    return _outside_code(changed, text)


def _outside_code(changed: Any, text: str) -> str:
    """The text with ``changed(link)`` in place of each link that is not in a block of code."""
    parts, end = list[str](), 0
    for block in FENCED.finditer(text):
        parts += [LINK.sub(changed, text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(changed, text[end:])])


def _cells(notebook: Any, folder: Path) -> Iterator[str]:
    """The cells of a notebook with what they printed, as Markdown; pictures become files."""
    pictures = 0
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                pictures += 1
                name = f"tour-{pictures}.png"
                (folder / name).write_bytes(base64.b64decode("".join(data["image/png"])))
                yield f"![what the cell above shows]({name})"
            else:
                text = "".join(output.get("text") or data["text/plain"])
                yield f"```text\n{text.rstrip()}\n```"


def _write(path: Path, text: str) -> None:
    """Write a file, unless it holds the text already: ``mkdocs serve`` follows its time."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
