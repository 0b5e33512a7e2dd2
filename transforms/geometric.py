"""Batched geometric transforms: one matrix per sample, in torchvision's arithmetic.

All operations are elementwise and in a fixed order, without matrix products, so a sample's pixels
do not depend on its batch, the BLAS, its threads or TF32. torchvision computes the sampling
coordinates by a matrix product. If its BLAS rounds products before adding, the coordinates are
bitwise equal. If it fuses both (CUDA), the last bit may differ, and "nearest" may then pick the
other pixel where a coordinate is that close to the border of two pixels.
"""

from typing import Any

import torch
import torchvision.transforms.v2 as v2
from torch import Tensor
from torch.nn.functional import grid_sample

from transforms.kernel import Kernel, Parameters, change
from transforms.keyed import Draws


def mode_of(transform: Any) -> Any:
    """The transform's interpolation, as in YAML ("nearest", ...) or as one of Pillow's numbers."""
    return getattr(transform.interpolation, "value", transform.interpolation)


def takes_warp(transform: Any) -> bool:
    """Whether the interpolation is "nearest" or "bilinear", and ``fill`` is not a dict."""
    return mode_of(transform) in ("nearest", "bilinear") and not isinstance(transform.fill, dict)


def takes_rotation(transform: v2.RandomRotation) -> bool:
    """As ``takes_warp``, and not expand=True, which gives images of different sizes."""
    return not transform.expand and takes_warp(transform)


