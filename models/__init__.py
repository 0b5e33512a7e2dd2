"""Tables of the models for ``model.name`` and of the initialisations for ``model.init``.

To add a model: write its class in a file of this folder and add a line here. The trainer
supplies ``num_classes``, ``in_channels`` and ``input_size`` to constructors that ask for them.
Any torchvision or timm classifier is selected as ``torchvision/NAME`` or ``timm/NAME``
(``models/external.py``). Importing this table does not import torch.
"""

MODELS: dict[str, str] = {
    "AlexNet": "models.alexnet:AlexNet",
    "CompactResNet": "models.compact_resnet:CompactResNet",
    "LeNet": "models.lenet:LeNet",
    "MLP": "models.mlp:MLP",
    "ResNet": "models.resnet:ResNet",
    "VGG": "models.vgg:VGG",
}

INITIALISATIONS: tuple[str, ...] = (
    "xavier",
    "kaiming",
    "normal",
    "orthogonal",
    "dirac",
    "whiten",
)
