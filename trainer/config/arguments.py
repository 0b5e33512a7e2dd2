"""What the signatures of components leave out: the ranges of numbers, and better descriptions.

RANGES says which numbers an argument may be, where a constructor does not say so itself. OF_TORCH
describes the arguments of PyTorch's and torchvision's components. Their own texts may say nothing
("Decay term."), speak of what a YAML cannot give, or change with a version; the first sentence of
such a text stands in only for an argument that is new there. The key is an argument, or
``Component.argument``, which counts first.
"""

from collections.abc import Mapping
from typing import Any

from trainer.config.json_schema import Schema


def _range(low: float, high: float | None = None, **more: Any) -> Schema:
    """Numbers from low to high, also each of a list; ``more`` are other keywords of the schema."""
    return {"minimum": low} | ({} if high is None else {"maximum": high}) | more


def _above(low: float, **more: Any) -> Schema:
    return {"exclusiveMinimum": low, **more}


SHARE = _range(0, 1)
BELOW_1 = _range(0, exclusiveMaximum=1)
SIDE = _range(1, 10_000, minItems=1, maxItems=2)
PAIR: Schema = {"minItems": 2, "maxItems": 2}
FILL: Schema = {"minItems": 1}  # of any numbers: after Normalize they are in its units
FACTOR = _range(0, 1000, **PAIR)
ANGLE = _range(-360, 360, **PAIR)
STEPS = _range(1, 1_000_000_000)
LEVELS = _range(2, 1000)

_OPTIMIZER: Mapping[str, Schema] = {"lr": _range(0), "weight_decay": _range(0)}
_WITH_EPS = {**_OPTIMIZER, "eps": _range(0)}
_ADAM = {**_WITH_EPS, "betas": BELOW_1}
_MOMENTUM = {"momentum": _range(0)}
_CROP = {"size": SIDE}
# Of tensors torchvision warps by these two only.
_WARP = {"interpolation": {"enum": ["nearest", "bilinear"]}, "fill": FILL}
# torchvision resizes no tensors by box and hamming, and by lanczos from 0.27 on.
_SCALE = {"interpolation": {"enum": ["nearest", "nearest-exact", "bilinear", "bicubic", "lanczos"]}}
_AUGMENT = {"num_magnitude_bins": LEVELS, **_WARP}

