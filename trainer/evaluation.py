"""A finished run judged again, on the very images that its split.json names."""

from pathlib import Path
from typing import Any

import torch

from trainer.config import Config
from trainer.data import check_shapes, eval_loader, load_part
from trainer.job import build_loss, build_model, choose_device
from trainer.judge import judge
from trainer.loop import predict
from trainer.run import load_tensors, read_json


def evaluate_run(run: Path, config: Config, split: str) -> dict[str, Any]:
    """Loss and metrics of the run's best weights on a split, with its eval transforms.

    Raises DataError where the dataset no longer gives the images that the run was split into.
    """
    device = choose_device(config)
    saved = read_json(run / "split.json")
    dataset, part = load_part(config, saved[split])
    # The weights are the run's own: none are drawn, or fetched, only to be replaced.
    arguments = {k: v for k, v in config.model.arguments.items() if k not in ("weights", "init")}
    bare = config.model.model_copy(update={"arguments": arguments})
    config = config.model_copy(update={"model": bare})
    model = build_model(config, dataset.classes, check_shapes(config, part, "eval"))
    model.load_state_dict(load_tensors(run / "model.pt"))
    model.to(device)
    logits, labels = predict(model, eval_loader(config, part, device).epoch(), device)
    label_of = dict(zip(dataset.ids, dataset.labels, strict=True))
    train_labels = [label_of[name] for name in saved["train"] if name in label_of]
    loss_fn = build_loss(config, torch.tensor(train_labels), len(dataset.classes)).to(device)
    return judge(config, logits, labels, loss_fn)
