"""What numbers the arguments of components may be, where a constructor does not say so itself."""

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
FILL = _range(0, 255, minItems=1)
FACTOR = _range(0, 1000, **PAIR)
ANGLE = _range(-360, 360, **PAIR)
STEPS = _range(1, 1_000_000_000)
LEVELS = _range(2, 1000)

_OPTIMIZER: Mapping[str, Schema] = {
    "lr": _range(0),
    "momentum": _range(0),
    "dampening": _range(0, 1),
    "weight_decay": _range(0),
    "betas": BELOW_1,
    "eps": _range(0),
}
_CROP = {"size": SIDE}
# Of tensors torchvision warps by these two only.
_WARP = {"interpolation": {"enum": ["nearest", "bilinear"]}, "fill": FILL}
_SCALE = {"interpolation": {"enum": ["nearest", "nearest-exact", "bilinear", "bicubic"]}}
_AUGMENT = {"num_magnitude_bins": LEVELS, **_WARP}

RANGES: Mapping[str, Mapping[str, Schema]] = {
    "Resize": {"size": SIDE, "max_size": _range(1, 10_000), **_SCALE},
    "CenterCrop": _CROP,
    "FiveCrop": _CROP,
    "TenCrop": _CROP,
    "Letterbox": {"size": _range(1, 10_000, **PAIR), "fill": FILL},
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
        "value": _range(0, 1, minItems=1),
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
    "MLP": {"hidden": _range(1, 1_000_000), "dropout": SHARE},
    "VGG": {"dropout": SHARE},
    "CrossEntropyLoss": {"label_smoothing": SHARE},
    "FocalLoss": {"gamma": _range(0, 1000)},
    "BCEWithLogitsLoss": {"pos_weight": _range(0, 1e6)},
    "SGD": _OPTIMIZER,
    "Adam": _OPTIMIZER,
    "AdamW": _OPTIMIZER,
    "Adadelta": {**_OPTIMIZER, "rho": SHARE},
    "Adafactor": {**_OPTIMIZER, "beta2_decay": {"maximum": 0}, "d": _range(1, 1e6)},
    "Adagrad": {**_OPTIMIZER, "lr_decay": _range(0), "initial_accumulator_value": _range(0)},
    "Adamax": _OPTIMIZER,
    "ASGD": _OPTIMIZER,
    "Muon": {**_OPTIMIZER, "ns_steps": _range(1, 99)},
    "NAdam": {**_OPTIMIZER, "momentum_decay": _range(0)},
    "RAdam": _OPTIMIZER,
    "RMSprop": {**_OPTIMIZER, "alpha": BELOW_1},
    "Rprop": {"lr": _range(0), "etas": _above(0), "step_sizes": _above(0)},
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
