"""The page of ``trainer.serve`` in a real browser: drop a picture, see class, bars and Grad-CAM."""

import base64
import io
import shutil

import pytest
from PIL import Image, ImageChops

from tests.conftest import SMALL
from tests.test_serve import TOKEN, served
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.loop.fit import fit
from trainer.process.stop import StopRequest

pytest.importorskip("litserve", reason='pip install -e ".[serve]"')
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright to look")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
HOSTILE = "<img src=x onerror=alert(1)>"  # a class's name
DROP = """([text, name]) => {
  const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, {type: 'image/png'}));
  const options = {dataTransfer: data, bubbles: true, cancelable: true};
  document.getElementById('drop').dispatchEvent(new DragEvent('drop', options));
}"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="needs a browser: apt-get install chromium"),
]


def trained(folder, notes, model):
    """A run whose classes are called ``1`` and HOSTILE."""
    data = folder / "data"
    for name, target in (("1", "1"), ("100", HOSTILE)):
        shutil.copytree(notes / name, data / target)
    text = SMALL.format(root=data).replace("RMB", "ImageFolder").replace("LeNet", model)
    (folder / "small.yaml").write_text(text)
    with StopRequest() as stop:
        job = prepare(load_config(folder / "small.yaml", []), lambda line: None)
        return fit(job, folder / "runs", None, lambda line: None, stop), data


@pytest.fixture
def page():
    """A page that has asked nobody but its own server, and reported no fault, in the end."""
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        opened = browser.new_context(color_scheme="dark").new_page()
        opened.set_default_timeout(20_000)
        asked, faults = [], []
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("pageerror", lambda error: faults.append(str(error)))
        opened.on("dialog", lambda dialog: faults.append(dialog.message))
        yield opened
        own = ("data:", "blob:", "/".join(opened.url.split("/")[:3]) + "/")
        browser.close()
    assert [url for url in asked if not url.startswith(own)] == []
    assert faults == []


def test_a_dropped_picture_gets_its_class_bars_and_grad_cam_and_no_name_becomes_html(
    page, tmp_path, notes
):
    run, data = trained(tmp_path, notes, "LeNet")
    with served(run, tmp_path / "empty") as server:
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.get_by_text("2 classes").wait_for()
        for name in ("1", HOSTILE):
            picture = io.BytesIO()
            Image.open(next((data / name).iterdir())).save(picture, "PNG")
            expected = server.predicted(picture.getvalue())
            assert expected["label"] == name  # two epochs tell notes apart
            text = base64.b64encode(picture.getvalue()).decode()
            page.evaluate(DROP, [text, "<b>name</b>.png"])
            page.get_by_role("status").get_by_text(f"Predicted: {name}", exact=True).wait_for()
            assert page.locator("h2").inner_text() == name
            rows = page.locator("tr")
            told = sorted(expected["probabilities"].items(), key=lambda item: -item[1])
            assert [row.split("\t")[0].strip() for row in rows.all_inner_texts()] == [
                one for one, _ in told
            ]
            bars = [bar.evaluate("bar => bar.value") for bar in page.get_by_role("meter").all()]
            assert bars == pytest.approx([chance for _, chance in told], abs=1e-6)
            heat = page.get_by_role("img", name=f"where the model finds evidence for {name}")
            heat.evaluate("img => img.decode()")
            url = heat.get_attribute("src")
            drawn = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
            red, _, blue = drawn.convert("RGB").split()
            colours = ImageChops.difference(red, blue).histogram()
            assert sum(colours[50:]) > 100  # pixels that are not grey
            told = page.locator("#evidence-text").inner_text()
            assert told == f"Where the model looked (Grad-CAM of {name}): red speaks for it"
            found = server.predicted(picture.getvalue(), path="/predict?explain=true")
            layer = found["explanation"]["layer"]
            assert layer not in page.locator("main").inner_text()
            evidence = page.locator("#evidence")
            assert evidence.get_attribute("title") == f"seen at the layer {layer}"
        assert page.locator("main b, main img[src=x]").count() == 0
        page.locator("#file").set_input_files(
            {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"}
        )
        page.locator("#status.wrong").get_by_text("image").wait_for()
        assert page.locator("#result").is_hidden()


def test_a_small_picture_is_shown_as_wide_as_its_grad_cam_with_sharp_pixels(page, tmp_path, notes):
    run, data = trained(tmp_path, notes, "LeNet")
    photo = Image.open(next((data / "1").iterdir())).convert("RGB")
    sizes = ((32, 32), (1000, 1000), (8, 16), (32, 32))
    with served(run, tmp_path / "empty") as server:
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.get_by_text("2 classes").wait_for()
        for number, size in enumerate(sizes):
            file = tmp_path / f"{number}.png"
            photo.resize(size).save(file)
            page.locator("#file").set_input_files(file)
            page.wait_for_function(
                "([w, h]) => { const one = document.getElementById('picture');"
                " return one.complete && one.naturalWidth === w && one.naturalHeight === h"
                " && one.classList.contains('small') === (w < 280)"
                " && !document.getElementById('result').hidden; }",
                arg=list(size),
            )
            shown = page.locator("#picture")
            rendering = shown.evaluate("img => getComputedStyle(img).imageRendering")
            assert rendering == ("auto" if size[0] == 1000 else "pixelated")
            widths = [
                one.evaluate("img => img.getBoundingClientRect().width")
                for one in (shown, page.locator("#grad-cam"))
            ]
            if size[0] != 1000:
                assert widths[0] == pytest.approx(widths[1], abs=1)
                assert widths[0] >= 200


def test_by_keyboard_with_a_token_and_a_model_that_grad_cam_cannot_explain(page, tmp_path, notes):
    run, data = trained(tmp_path, notes, "MLP")
    with served(run, tmp_path / "empty", token=TOKEN) as server:
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.get_by_text("This server wants a token.").wait_for()
        page.keyboard.press("Tab")
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        page.get_by_text("2 classes").wait_for()
        page.get_by_label("Drop a picture here").focus()
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Space")
        chooser.value.set_files(next((data / "1").iterdir()))
        page.get_by_text("No Grad-CAM: MLP").wait_for()
        assert page.locator("#grad-cam").is_hidden()
        assert page.get_by_role("meter").count() == 2
        assert page.get_by_alt_text("The picture that was sent").is_visible()
