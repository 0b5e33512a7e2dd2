"""Each of TensorBoard's dashboards, and the report, in a real browser, of a run on bank notes."""

import io
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from trainer.drawing.page import SHARED

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright to look")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPHS = (ROOT.parent / "shared" / "data" / "rmb", ROOT / "data" / "rmb")

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs a browser: apt-get install chromium")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of LeNet on the photographs of notes, or on drawn ones where there are none."""
    from datasets.draw import draw
    from trainer.build.prepare import prepare
    from trainer.config import load_config
    from trainer.loop.fit import fit
    from trainer.process.stop import StopRequest

    folder = tmp_path_factory.mktemp("browser")
    root = next((path for path in PHOTOGRAPHS if path.is_dir()), folder / "rmb")
    if not root.is_dir():
        draw(root, per_class=60)
    config = load_config(ROOT / "configs" / "lenet_rmb.yaml", [f"dataset.root={root}"])
    said: list[str] = []
    with StopRequest() as stop:
        path = fit(prepare(config, said.append), folder / "runs", None, said.append, stop)
    assert not [line for line in said if "cannot be shown" in line]
    return path


@pytest.fixture(scope="module")
def tensorboard(run):
    """The address of a TensorBoard that shows the run, all of its dashboards being ready."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run.parent.parent)]
    log = run.parent / "tensorboard.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--port", "0", "--host", "127.0.0.1"], stdout=output, stderr=output
        )
    try:
        address = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()))[0]

        def all_are_ready() -> bool:
            with urllib.request.urlopen(f"{address}/data/plugins_listing") as answer:
                listing = json.load(answer)
            return all(listing[name]["enabled"] for name in DASHBOARDS)

        wait_for(all_are_ready)
        yield address
    finally:
        server.terminate()
        server.wait(10)


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def look(browser):
    """Open an address; at the end nothing may have failed, nor have been asked of another host."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30_000)
    requests: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on(
        "response", lambda r: faults.append(f"{r.url}: {r.status}") if r.status >= 400 else None
    )
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)

    def opened(address):
        page.goto(address)
        return page, requests

    yield opened
    page.wait_for_timeout(200)
    own = ("data:", "blob:", "/".join(page.url.split("/")[:3]) + "/")
    assert [url for url in requests if not url.startswith(own)] == []
    assert not faults
    context.close()


def loaded(image):
    """Wait until a picture is there; its width and height in its own pixels."""
    image.wait_for()
    image.evaluate("img => img.decode()")
    return image.evaluate("img => [img.naturalWidth, img.naturalHeight]")


def only(page, tags):
    """Have a dashboard show the tags that match only, and those opened."""
    page.locator('tf-tag-filterer input, input[placeholder^="Filter tags"]').fill(tags)


def timeseries(page):
    only(page, "confusion_matrix/val")
    assert min(loaded(page.locator("image-card img").first)) > 100
    only(page, "val/loss")
    page.locator("scalar-card").get_by_text("val/loss").first.wait_for()
    page.locator("scalar-card line-chart canvas, scalar-card line-chart svg").first.wait_for()


def scalars(page):
    only(page, "train/|val/|lr/|perf/")
    for tag in ("lr/group0", "train/loss", "train/accuracy_epoch", "train/gradient_norm"):
        page.get_by_text(f"tag: {tag}", exact=True).first.wait_for()
    page.get_by_text("tag: perf/images_per_second").first.wait_for()
    page.locator("tf-scalar-card svg").first.wait_for()


def custom_scalars(page):
    page.get_by_text("Matches (2)").nth(1).wait_for()  # losses, and accuracies
    page.get_by_text("learning rate").wait_for()


def images(page):
    only(page, "images/|predictions/|confusion_matrix/|kernels/")
    for tag in (
        *("images/raw", "images/augmented", "predictions/val", "predictions/test"),
        *("confusion_matrix/val", "confusion_matrix/test", "kernels/first_layer"),
    ):
        card = page.locator("tf-image-loader").filter(has_text=f"tag: {tag}")
        width, height = loaded(card.locator("img").first)
        assert width > 100 and height > 50


