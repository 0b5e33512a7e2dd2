"""Tables of the transforms for ``transforms.train`` and ``transforms.eval``.

To add one: write its class in ``own.py`` (or point to torchvision's), and add a line here. A random
one without a kernel in ``batched.py`` runs per sample. Importing this module does not import torch.
"""

_V2 = "torchvision.transforms.v2"

# Always the same output for the same image. The leading ones run once per sample and are cached.
FIXED: dict[str, str] = {
    "Resize": f"{_V2}:Resize",
    "CenterCrop": f"{_V2}:CenterCrop",
    "FiveCrop": f"{_V2}:FiveCrop",
    "TenCrop": f"{_V2}:TenCrop",
    "Pad": f"{_V2}:Pad",
    "Grayscale": f"{_V2}:Grayscale",
    "LinearTransformation": "transforms.own:LinearTransformation",
    "Normalize": "transforms.own:Normalize",
    "Letterbox": "transforms.own:Letterbox",
    "ToTensor": "transforms.own:ToTensor",
    "ToImage": "transforms.own:ToImage",
    "ToDtype": "transforms.own:ToDtype",
}

# Random for each sample in each epoch: for training only.
RANDOM: dict[str, str] = {
    "RandomCrop": f"{_V2}:RandomCrop",
    "RandomResizedCrop": f"{_V2}:RandomResizedCrop",
    "RandomHorizontalFlip": "transforms.own:RandomHorizontalFlip",
    "RandomVerticalFlip": "transforms.own:RandomVerticalFlip",
    "RandomRotation": f"{_V2}:RandomRotation",
    "RandomAffine": f"{_V2}:RandomAffine",
    "RandomPerspective": f"{_V2}:RandomPerspective",
    "ColorJitter": f"{_V2}:ColorJitter",
    "RandomGrayscale": f"{_V2}:RandomGrayscale",
    "GaussianBlur": f"{_V2}:GaussianBlur",
    "RandomErasing": "transforms.own:RandomErasing",
    "RandomApply": f"{_V2}:RandomApply",
    "RandomChoice": f"{_V2}:RandomChoice",
    "RandomOrder": f"{_V2}:RandomOrder",
    "RandAugment": f"{_V2}:RandAugment",
    "TrivialAugmentWide": f"{_V2}:TrivialAugmentWide",
    "AutoAugment": f"{_V2}:AutoAugment",
    "SaltPepperNoise": "transforms.own:SaltPepperNoise",
    "AlternatingFlip": "transforms.own:AlternatingFlip",
}

# Mix images and labels of one batch: for training only. Labels become class probabilities.
MIXING: dict[str, str] = {
    "MixUp": f"{_V2}:MixUp",
    "CutMix": f"{_V2}:CutMix",
}

TRANSFORMS: dict[str, str] = {**FIXED, **RANDOM, **MIXING}

# Classes of users' own files that always give the same. A class is in one file: no names can clash.
OWN_FIXED: set[object] = set()


def is_fixed(transform: object) -> bool:
    """Whether a transform always gives the same output for the same image."""
    return type(transform).__name__ in FIXED or type(transform) in OWN_FIXED
