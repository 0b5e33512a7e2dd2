"""Evidence for a class in an image's pixels, for any model: by gradients, or by hiding parts."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.insight.features import evaluating, grad_cam
from trainer.process.console import draws_bars
from trainer.process.errors import UsageError

POINTS_ON_THE_WAY = 64  # points on the way from the mean colour to the image
POINTS_AT_ONCE = 16  # images in a forward pass
WINDOWS = 8  # hidden squares along the shorter side, each overlapping the next by half
FULL_COLOUR = 0.99  # the share of pixels below full colour: one pixel would darken all others

Evidence = tuple[Tensor, str]  # (H, W) in 0-1, and where or how it was found


def find_evidence(
    model: nn.Module, inputs: Tensor, label: int, method: str | None
) -> tuple[str, Evidence, str]:
    """The method that was used, what speaks for class ``label``, and a note, or "".

    inputs: one image (1, C, H, W). method: one of ``EVIDENCE``, or None: Grad-CAM, or else
    integrated gradients. Raises ValueError if Grad-CAM has no maps to look at and captum is absent;
    UsageError if the method that was asked for cannot answer, or needs captum.
    """
    if method in (None, "grad_cam"):
        try:
            return "grad_cam", grad_cam(model, inputs, label), ""
        except ValueError as error:
            if method:
                raise UsageError(f"--method grad_cam: {error}; leave --method out") from None
            if not has_captum():
                raise ValueError(f"{error}; other methods need {HOW}") from None
            found = integrated_gradients(model, inputs, label)
            note = f"no Grad-CAM: {error}; integrated gradients instead"
            return "integrated_gradients", found, note
    if not has_captum():
        raise UsageError(f"--method {method} needs {HOW}")
    return str(method), FOUND_BY[str(method)](model, inputs, label), ""


HOW = 'the package captum, not installed here: pip install -e ".[attribution]"'


def has_captum() -> bool:
    """Whether captum can be imported."""
    return importlib.util.find_spec("captum") is not None


def integrated_gradients(model: nn.Module, inputs: Tensor, label: int) -> Evidence:
    """The gradients of a class's logit, summed on the way from the mean colour to the image.

    inputs: one image (1, C, H, W), after normalisation: 0 is the mean colour. Sundararajan et al.,
    2017, "Axiomatic Attribution for Deep Networks". The values of all pixels sum to the logit less
    that of a picture of the mean colour; the second text tells by how much they miss it.
    """
    from captum.attr import IntegratedGradients

    with evaluating(model, inputs.device), torch.inference_mode(False), torch.enable_grad():
        logits = _out_of_place(model)
        image = inputs.detach().clone().requires_grad_()
        values = (
            IntegratedGradients(logits)
            .attribute(
                image,
                baselines=0.0,
                target=label,
                n_steps=POINTS_ON_THE_WAY,
                internal_batch_size=POINTS_AT_ONCE,
            )
            .detach()
        )
        with torch.no_grad():
            ends = logits(torch.cat([torch.zeros_like(image), image]))[:, label]
    total, change = float(values.sum()), float(ends[1] - ends[0])
    how = f"integrated gradients, whose sum is {total:+.2f} and misses {abs(total - change):.2g}"
    return as_heat(values), how


def occlusion(model: nn.Module, inputs: Tensor, label: int) -> Evidence:
    """By how much a class's logit falls where a square of the mean colour hides the image.

    inputs: one image (1, C, H, W), after normalisation: 0 is the mean colour. Zeiler and Fergus,
    2014, "Visualizing and Understanding Convolutional Networks", section 4.2. Where squares
    overlap, their mean counts.
    """
    from captum.attr import Occlusion

    channels, height, width = inputs.shape[1:]
    side = max(1, min(height, width) // WINDOWS)
    stride = max(1, side // 2)
    with evaluating(model, inputs.device), torch.no_grad():
        values = Occlusion(_out_of_place(model)).attribute(
            inputs.detach().clone(),
            sliding_window_shapes=(channels, side, side),
            strides=(channels, stride, stride),
            baselines=0.0,
            target=label,
            perturbations_per_eval=POINTS_AT_ONCE,
            show_progress=draws_bars(),
        )
    return as_heat(values), f"squares of {side} x {side} pixels hidden"


def _out_of_place(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model's float32 logits of a copy: a first layer may write into its input."""
    return lambda images: model(images.clone()).float()


def as_heat(values: Tensor) -> Tensor:
    """What speaks for a class, (H, W) in 0-1, from values (1, C, H, W): sums above 0, scaled."""
    heat = values.detach().float().sum(dim=1)[0].relu().cpu()
    top = heat.flatten().quantile(FULL_COLOUR) if heat.numel() <= 2**24 else heat.max()
    top = top if top > 0 else heat.max()  # few pixels have evidence
    return (heat / top.clamp_min(torch.finfo(heat.dtype).tiny)).clamp(max=1)


FOUND_BY = {"integrated_gradients": integrated_gradients, "occlusion": occlusion}