def _places(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """theta (B, n, 3) times (x, y, 1) for each pixel: (B, n, len(y), len(x)) float32."""
    of_x, of_y, of_1 = theta[..., None, None].unbind(2)
    return (x * of_x + y[:, None] * of_y).add_(of_1)


def _warp(transform: Any, images: Tensor, places: Tensor) -> Tensor:
    """Sample ``images`` at places (B, 2, H, W), x and y in -1..1; elsewhere is ``transform.fill``.

    Raises ValueError if ``fill`` is a list whose length is not the number of channels.
    """
    channels, mode, grid = images.shape[1], mode_of(transform), places.movedim(1, 3)
    if transform.fill is None:
        values = grid_sample(images.float(), grid, mode, align_corners=False)
    else:
        fill = torch.tensor(transform.fill, dtype=torch.float32).view(-1, 1, 1)
        if len(fill) not in (1, channels):
            raise ValueError(f"fill has {len(fill)} numbers, and the images {channels} channels")
        fill = fill.to(images.device, non_blocking=True)
        # In an extra channel of ones, grid_sample returns each pixel's share inside the image.
        shape = (len(images), channels + 1, *images.shape[2:])
        values = images.new_ones(shape, dtype=torch.float32)
        values[:, :channels] = images
        values = grid_sample(values, grid, mode, align_corners=False)
        values, share = values[:, :channels], values[:, channels:]
        if mode == "nearest":
            values = torch.where(share < 0.5, fill, values)
        else:
            values = (values - fill).mul_(share).add_(fill)
    return values if images.dtype == torch.float32 else values.round().to(images.dtype)


def _affine(transform: Any, images: Tensor, parameters: Parameters) -> Tensor:
    """Rotate ``images`` about ``transform.center``, translate, scale and shear them."""
    height, width = images.shape[2:]
    middle_x, middle_y = width * 0.5, height * 0.5
    center_x, center_y = transform.center or (middle_x, middle_y)
    center = torch.tensor([center_x - middle_x, center_y - middle_y], dtype=torch.float64)
    turn, shear_x, shear_y = torch.deg2rad(
        torch.column_stack([parameters["angle"], parameters["shear"]]).double()
    ).unbind(1)
    scale = parameters["scale"].double()
    # [[a, b], [c, d]] rotates and shears, with determinant 1. Its inverse gives the source pixels.
    a = torch.cos(turn - shear_y) / torch.cos(shear_y)
    b = -(a * torch.tan(shear_x) + torch.sin(turn))
    c = torch.sin(turn - shear_y) / torch.cos(shear_y)
    d = torch.cos(turn) - c * torch.tan(shear_x)
    inverse = torch.stack([d / scale, -b / scale, -c / scale, a / scale], 1).view(-1, 2, 2)
    x, y = (center + parameters["translate"].double())[:, None].unbind(2)
    offset = center - inverse[..., 0] * x - inverse[..., 1] * y
    theta = torch.cat([inverse, offset[..., None]], 2).float()
    theta = theta / torch.tensor([[middle_x], [middle_y]])  # grid_sample's coordinates are -1 to 1
    columns = torch.arange(width, device=images.device) - (width - 1) * 0.5
    rows = torch.arange(height, device=images.device) - (height - 1) * 0.5
    theta = theta.to(images.device, non_blocking=True)
    return _warp(transform, images, _places(theta, columns, rows))


def draw_rotation(
    transform: v2.RandomRotation, size: tuple[int, int, int], draws: Draws
) -> Parameters:
    """angle (B,): the rotation of each sample, in degrees."""
    return {"angle": draws.uniform(*transform.degrees)}


def rotate(transform: v2.RandomRotation, images: Tensor, parameters: Parameters) -> Tensor:
    """Rotate each sample counterclockwise by its angle."""
    angle = -torch.remainder(parameters["angle"].double(), 360.0)
    still = torch.zeros(len(images), 2)
    scale = torch.ones(len(images))
    moves = {"angle": angle, "translate": still, "scale": scale, "shear": still}
    return _affine(transform, images, moves)


def draw_affine(transform: v2.RandomAffine, size: tuple[int, int, int], draws: Draws) -> Parameters:
    """angle and shear (degrees), translate (pixels), scale; an argument None has no effect."""
    across, down = transform.translate or (0.0, 0.0)
    move_x, move_y = across * size[2], down * size[1]
    shear = [*(transform.shear or ()), 0.0, 0.0, 0.0, 0.0]
    translate = [draws.uniform(-move_x, move_x), draws.uniform(-move_y, move_y)]
    return {
        "angle": draws.uniform(*transform.degrees),
        "translate": torch.stack(translate, 1).round(),
        "scale": draws.uniform(*(transform.scale or (1.0, 1.0))),
        "shear": torch.stack([draws.uniform(*shear[:2]), draws.uniform(*shear[2:4])], 1),
    }


def draw_perspective(
    transform: v2.RandomPerspective, size: tuple[int, int, int], draws: Draws
) -> Parameters:
    """chosen (B,) bool: the samples to change; coefficients (B, 8): a to h of each sample.

    The pixel (x, y) comes from (ax + by + c, dx + ey + f) / (gx + hy + 1) in the image. Samples
    whose moved corners are on one line, as in images one pixel wide, are not chosen.
    """
    _, height, width = size
    reach_x = int(transform.distortion_scale * (width // 2)) + 1
    reach_y = int(transform.distortion_scale * (height // 2)) + 1
    chosen = draws.uniform() < transform.p
    # The corners, clockwise from the top left; each moves inwards, to (x, y).
    corner_x = torch.tensor([0, width - 1, width - 1, 0])
    corner_y = torch.tensor([0, 0, height - 1, height - 1])
    inwards = torch.stack([draws.integers(reach) for reach in [reach_x] * 4 + [reach_y] * 4], 1)
    x = corner_x + inwards[:, :4] * torch.tensor([1, -1, -1, 1])
    y = corner_y + inwards[:, 4:] * torch.tensor([1, 1, -1, -1])
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    for_x = torch.stack([x, y, one, zero, zero, zero, -corner_x * x, -corner_x * y], 2)
    for_y = torch.stack([zero, zero, zero, x, y, one, -corner_y * x, -corner_y * y], 2)
    matrices = torch.stack([for_x, for_y], 2).view(-1, 8, 8).double()
    corners = torch.stack([corner_x, corner_y], 1).view(8, 1).double().expand(len(x), 8, 1)
    coefficients = torch.linalg.solve_ex(matrices, corners).result[..., 0]
    solved = (coefficients.abs() < 1e10).all(1)  # unsolvable: nan, inf, or (by rounding) above 1e15
    return {"chosen": chosen & solved, "coefficients": coefficients.float()}


def change_perspective(
    transform: v2.RandomPerspective, images: Tensor, parameters: Parameters
) -> Tensor:
    """Change the perspective of the chosen samples."""
    height, width = images.shape[2:]
    columns = torch.arange(width, device=images.device) + 0.5
    rows = torch.arange(height, device=images.device) + 0.5
    coefficients = parameters["coefficients"]
    above = coefficients[:, :6].view(-1, 2, 3) / torch.tensor([[0.5 * width], [0.5 * height]])
    below = torch.cat([coefficients[:, 6:], torch.ones(len(coefficients), 1)], 1)[:, None]

    def project(images: Tensor, chosen: Tensor) -> Tensor:
        numerator, denominator = (
            _places(theta[chosen].to(images.device, non_blocking=True), columns, rows)
            for theta in (above, below)
        )
        places = numerator.div_(denominator).sub_(1.0)
        return _warp(transform, images, places.nan_to_num_(9.0, 9.0, -9.0))  # x / 0 is outside

    return change(images, parameters["chosen"], project)


RANDOM_ROTATION = Kernel(draw_rotation, rotate, takes_rotation)
RANDOM_AFFINE = Kernel(draw_affine, _affine, takes_warp)
RANDOM_PERSPECTIVE = Kernel(draw_perspective, change_perspective, takes_warp)
