"""Reads a configuration for measurements, in which all images have one size; imports no torch."""

import sys
from collections.abc import Sequence

from trainer.config import Config, load_config


def load_without_sizes(file: str, overrides: Sequence[str], quietly: bool = False) -> Config:
    """The configuration without ``train.sizes``; what to know of it goes to standard error."""
    config = load_config(file, overrides, by_user=True)
    told = list(config.messages)
    if config.train.sizes:
        told.append("train.sizes plays no part here: images are as transforms.train gives them")
    if not quietly:
        print(*told, sep="\n", end="\n" * bool(told), file=sys.stderr)
    train = config.train.model_copy(update={"sizes": None})
    return config.model_copy(update={"train": train})
