"""Descriptions of arguments of PyTorch's and torchvision's components, where theirs do not help.

Theirs is cut to its first sentence, which may say nothing ("How much to jitter hue."), or speaks of
what a YAML cannot give. A key is an argument, or ``Component.argument``, which counts first.
"""

from collections.abc import Mapping

OF_TORCH: Mapping[str, str] = {
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
    "Resize.max_size": "With size as one number: the longest side that the result may have.",
    "Resize.size": "[height, width] in pixels: the sides become these, which squashes images of "
    "another aspect ratio. One number: the shorter side, with the aspect ratio kept; then add "
    "CenterCrop for a batch of one size. Letterbox keeps all of the image, with bars.",
}