def graphs(page):
    model = page.locator('tf-graph-scene g.node[data-name="LeNet"] text').first
    inner = page.locator('tf-graph-scene g.node[data-name^="LeNet/Sequential[classifier]"]').first

    def opened() -> bool:  # a click while the graph is being laid out goes amiss
        model.dblclick(force=True)
        try:
            inner.wait_for(timeout=3000)
        except sync_api.TimeoutError:
            return False
        return True

    wait_for(opened)


def distributions(page):
    page.get_by_text("tag: gradients/classifier.0.weight").first.wait_for()
    page.locator("vz-distribution-chart svg path").first.wait_for(state="attached")


def histograms(page):
    only(page, "weights/features")
    page.get_by_text("tag: weights/features.0.weight").first.wait_for()
    assert page.locator("vz-histogram-timeseries svg path").count() >= 10


def pr_curves(page):
    for name in ("1", "100"):
        page.get_by_text(f"tag: pr_curve/test/{name}", exact=True).first.wait_for()
    page.get_by_text("is at").first.wait_for()


def projector(page):
    frame = page.frame_locator("iframe").frame_locator("iframe")
    sync_api.expect(frame.locator(".numDataPoints")).to_have_text(re.compile("[1-9]"))
    sync_api.expect(frame.locator(".dim")).to_have_text("84")
    assert frame.locator("canvas").first.bounding_box()["height"] > 100


def hparams(page):
    cells = page.locator("vaadin-grid-cell-content")
    cells.get_by_text("val/accuracy").first.wait_for()
    page.get_by_text("optimizer.lr").first.wait_for()
    cells.get_by_text(re.compile(r"[01]\.\d{4}")).first.wait_for()


def text(page):
    page.get_by_text("name: lenet_rmb").first.wait_for()
    page.locator("td").get_by_text("platform").wait_for()


DASHBOARDS = {
    show.__name__: show
    for show in (
        *(timeseries, scalars, custom_scalars, images, graphs, distributions),
        *(histograms, pr_curves, projector, hparams, text),
    )
}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_shows_the_run_itself(name, tensorboard, look):
    page, requests = look(f"{tensorboard}/#{name}")
    DASHBOARDS[name](page)
    assert name != "projector" or any("sprite_image" in url for url in requests)


@pytest.mark.parametrize("width", [1000, 641])
def test_no_line_stands_beside_a_table(width, look, tmp_path):
    style = (SHARED / "report.css").read_text()
    table = "<div class=wide><table><tr><td>1<td>2</table></div>"
    gaps = "".join(f"<p style='margin:0;height:{height}px'></p>{table}" for height in (10.3, 7.7))
    (tmp_path / "page.html").write_text(f"<!doctype html><style>{style}</style>{gaps}")
    page, _ = look((tmp_path / "page.html").as_uri())
    page.set_viewport_size({"width": width, "height": 300})
    with Image.open(io.BytesIO(page.screenshot())) as seen:
        right = seen.convert("L").crop((width // 2, 0, width, 300))  # of a narrow table: empty
    assert right.getextrema() == (255, 255)


@pytest.mark.parametrize("width", [1200, 400])
def test_the_report_is_whole_in_one_file_and_fits_a_phone(width, run, look):
    page, requests = look((run / "report" / "report.html").as_uri())
    page.set_viewport_size({"width": width, "height": 800})
    pictures = page.locator("img")
    assert pictures.count() >= 2
    for place in range(pictures.count()):
        pictures.nth(place).scroll_into_view_if_needed()
        assert min(loaded(pictures.nth(place))) > 0
        assert pictures.nth(place).get_attribute("alt")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h1").count() == 1 and page.locator("h2").count() >= 5
    assert [url for url in requests if not url.startswith("data:")] == [page.url]