RANGES: Mapping[str, Mapping[str, Schema]] = {
    "Resize": {"size": SIDE, "max_size": _range(1, 10_000), **_SCALE},
    "CenterCrop": _CROP,
    "FiveCrop": _CROP,
    "TenCrop": _CROP,
    "Letterbox": {"size": _range(1, 10_000, **PAIR), "fill": _range(0, 255, minItems=1)},
    "Pad": {"padding": _range(0, 10_000, minItems=1, maxItems=4), "fill": FILL},
    "Grayscale": {"num_output_channels": {"enum": [1, 3]}},
    "Normalize": {"mean": {"minItems": 1}, "std": _above(0, minItems=1)},
    "RandomCrop": {
        "size": SIDE,
        "padding": _range(0, 10_000, minItems=1, maxItems=4),
        "fill": FILL,
    },
    "RandomResizedCrop": {
        "size": SIDE,
        "scale": _range(0, 100),
        "ratio": _above(0),
        **_SCALE,
    },
    "RandomHorizontalFlip": {"p": SHARE},
    "RandomVerticalFlip": {"p": SHARE},
    "RandomRotation": {"degrees": ANGLE, "center": PAIR, **_WARP},
    "RandomAffine": {
        "degrees": ANGLE,
        "translate": _range(0, 1, **PAIR),
        "scale": _above(0, maximum=1000, **PAIR),
        "shear": _range(-89, 89, minItems=2, maxItems=4),
        "center": PAIR,
        **_WARP,
    },
    "RandomPerspective": {"distortion_scale": SHARE, "p": SHARE, **_WARP},
    "ColorJitter": {
        "brightness": FACTOR,
        "contrast": FACTOR,
        "saturation": FACTOR,
        "hue": _range(-0.5, 0.5, **PAIR),
    },
    "RandomGrayscale": {"p": SHARE},
    "GaussianBlur": {
        "kernel_size": _range(1, 999, minItems=1, maxItems=2),
        "sigma": _above(0, maximum=1000, **PAIR),
    },
    "RandomErasing": {
        "p": SHARE,
        "scale": _range(0, 1, **PAIR),
        "ratio": _above(0, maximum=1000, **PAIR),
        "value": FILL,
    },
    "RandomApply": {"p": SHARE},
    "RandomChoice": {"p": _range(0, 1e6)},
    "RandAugment": {"num_ops": _range(0, 100), "magnitude": _range(0, 999), **_AUGMENT},
    "TrivialAugmentWide": _AUGMENT,
    "AutoAugment": _WARP,
    "SaltPepperNoise": {"probability": SHARE, "salt": SHARE},
    "MixUp": {"alpha": _above(0, maximum=1e6)},
    "CutMix": {"alpha": _above(0, maximum=1e6)},
    "AlexNet": {"dropout": SHARE},
    "CompactResNet": {
        "widths": _range(1, 65_536, minItems=1, maxItems=8),
        "batch_norm_momentum": _above(0, maximum=1),
        "scale": _above(0),
    },
    "MLP": {"hidden": _range(1, 1_000_000), "dropout": SHARE},
    "VGG": {"dropout": SHARE},
    "CrossEntropyLoss": {"label_smoothing": SHARE},
    "FocalLoss": {"gamma": _range(0, 1000)},
    "BCEWithLogitsLoss": {"pos_weight": _range(0, 1e6)},
    "SGD": {**_OPTIMIZER, **_MOMENTUM, "dampening": SHARE},
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Adadelta": {**_WITH_EPS, "rho": SHARE},
    "Adafactor": {**_WITH_EPS, "beta2_decay": {"maximum": 0}, "d": _range(1, 1e6)},
    "Adagrad": {**_WITH_EPS, "lr_decay": _range(0), "initial_accumulator_value": _range(0)},
    "Adamax": _ADAM,
    "ASGD": _OPTIMIZER,
    "Muon": {**_OPTIMIZER, **_MOMENTUM, "betas": BELOW_1, "ns_steps": _range(1, 99)},
    "NAdam": {**_ADAM, "momentum_decay": _range(0)},
    "RAdam": _ADAM,
    "RMSprop": {**_WITH_EPS, **_MOMENTUM, "alpha": BELOW_1},
    "Rprop": {"lr": _range(0), "etas": _above(0), "step_sizes": _range(0)},
    "StepLR": {"step_size": STEPS, "gamma": _range(0, 1e6)},
    "MultiStepLR": {"milestones": STEPS, "gamma": _range(0, 1e6)},
    "ExponentialLR": {"gamma": _range(0, 1e6)},
    "CosineAnnealingLR": {"T_max": STEPS, "eta_min": _range(0)},
    "OneCycleLR": {
        "max_lr": _range(0),
        "pct_start": SHARE,
        "base_momentum": BELOW_1,
        "max_momentum": BELOW_1,
        "div_factor": _above(0),
        "final_div_factor": _above(0),
    },
    "LinearLR": {"start_factor": _above(0, maximum=1), "end_factor": SHARE, "total_iters": STEPS},
    "PolynomialLR": {"total_iters": STEPS, "power": _range(0, 1000)},
    "ReduceLROnPlateau": {
        "factor": BELOW_1,
        "patience": _range(0),
        "threshold": _range(0),
        "cooldown": _range(0),
        "min_lr": _range(0),
        "eps": _range(0),
    },
    "EMA": {"decay": BELOW_1},
    "Lookahead": {"steps": STEPS, "alpha": _above(0, maximum=1)},
    "top_k": {"k": STEPS},
    "calibration_error": {"bins": _range(1, 1_000_000)},
}

