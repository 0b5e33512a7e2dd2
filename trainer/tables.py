"""Every loss, optimizer, scheduler, average and metric that a YAML can name; imports no torch.

To add one from torch, add its line; an own one gets its class or function and its line.
"""

LOSSES = {
    "CrossEntropyLoss": "trainer.losses:CrossEntropyLoss",
    "NLLLoss": "trainer.losses:NLLLoss",
    "FocalLoss": "trainer.losses:FocalLoss",
    "BCELoss": "trainer.losses:BCELoss",
    "BCEWithLogitsLoss": "trainer.losses:BCEWithLogitsLoss",
    "MSELoss": "trainer.losses:MSELoss",
    "L1Loss": "trainer.losses:L1Loss",
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
    "Muon": "trainer.optimizers:Muon",
    "NAdam": "torch.optim:NAdam",
    "RAdam": "torch.optim:RAdam",
    "RMSprop": "torch.optim:RMSprop",
    "Rprop": "torch.optim:Rprop",
}

# The two of torch.optim that are left out, so that an error can say why.
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
    "EMA": "trainer.averages:EMA",
    "SWA": "trainer.averages:SWA",
    "Lookahead": "trainer.averages:Lookahead",
}

METRICS = {
    "accuracy": "trainer.metrics:accuracy",
    "top_k": "trainer.metrics:top_k",
    "precision": "trainer.metrics:precision",
    "recall": "trainer.metrics:recall",
    "macro_f1": "trainer.metrics:macro_f1",
    "auroc": "trainer.metrics:auroc",
    "calibration_error": "trainer.metrics:calibration_error",
    "confusion_matrix": "trainer.metrics:confusion_matrix",
}
SCALAR = frozenset(METRICS) - {"confusion_matrix"}  # these can be monitored and drawn as a curve
HIGHER_IS_BETTER = SCALAR - {"calibration_error"}  # of the rest, and of the loss, less is better
