"""The site is built without a warning, holds together, and asks no other place for anything."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("material", reason='needs pip install -e ".[docs]"')
pytest.importorskip("mkdocs_static_i18n", reason='needs pip install -e ".[docs]"')

ENGLISH = [path for path in sorted(Path("docs").glob("*.md")) if not path.name.endswith(".zh.md")]
RESULT = ".md-search-result__link"
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# What a browser loads by itself, of each tag; a link is followed only by a person.
LOADED = {
    "audio": "src", "embed": "src", "iframe": "src", "img": "src", "link": "href",
    "object": "data", "script": "src", "source": "src", "video": "src",
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as mkdocs.yml says."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # a call for attention, not about the pages
    built = subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=120)
    told = built.stdout + built.stderr
    assert built.returncode == 0, told
    assert "WARNING" not in told and "ERROR" not in told
    return folder


class Page(HTMLParser):
    """What a page of HTML links to, what it loads, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.links, self.loaded = path, list[str](), list[str]()
        self.anchors, self.text, self.language = {""}, list[str](), ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "html":
            self.language = given["lang"]
        if tag == "a" and given.get("href") is not None:
            self.links.append(given["href"])
        if given.get(LOADED.get(tag, "")):
            self.loaded.append(given[LOADED[tag]])

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_there_in_both_languages(site, pages):
    names = {path.stem for path in ENGLISH} | {"index", "tour", "contributing", "security"}
    for name in names:
        english, chinese = pages[site / f"{name}.html"], pages[site / "zh" / f"{name}.html"]
        assert (english.language, chinese.language) == ("en", "zh")
        assert f"zh/{name}.html" in english.links and f"../{name}.html" in chinese.links
        translated = name == "index" or Path(f"docs/{name}.zh.md").exists()
        assert translated != any("本页尚无中文版" in text for text in chinese.text)
    for path in site.rglob("*.html"):
        if path.parent == site and path.name != "404.html":
            assert (site / "zh" / path.name).exists()


def test_every_page_of_the_docs_is_in_the_navigation(site, pages):
    for start in ("index.html", "zh/index.html"):
        linked = {link.partition("#")[0] for link in pages[site / start].links}
        assert {f"{path.stem}.html" for path in ENGLISH} <= linked


def test_every_link_and_every_file_that_a_page_loads_is_there(site, pages):
    faults = []
    for path, page in pages.items():
        for target in [*page.links, *page.loaded]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            base = site if parts.path.startswith("/") else path.parent  # 404.html, of any folder
            there = Path(os.path.normpath(base / unquote(parts.path).lstrip("/")))
            there = path if not parts.path else there
            there = there / "index.html" if there.is_dir() else there
            if not there.is_file():
                faults.append(f"{path.relative_to(site)}: {target}")
            elif there in pages and unquote(parts.fragment) not in pages[there].anchors:
                faults.append(f"{path.relative_to(site)}: {target}, no such heading")
    assert faults == []


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        assert [url for url in page.loaded if re.match(r"(\w+:)?//", url)] == [], path
        assert "mermaid" not in path.read_text(encoding="utf-8")  # a diagram's script is elsewhere
    for style in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*[\"']?((?:\w+:)?//[^)\"']+)", style.read_text())
        assert found == [], style


def test_each_language_has_an_index_of_its_own_for_the_search(site):
    english, chinese = (
        json.loads((site / place / "search" / "search_index.json").read_text(encoding="utf-8"))
        for place in ("", "zh")
    )
    for index, place in ((english, site), (chinese, site / "zh")):
        assert len(index["docs"]) > 100
        for entry in index["docs"]:
            assert (place / entry["location"].partition("#")[0]).is_file()
            assert not entry["location"].startswith(("decisions", "changelog"))
    texts = [" ".join(entry["text"] for entry in index["docs"]) for index in (english, chinese)]
    assert "learning rate" in texts[0] and "学\u200b习\u200b率" in texts[1]
    assert "学" not in texts[0]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *told):
        pass


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize(
    ("start", "words", "found"),
    [("index.html", "layer_decay", "quality.html"), ("zh/index.html", "学习率", "zh/")],
)
def test_a_reader_finds_words_in_each_language_and_asks_no_other_server(site, start, words, found):
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright to look")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    asked, failed = list[str](), list[str]()
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox"], timeout=60_000
            )
            page = browser.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.on("response", lambda answer: failed.extend([answer.url] * (answer.status >= 400)))
            page.goto(address + start)
            page.click("input.md-search__input")
            page.wait_for_selector(".md-search__input:focus")
            for attempt in range(20):  # the index is read meanwhile
                page.fill("input.md-search__input", words)
                page.keyboard.press("End")
                page.wait_for_timeout(250 + 50 * attempt)
                if page.query_selector(RESULT):
                    break
            links = [a.get_attribute("href") for a in page.query_selector_all(RESULT)]
            browser.close()
    finally:
        server.shutdown()
        server.server_close()
    assert links[0].startswith(address + found)
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    assert failed == []


def test_a_translation_written_with_english_links_is_led_to_chinese_pages(tmp_path):
    from scripts import pages

    docs = tmp_path / "docs"
    docs.mkdir()
    for name, heading in (("a.md", "Other things"), ("a.zh.md", "其他 内容")):
        (docs / name).write_text(f"# A\n\n## {heading}\n", encoding="utf-8")
    page = docs / "b.zh.md"
    (docs / "b.md").write_text("# B\n", encoding="utf-8")
    kept = "[c](c.md) [w](https://x.org/a.md)\n```\n[a](a.md)\n```\n"
    page.write_text(f"# 乙\n[a](a.md#other-things) [b](b.md) {kept}", encoding="utf-8")
    for _ in range(2):
        assert pages.main([str(page)]) == 0
        led = "[a](a.zh.md#其他-内容) [b](b.zh.md)"
        assert page.read_text(encoding="utf-8") == f"# 乙\n{led} {kept}"