OF_TORCH: Mapping[str, str] = {
    "amsgrad": "Divide by the largest mean of squared gradients so far, not by the present one.",
    "alpha": "Both parameters of the Beta distribution that a pair's share is drawn from, above 0.",
    "antialias": "Average pixels where the image shrinks; null is false.",
    "capturable": "Let the step be captured in a CUDA graph; for GPUs only.",
    "center": "[x, y] of the centre in pixels from the upper left corner; null is the middle.",
    "betas": "The decay of the moving means of gradient and squared gradient, 0 to less than 1.",
    "dampening": "The share by which a gradient counts less in the momentum, 0-1.",
    "decoupled_weight_decay": "Shrink the weights themselves, as AdamW, not through the gradient.",
    "degrees": "[least, most] of the angle in degrees, counterclockwise; a number d is [-d, d].",
    "eps": "Added to a divisor, so that it is never 0.",
    "eta_min": "The lowest learning rate.",
    "gamma": "The factor on the learning rate at each decay.",
    "differentiable": "Let gradients pass through the update; no run needs it.",
    "fill": "The value of new pixels, one number or one per channel, 0-255 (after Normalize: its "
    "units); null is 0.",
    "foreach": "Update all parameters at once; null lets PyTorch choose.",
    "fused": "Use the fused kernel; null takes it where it is faster.",
    "interpolation": "How pixels between pixels are computed.",
    "lr": "The learning rate.",
    "magnitude": "The strength of each operation, from 0 to num_magnitude_bins - 1.",
    "maximize": "Climb instead of descend: maximise the loss; false for training.",
    "milestones": "The scheduler's epochs after which the rate changes; a warm-up comes before "
    "them, so that milestone m is epoch m + warmup of the run.",
    "mode": "What of train.monitor is better, min or max; left out, the metric decides.",
    "momentum": "The share of the last update that is kept, 0 or more, less than 1.",
    "num_magnitude_bins": "The number of steps of strength, from none to the strongest.",
    "p": "The probability that an image is changed at all, 0-1.",
    "pad_if_needed": "Pad an image that is smaller than size; else it is an error.",
    "padding": "Pixels added at each border: one number, [left/right, top/bottom], or [left, top, "
    "right, bottom].",
    "padding_mode": "What new pixels hold: fill (constant), the border's pixel, or a mirror image.",
    "policy": "The data set whose published policy is used.",
    "size": "[height, width] of the result in pixels, or one number for both.",
    "step_size": "The scheduler's epochs between two decays; a warm-up comes before them.",
    "threshold_mode": "rel: threshold is a share of the best value; abs: it is a difference.",
    "weight_decay": "The share of each weight that is added to its gradient (L2 penalty).",
    "AdamW.weight_decay": "The share, times lr, by which an update shrinks each weight.",
    "Adafactor.weight_decay": "The share, times lr, by which an update shrinks each weight.",
    "Adafactor.lr": "The largest update, as a share of the parameter; it falls as 1 / sqrt(step).",
    "Adafactor.eps": "[e1, e2]: e1 keeps a division from 0 (null: the type's own), e2 is the least "
    "size of a parameter for the size of its update.",
    "ASGD.alpha": "The power by which the rate falls with the steps.",
    "RMSprop.alpha": "The decay of the moving mean of squared gradients, 0 or more, less than 1.",
    "ColorJitter.brightness": "[least, most] of the factor; a number b is [max(0, 1 - b), 1 + b].",
    "ColorJitter.contrast": "[least, most] of the factor; a number c is [max(0, 1 - c), 1 + c].",
    "ColorJitter.saturation": "[least, most] of the factor; a number s is [max(0, 1 - s), 1 + s].",
    "ColorJitter.hue": "[least, most] of the turn of the colour circle, -0.5 to 0.5; a number h is "
    "[-h, h].",
    "CosineAnnealingLR.T_max": "The epochs until eta_min; left out, all epochs after the warm-up.",
    "GaussianBlur.kernel_size": "[width, height] of the kernel in pixels, odd, or one number.",
    "GaussianBlur.sigma": "[least, most] of the kernel's standard deviation in pixels.",
    "Grayscale.num_output_channels": "1, or 3 for three equal channels.",
    "LinearLR.end_factor": "The factor on the learning rate after total_iters epochs.",
    "LinearLR.start_factor": "The factor on the learning rate in the first epoch, more than 0.",
    "LinearLR.total_iters": "The scheduler's epochs until the rate has end_factor.",
    "OneCycleLR.anneal_strategy": "The form of the curve: cos or linear.",
    "OneCycleLR.max_lr": "The highest learning rate, one number or one per group; left out, "
    "the optimizer's lr.",
    "OneCycleLR.pct_start": "The share of the steps in which the learning rate rises, 0-1.",
    "OneCycleLR.three_phase": "Fall as long as it rose, then fall to the end rate.",
    "PolynomialLR.total_iters": "The epochs until 0; left out, all epochs after the warm-up.",
    "RandomAffine.degrees": "[least, most] of the angle in degrees, clockwise; a number d is "
    "[-d, d].",
    "RandomAffine.scale": "[least, most] of the factor on the size; null keeps the size.",
    "RandomAffine.shear": "[least, most] of the shear in degrees along x, and two more along y; a "
    "number s is [-s, s] along x.",
    "RandomAffine.translate": "[a, b]: shift by at most these shares of width and height, 0-1.",
    "RandomChoice.p": "The weight of each transform; null: all are equally likely.",
    "RandomPerspective.distortion_scale": "How far corners move, as a share of half a side, 0-1.",
    "RandomResizedCrop.ratio": "[least, most] of the crop's width / height.",
    "RandomResizedCrop.scale": "[least, most] of the crop's share of the image's area, 0-1.",
    "RandomRotation.expand": "Enlarge the image so that all of it stays; sizes then differ.",
    "ReduceLROnPlateau.eps": "A smaller change of the learning rate is left out.",
    "ReduceLROnPlateau.min_lr": "The lowest learning rate, one number or one per group.",
    "Adadelta.rho": "The decay of the moving mean of squared gradients, 0-1.",
    "Adafactor.beta2_decay": "The decay of the mean of squared gradients at step t is 1 - t ** "
    "beta2_decay; 0 or less.",
    "Adafactor.d": "Where the root mean square of an update is larger than this, it is scaled to "
    "this.",
    "Adagrad.initial_accumulator_value": "The sum of squared gradients before the first step.",
    "Adagrad.lr_decay": "The rate of step t, from 0 on, is lr / (1 + t * lr_decay).",
    "ASGD.lambd": "How fast the rate falls, with alpha: lr / (1 + lambd * lr * step) ** alpha; it "
    "shrinks the weights too.",
    "ASGD.t0": "The step after which ASGD averages the weights; no answer of a run uses this mean.",
    "NAdam.momentum_decay": "How fast the momentum grows to betas[0] with the steps.",
    "OneCycleLR.base_momentum": "The momentum while the learning rate is highest, one number or "
    "one per group.",
    "OneCycleLR.cycle_momentum": "Lower the momentum while the rate rises, and raise it again.",
    "OneCycleLR.div_factor": "The first learning rate is max_lr / div_factor.",
    "OneCycleLR.final_div_factor": "The last learning rate is the first one / final_div_factor.",
    "OneCycleLR.max_momentum": "The momentum at the start and at the end, one number or one per "
    "group.",
    "PolynomialLR.power": "The rate falls as (1 - epoch / total_iters) ** power; 1 is a line.",
    "RandAugment.num_ops": "The number of operations applied to an image, one after the other.",
    "ReduceLROnPlateau.cooldown": "The epochs after a reduction in which none is counted as bad.",
    "ReduceLROnPlateau.factor": "The factor on the learning rate at each reduction, below 1.",
    "ReduceLROnPlateau.patience": "The epochs without an improvement that are allowed; the next "
    "one reduces the rate.",
    "ReduceLROnPlateau.threshold": "A smaller change of the monitored value is no improvement.",
    "RMSprop.centered": "Divide by the gradient's standard deviation, not by its root mean square.",
    "Rprop.etas": "[shrink, grow]: the factor on a step size where the gradient's sign changed, "
    "and where it stayed.",
    "Rprop.step_sizes": "[least, most] of a weight's step size.",
    "SGD.nesterov": "Look a step ahead with the momentum (Nesterov); needs momentum above 0.",
    "TenCrop.vertical_flip": "Flip the crops upside down, instead of left to right.",
    "Resize.max_size": "With size as one number: the longest side that the result may have.",
    "Resize.size": "[height, width] in pixels: the sides become these, which squashes images of "
    "another aspect ratio. One number: the shorter side, with the aspect ratio kept; then add "
    "CenterCrop for a batch of one size. Letterbox keeps all of the image, with bars.",
}


def limited(schema: Schema, limits: Schema) -> dict[str, Any]:
    """An argument's schema, with the limits on its number, or on a list and each of its numbers."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [limited(inner, limits) for inner in schema["anyOf"]]}
    of_list = {key: limits[key] for key in ("minItems", "maxItems") if key in limits}
    of_number = {key: value for key, value in limits.items() if key not in of_list}
    if schema.get("type") in ("integer", "number") or ("enum" in schema and "enum" in limits):
        return {**schema, **of_number}
    if schema.get("type") != "array":
        return dict(schema)
    if "prefixItems" in schema:
        return {**schema, "prefixItems": [limited(s, of_number) for s in schema["prefixItems"]]}
    return {
        **schema,
        "items": limited(schema.get("items", {"type": "number"}), of_number),
        **of_list,
    }
