"""evaluation.tta: the mean of the logits over mirror images and shifts, beside plain numbers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from trainer.build.model import averaged_logits
from trainer.build.trained import load_trained
from trainer.evaluate import main as evaluate
from trainer.loop.evaluate import predict
from trainer.predict import main as predict_files
from trainer.run.disk import read_json


class Uneven(nn.Module):
    """Logits that no flip or shift leaves as they are."""

    def forward(self, images: Tensor) -> Tensor:
        numbers = torch.arange(images[0].numel()).view(images.shape[1:])
        logits: Tensor = (
            (images * torch.stack([numbers.sin(), numbers.cos()])[:, None]).sum((2, 3, 4)).T
        )
        return logits


def expected_of(image: np.ndarray, tta: str | None) -> np.ndarray:
    """The logits of one image (C, H, W) by NumPy: airbench's six views and weights."""

    def logits(one: np.ndarray) -> np.ndarray:
        numbers = np.arange(one.size).reshape(one.shape)
        return np.array([(one * np.sin(numbers)).sum(), (one * np.cos(numbers)).sum()])

    def both(one: np.ndarray) -> np.ndarray:
        return 0.5 * logits(one) + 0.5 * logits(one[:, :, ::-1])

    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    if tta is None:
        return logits(image)
    if tta == "flip":
        return both(image)
    return 0.5 * both(image) + 0.25 * both(padded[:, :-2, :-2]) + 0.25 * both(padded[:, 2:, 2:])


@pytest.mark.parametrize("tta", [None, "flip", "flip+shifts"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_logits_are_the_weighted_mean_over_the_views_also_of_crops_and_without_padding_images(
    tta, channels_last
):
    images = torch.rand(5, 3, 6, 7)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    expected = np.stack([expected_of(image.double().numpy(), tta) for image in images])
    np.testing.assert_allclose(averaged_logits(Uneven(), images, tta).numpy(), expected, atol=2e-4)
    crops = averaged_logits(Uneven(), images.contiguous().view(1, 5, 3, 6, 7), tta)
    np.testing.assert_allclose(crops[0].numpy(), expected.mean(axis=0), atol=2e-4)
    logits, labels = predict(Uneven(), [(images, torch.zeros(4, dtype=torch.int64))], tta=tta)
    np.testing.assert_allclose(logits.numpy(), expected[:4], atol=2e-4)
    assert len(labels) == 4


def test_a_run_tells_both_numbers_and_its_later_uses_take_the_same_views(
    finished, tmp_path, capsys
):
    run = finished("evaluation.tta=flip+shifts", "train.epochs=1")
    result = read_json(run / "result.json")
    assert result["tta"] == "flip+shifts" == read_json(run / "model.json")["evaluation"]["tta"]
    assert result["test"]["loss"] != result["test_plain"]["loss"]

    def evaluated(*words):
        capsys.readouterr()
        assert evaluate([str(run), "--json", *words]) == 0
        told = capsys.readouterr()
        assert ("the images had tta flip" in told.err) == ("none" not in words)
        return json.loads(told.out)

    assert evaluated() == pytest.approx(result["test"], abs=0)
    assert evaluated("--tta", "none") == pytest.approx(result["test_plain"], abs=0)
    assert evaluated("--tta", "flip")["loss"] not in (
        result["test"]["loss"],
        result["test_plain"]["loss"],
    )
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(photo)
    trained = load_trained(run)
    inputs = trained.inputs([trained.read(photo)])
    for tta, words in (("flip+shifts", []), (None, ["--tta", "none"]), ("flip", ["--tta", "flip"])):
        capsys.readouterr()
        assert predict_files([str(run), str(photo), "--json", *words]) == 0
        found = list(json.loads(capsys.readouterr().out)[0]["probabilities"].values())
        expected = averaged_logits(trained.model, inputs, tta).softmax(1)[0].tolist()
        assert found == pytest.approx(expected, abs=1e-5)
