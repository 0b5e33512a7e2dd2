"""Every loss, optimizer, scheduler, average and metric that a YAML can name; imports no torch.

To add one of torch's, add its line. To add a new one, write its class or function, and its line.
"""

LOSSES = {
    "CrossEntropyLoss": "trainer.components.losses:CrossEntropyLoss",
    "NLLLoss": "trainer.components.losses:NLLLoss",
    "FocalLoss": "trainer.components.losses:FocalLoss",
    "BCELoss": "trainer.components.losses:BCELoss",
    "BCEWithLogitsLoss": "trainer.components.losses:BCEWithLogitsLoss",
    "SigmoidFocalLoss": "trainer.components.losses:SigmoidFocalLoss",
    "AsymmetricLoss": "trainer.components.losses:AsymmetricLoss",
    "MSELoss": "trainer.components.losses:MSELoss",
    "L1Loss": "trainer.components.losses:L1Loss",
}

OPTIMIZERS = {
    "SGD": "torch.optim:SGD",
    "Adam": "torch.optim:Adam",
    "AdamW": "torch.optim:AdamW",
    "Adadelta": "torch.optim:Adadelta",
    "Adafactor": "torch.optim:Adafactor",
    "Adagrad": "torch.optim:Adagrad",
    "Adamax": "torch.optim:Adamax",
    "ASGD": "torch.optim:ASGD",
    "Muon": "trainer.components.optimizers:Muon",
    "NAdam": "torch.optim:NAdam",
    "RAdam": "torch.optim:RAdam",
    "RMSprop": "torch.optim:RMSprop",
    "Rprop": "torch.optim:Rprop",
}

# Optimizers of torch.optim that cannot be used, and the reason for the error message.
UNSUPPORTED_OPTIMIZERS = {
    "LBFGS": "it evaluates the loss several times a step through a closure; use SGD or AdamW",
    "SparseAdam": "it takes sparse gradients only, and image models have dense ones; use Adam",
}

SCHEDULERS = {
    "StepLR": "torch.optim.lr_scheduler:StepLR",
    "MultiStepLR": "torch.optim.lr_scheduler:MultiStepLR",
    "ExponentialLR": "torch.optim.lr_scheduler:ExponentialLR",
    "CosineAnnealingLR": "torch.optim.lr_scheduler:CosineAnnealingLR",
    "OneCycleLR": "torch.optim.lr_scheduler:OneCycleLR",
    "LinearLR": "torch.optim.lr_scheduler:LinearLR",
    "PolynomialLR": "torch.optim.lr_scheduler:PolynomialLR",
    "ReduceLROnPlateau": "torch.optim.lr_scheduler:ReduceLROnPlateau",
}

AVERAGES = {
    "EMA": "trainer.components.averages:EMA",
    "SWA": "trainer.components.averages:SWA",
    "Lookahead": "trainer.components.averages:Lookahead",
}

METRICS = {
    "accuracy": "trainer.components.metrics:accuracy",
    "top_k": "trainer.components.metrics:top_k",
    "precision": "trainer.components.metrics:precision",
    "recall": "trainer.components.metrics:recall",
    "macro_f1": "trainer.components.metrics:macro_f1",
    "micro_f1": "trainer.components.metrics:micro_f1",
    "balanced_accuracy": "trainer.components.metrics:balanced_accuracy",
    "matthews": "trainer.components.metrics:matthews",
    "quadratic_kappa": "trainer.components.metrics:quadratic_kappa",
    "auroc": "trainer.components.metrics:auroc",
    "mean_average_precision": "trainer.components.metrics:mean_average_precision",
    "average_precision": "trainer.components.metrics:average_precision",
    "brier": "trainer.components.metrics:brier",
    "nll": "trainer.components.metrics:nll",
    "calibration_error": "trainer.components.metrics:calibration_error",
    "confusion_matrix": "trainer.components.metrics:confusion_matrix",
}
OF_EACH_CLASS = frozenset({"confusion_matrix", "average_precision"})  # not one number
# These can be monitored and drawn as a curve; so can those of a user's own file.
SCALAR = frozenset(METRICS) - OF_EACH_CLASS
LESS_IS_BETTER = frozenset({"loss", "calibration_error", "brier", "nll"})
# Of the rest, and of the loss, less is better. Of a metric of one's own, more is.
HIGHER_IS_BETTER = SCALAR - LESS_IS_BETTER
# These rank the classes of an image, or need one true class: not where it has several labels.
OF_ONE_CLASS = ("top_k", "balanced_accuracy", "matthews", "quadratic_kappa")

# These train one sigmoid a class. Only they fit images that may have several labels.
OF_SEVERAL_LABELS = ("BCEWithLogitsLoss", "BCELoss", "SigmoidFocalLoss", "AsymmetricLoss")

# How unlike the known images an image is: ``novelty`` measures them, and the first is the default.
SCORES = ("distance", "energy", "max_logit")
# How ``explain`` finds what speaks for a class.
EVIDENCE = ("grad_cam", "integrated_gradients", "occlusion")


def is_higher_better(monitor: str) -> bool:
    """Whether a larger value of ``train.monitor``, such as "val/accuracy", is better."""
    return monitor.removeprefix("val/") not in LESS_IS_BETTER
