"""What speaks for a class where Grad-CAM has no maps to look at."""

import importlib.util
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.test_explain import run  # noqa: F401
from trainer.explain import main
from trainer.inference.attribution import as_heat, find_evidence, integrated_gradients, occlusion
from trainer.process.errors import UsageError

pytest.importorskip("captum", reason='needs pip install -e ".[attribution]"')


def linear(weights):
    """A model (1, C, H, W) -> 2 logits whose second is the sum of ``weights`` times the pixels."""
    layer = nn.Linear(weights.numel(), 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weights), weights]).flatten(1))
    return nn.Sequential(nn.Flatten(), layer)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(3, 16, 16, generator=generator) for _ in range(2)]


def test_integrated_gradients_of_a_linear_model_are_its_weights_times_the_pixels(drawn):
    weights, image = drawn
    heat, how = integrated_gradients(linear(weights), image[None], 1)
    expected = (weights * image).sum(dim=0).relu()
    top = expected.flatten().quantile(0.99)
    torch.testing.assert_close(heat, (expected / top).clamp(max=1), rtol=1e-4, atol=1e-5)
    assert f"sum is {(weights * image).sum():+.2f}" in how  # less the logit of the mean colour


def test_the_sum_of_integrated_gradients_is_the_change_of_the_logit():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(784, 2)
    )
    inputs = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    _, how = integrated_gradients(model, inputs, 0)
    change = (model(inputs) - model(torch.zeros_like(inputs)))[0, 0].detach()
    told = float(how.partition("sum is ")[2].split()[0])
    assert told == pytest.approx(float(change), abs=0.05)


def test_occlusion_finds_the_only_square_that_counts():
    weights = torch.zeros(3, 16, 16)
    weights[:, 4:6, 10:12] = 1
    heat, how = occlusion(linear(weights), torch.ones(1, 3, 16, 16), 1)
    assert heat[4:6, 10:12].min() > 0.9 and "2 x 2" in how
    heat[3:7, 9:13] = 0  # squares overlap by half
    assert heat.max() == 0


@pytest.mark.parametrize("find", [integrated_gradients, occlusion])
def test_the_model_is_left_as_it_was(find):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(784, 2))
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    find(model, torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)), 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [layer.training for layer in model] == [True, False, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_image_without_evidence_has_no_heat():
    assert as_heat(-torch.ones(1, 3, 4, 4)).max() == 0


def test_a_model_without_maps_gets_integrated_gradients_and_a_note(drawn):
    by, _, note = find_evidence(linear(drawn[0]), drawn[1][None], 1, None)
    assert by == "integrated_gradients"
    assert "no Grad-CAM" in note and "no layer that gives maps" in note


def test_without_captum_the_extra_is_named(drawn, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"no layer that gives maps.*\[attribution\]"):
        find_evidence(linear(drawn[0]), drawn[1][None], 1, None)
    with pytest.raises(UsageError, match=r"--method occlusion needs .*\[attribution\]"):
        find_evidence(linear(drawn[0]), drawn[1][None], 1, "occlusion")


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_the_command_draws_what_is_asked_for(run, notes, tmp_path, capsys, method):  # noqa: F811
    photo = shutil.copy(notes / "1" / "000.jpg", tmp_path / "photo.jpg")
    assert main([str(run), str(photo), "--method", method, "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / f"{method}.png").exists()
    assert not (tmp_path / "out" / "grad_cam.png").exists()
    assert f"{method}.png: what speaks for class" in capsys.readouterr().out


def test_a_vision_transformer_gets_evidence(run, notes, tmp_path, capsys):  # noqa: F811
    from trainer.build.trained import load_trained
    from trainer.inference.explanation import explain

    timm = pytest.importorskip("timm")
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=2, depth=2
    )
    trained_vit = replace(load_trained(run), model=vit.eval())
    path = notes / "1" / "000.jpg"
    made = explain(trained_vit, path, trained_vit.read(path), tmp_path / "vit")
    assert (tmp_path / "vit" / "integrated_gradients.png").exists()
    assert any("tokens" in note and "instead" in note for note in made.notes)


def test_grad_cam_that_was_asked_for_and_cannot_answer_ends_the_command(drawn):
    with pytest.raises(UsageError, match=r"--method grad_cam: .*no layer that gives maps"):
        find_evidence(linear(drawn[0]), drawn[1][None], 1, "grad_cam")


def test_a_second_explanation_leaves_no_evidence_of_the_first(run, notes, tmp_path):  # noqa: F811
    photo, out = str(notes / "1" / "000.jpg"), tmp_path / "out"
    assert main([str(run), photo, "--method", "occlusion", "--output", str(out)]) == 0
    (out / "occlusion_mine.png").write_bytes(b"the user's own")
    assert main([str(run), photo, "--output", str(out)]) == 0
    names = {path.name for path in out.glob("*.png")}
    assert names == {"overview.png", "grad_cam.png", "kernels.png", "occlusion_mine.png"}
