"""Datasets of files give their bytes and their pixels apart, and JPEGs smaller where asked to."""

import hashlib
import io
from typing import Literal

import PIL
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from datasets import BrokenImage
from datasets.csv_images import CSVImages
from datasets.files import ImageFiles
from datasets.image_folder import ImageFolder
from datasets.images import Remark
from datasets.rmb import RMB
from datasets.shards import Shards
from scripts import pack_shards
from trainer.input.subset import at_least_of
from transforms.pipeline import Pipeline

Decode = Literal["exact", "fast"]
WIDTH, HEIGHT = 403, 301


def pixels(image: Image.Image) -> torch.Tensor:
    rows = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return rows.view(image.height, image.width, 3).permute(2, 0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A photograph to be turned, a plain one, and a PNG, in two classes; the same as shards."""
    root = tmp_path_factory.mktemp("reading")
    noise = torch.randint(0, 256, (60 * 80 * 3,), generator=torch.Generator().manual_seed(0))
    image = Image.frombytes("RGB", (80, 60), bytes(noise.tolist())).resize((WIDTH, HEIGHT))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("1", "5"):
        (root / "files" / name).mkdir(parents=True)
        image.save(root / "files" / name / "turned.jpg", exif=exif)
        image.save(root / "files" / name / "plain.jpg", progressive=True)
        image.save(root / "files" / name / "none.png")
    table = "".join(f"{n}/{f},{n}\n" for n in "15" for f in ("turned.jpg", "plain.jpg", "none.png"))
    (root / "table.csv").write_text("path,label\n" + table)
    pytest.importorskip("webdataset", reason='pip install -e ".[shards]"')
    places = ["--source", str(root / "files"), "--target", str(root / "shards")]
    assert pack_shards.main(places) == 0
    return root


def opened(name: str, folder, decode: Decode) -> ImageFiles | Shards:
    files = str(folder / "files")
    if name == "CSVImages":
        return CSVImages(files, str(folder / "table.csv"), decode=decode)
    if name == "Shards":
        return Shards(str(folder / "shards"), decode=decode)
    if name == "RMB":
        return RMB(files, decode=decode)
    return ImageFolder(files, decode=decode)


DECODES: tuple[Decode, Decode] = ("exact", "fast")
DATASETS = ("RMB", "ImageFolder", "CSVImages", "Shards")


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("name", DATASETS)
def test_content_and_decode_are_the_halves_of_image(folder, name, decode):
    dataset = opened(name, folder, decode)
    for index, file in enumerate(dataset.ids):
        content = dataset.content(index)
        assert content == (folder / "files" / file).read_bytes()
        assert dataset.digest(index) == hashlib.sha256(content).hexdigest()
        assert dataset.remarks[index] == 0
        image = dataset.decode(index, content)
        assert torch.equal(image, pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))))
        is_turned = file.endswith("turned.jpg")
        assert dataset.remarks[index] == Remark.READ | (Remark.TURNED if is_turned else 0)
        assert torch.equal(dataset.image(index), image)


@pytest.mark.parametrize("name", DATASETS)
def test_decoding_reduces_jpegs_to_the_pixels_that_are_needed(folder, name):
    dataset = opened(name, folder, "exact")
    for index, file in enumerate(dataset.ids):
        content, full = dataset.content(index), dataset.image(index)
        for at_least, shrink in ((0, 1), (38, 8), (39, 4), (150, 2), (152, 1)):
            image = dataset.decode(index, content, at_least)
            shrink = 1 if file.endswith(".png") else shrink
            assert image.shape == (3, *(-(-side // shrink) for side in full.shape[1:]))


def test_only_fast_decoding_needs_fewer_pixels_for_training(folder):
    pipeline = Pipeline([v2.Resize([8, 8])], 0)
    exact, fast = (at_least_of(opened("RMB", folder, kind), pipeline) for kind in DECODES)
    assert exact == 0 < fast


@pytest.mark.parametrize("name", DATASETS)
def test_the_recipe_tells_of_the_libraries_and_of_fast_decoding(folder, name):
    exact, fast = opened(name, folder, "exact").recipe, opened(name, folder, "fast").recipe
    assert exact != fast and exact == opened("ImageFolder", folder, "exact").recipe
    for library in (f"simplejpeg {simplejpeg.__version__}", f"Pillow {PIL.__version__}"):
        assert library in exact and library in fast


def test_a_file_that_is_gone_or_whose_bytes_are_not_an_image_is_named(tmp_path):
    for name in ("1", "5"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"no image")
    dataset = ImageFolder(str(tmp_path))
    with pytest.raises(BrokenImage, match=r"1/a\.jpg: not an image"):
        dataset.decode(0, dataset.content(0))
    (tmp_path / "1/a.jpg").unlink()
    with pytest.raises(BrokenImage, match=r"1/a\.jpg: cannot be read: No such file"):
        dataset.content(0)
