"""Turns tensors and settings into what TensorBoard's dashboards read: one function per kind."""

import html
import json
import math
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils.tensorboard.summary as summary
from PIL import Image
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.types_pb2 import DT_FLOAT
from tensorboard.compat.proto.versions_pb2 import VersionDef
from tensorboard.plugins.hparams.api_pb2 import DataType, Experiment, MetricName, Status
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.plugins.pr_curve.plugin_data_pb2 import PrCurvePluginData
from torch import Tensor, nn
from torch.utils.tensorboard._pytorch_graph import parse

from trainer.components import OF_EACH_CLASS
from trainer.components.decisions import are_of_class
from trainer.config import Config
from trainer.drawing.pictures import png
from trainer.insight.features import evaluating
from trainer.process.words import visible

BINS = 50  # of a histogram; TensorBoard draws 30
ELEMENTS = 32_000  # values of a tensor in a histogram, at most: torch counts these on one thread
THRESHOLDS = 127  # of a PR curve; TensorBoard reads no more
NO_CHOICE = (  # settings that people do not vary; TensorBoard shows only five of the others
    *("name", "log.", "checkpoint.", "metrics", "dataset.root", "dataset.draw_if_absent"),
    *("loader.workers", "loader.cache", "loader.eval_batch_size", "store."),
    *("train.device", "train.threads", "train.budget", "train.skip_non_finite"),
)
SHOWN_FIRST = "optimizer.lr"
OFF = ("null", "false", "shuffle")
MAX_PR_CURVES = 20  # the first so many classes get a PR curve
_PR_CURVE = PrCurvePluginData(version=0, num_thresholds=THRESHOLDS).SerializeToString()
_SHARES = [min(1.0, (255 - grey) / (255 - 43)) for grey in range(256)]  # 43 is the blue's grey
_BLUES = [round(255 + share * (c - 255)) for share in _SHARES for c in (8, 48, 107)]


def picture(tag: str, made: Image.Image) -> Any:
    """Return a picture for the images dashboard."""
    encoded = Summary.Image(
        encoded_image_string=png(made), width=made.width, height=made.height, colorspace=3
    )
    return Summary(value=[Summary.Value(tag=tag, image=encoded)])


def in_blue(made: Image.Image) -> Image.Image:
    """Return the picture in white to dark blue, one byte per pixel: written 5 times faster."""
    one_plane = made.convert("L")
    one_plane.putpalette(_BLUES)
    return one_plane


def histogram(tag: str, tensor: Tensor) -> Any | None:
    """Return a histogram of a tensor's finite numbers, of at most ELEMENTS; None without any."""
    values = tensor.detach().flatten()
    values = values[:: math.ceil(len(values) / ELEMENTS) or 1].float().cpu()
    if not (total := values.sum()).isfinite():
        values = values[values.isfinite()]
        total = values.sum()
    if not len(values):
        return None
    low, high = (end.item() for end in values.aminmax())
    if low < high:
        counts = torch.histc(values, BINS, low, high).tolist()
        limits = torch.linspace(low, high, BINS + 1, dtype=torch.float64)[1:].tolist()
    else:
        counts, limits = [float(len(values))], [high]
    square = torch.dot(values, values).item()
    numbers = (low, high, len(values), total.item(), square, limits, counts)
    return summary.histogram_raw(tag, *numbers)  # type: ignore[no-untyped-call]


def pr_curves(tag: str, chances: Tensor, labels: Tensor, classes: Sequence[str]) -> Iterator[Any]:
    """Yield precision and recall over the threshold, one class against the rest.

    chances (N, K) are probabilities; labels (N,) int64, or (N, K) of several. Only the first
    MAX_PR_CURVES classes.
    """
    numbers = torch.arange(min(len(classes), MAX_PR_CURVES))
    chances = chances[:, : len(numbers)]
    places = (chances.nan_to_num(0) * (THRESHOLDS - 1)).long()
    places = places.clamp(0, THRESHOLDS - 1) + numbers * THRESHOLDS
    is_of_class = are_of_class(chances, labels)[:, : len(numbers)]

    def above(chosen: Tensor) -> Tensor:  # (K, THRESHOLDS): counts at or above each threshold
        counts = chosen.bincount(minlength=len(numbers) * THRESHOLDS)
        return counts.view(-1, THRESHOLDS).flip(1).cumsum(1).flip(1).double()

    right = above(places[is_of_class])
    wrong = above(places.flatten()) - right
    missed, rejected = right[:, :1] - right, wrong[:, :1] - wrong
    precision = right / (right + wrong).clamp_min(1e-7)
    recall = right / (right + missed).clamp_min(1e-7)
    curves = torch.stack([right, wrong, rejected, missed, precision, recall], dim=1).float()
    for name, curve in zip(classes, curves.numpy(), strict=False):
        # summary.pr_curve_raw turns each value into a Python number: three times as slow.
        plugin = SummaryMetadata.PluginData(plugin_name="pr_curves", content=_PR_CURVE)
        value = Summary.Value(
            tag=f"{tag}/{visible(name)}", metadata=SummaryMetadata(plugin_data=plugin)
        )
        value.tensor.dtype = DT_FLOAT
        for size in curve.shape:
            value.tensor.tensor_shape.dim.add(size=size)
        value.tensor.tensor_content = curve.tobytes()
        yield Summary(value=[value])


def graph(model: nn.Module, input_shape: tuple[int, int, int], device: torch.device) -> bytes:
    """Return the model as a GraphDef, traced in eval mode with one image; raises as torch does."""
    inputs = (torch.zeros(1, *input_shape, device=device),)
    with evaluating(model, device), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and sizes become constants
        # check_trace would trace again, and find differences in a transformer with the same graph.
        trace = torch.jit.trace(model, inputs, strict=False, check_trace=False)  # type: ignore[no-untyped-call]
        traced = trace.graph
        torch._C._jit_pass_inline(traced)
        nodes = parse(traced, trace, inputs)  # type: ignore[no-untyped-call]
    definition: bytes = GraphDef(node=nodes, versions=VersionDef(producer=22)).SerializeToString()
    return definition


def curves_together(config: Config) -> Any:
    """Return the layout of the custom scalars: curves that belong together share a chart."""
    metrics = [metric.name for metric in config.metrics if metric.name not in OF_EACH_CLASS]
    charts = {"loss": ["train/loss_epoch", "val/loss"]}
    charts |= {name: [f"val/{name}"] for name in metrics}
    if "accuracy" in charts:
        charts["accuracy"].insert(0, "train/accuracy_epoch")
    charts |= {"learning rate": ["lr/group.*"], "gradient norm": ["train/gradient_norm"]}
    layout = {title: ["Multiline", [f"{tag}$" for tag in tags]] for title, tags in charts.items()}
    return summary.custom_scalars({"Training": layout})  # type: ignore[no-untyped-call]


def hyperparameters(config: Config) -> dict[str, float | str]:
    """Return the settings that people vary, if they are on, flat: ``{"optimizer.lr": 0.05}``."""
    values = _flat_settings("", config.model_dump(mode="json"))
    return {key: v for key, v in values if not key.startswith(NO_CHOICE) and v not in OFF}


def hparams(config: Config) -> list[Any]:
    """Return what the HParams dashboard reads of a run, whose metrics are curves of other tags.

    TensorBoard shows five settings unless it is asked for more: those that are said to differ, then
    the others by their names. Only the rate is said to differ.
    """
    experiment, start = Experiment(), SessionStartInfo()
    for name, value in hyperparameters(config).items():
        kind = "string" if isinstance(value, str) else "number"
        setattr(start.hparams[name], f"{kind}_value", value)
        data_type = DataType.DATA_TYPE_STRING if kind == "string" else DataType.DATA_TYPE_FLOAT64
        experiment.hparam_infos.add(name=name, type=data_type, differs=name == SHOWN_FIRST)
    for tag in metrics_of(config):
        experiment.metric_infos.add(name=MetricName(tag=tag))
    end = SessionEndInfo(status=Status.STATUS_SUCCESS)
    parts = {"experiment": experiment, "session_start_info": start, "session_end_info": end}
    return [_hparams_part(name, part) for name, part in parts.items()]


def _hparams_part(name: str, part: Any) -> Any:
    # summary.hparams imports half of TensorBoard for the name of its plugin: 50 ms.
    content = HParamsPluginData(version=0, **{name: part}).SerializeToString()
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content)
    metadata = SummaryMetadata(plugin_data=plugin)
    return Summary(value=[Summary.Value(tag=f"_hparams_/{name}", metadata=metadata)])


def _flat_settings(path: str, value: Any) -> Iterator[tuple[str, float | str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat_settings(f"{path}.{key}" if path else key, inner)
    elif isinstance(value, list):
        yield path, visible(", ".join(map(_in_short, value)))
    elif isinstance(value, bool) or value is None:  # TensorBoard shows 1.0000, and leaves None out
        yield path, json.dumps(value)
    else:
        yield path, value if isinstance(value, int | float) else visible(str(value))


def _in_short(item: Any) -> str:
    """Return a component as ``Resize(size=[32, 32])``, any other value as the YAML has it."""
    if isinstance(item, dict) and "name" in item:
        arguments = [f"{key}={_in_short(value)}" for key, value in item.items() if key != "name"]
        return f"{item['name']}({', '.join(arguments)})" if arguments else str(item["name"])
    if isinstance(item, list):
        return f"[{', '.join(map(_in_short, item))}]"
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)


def metrics_of(config: Config) -> list[str]:
    """Return the tags of the metrics by which runs are compared, what decides the best first."""
    names = [metric.name for metric in config.metrics if metric.name not in OF_EACH_CLASS]
    tags = [f"{split}/{name}" for name in [*names, "loss"] for split in ("val", "test")]
    first = config.train.monitor.removeprefix("val/")
    return sorted(tags, key=lambda tag: not tag.endswith(f"/{first}"))


def code(text: str) -> str:
    """Return Markdown that shows a text as it is."""
    return "\n".join(f"    {visible(line)}" for line in text.splitlines())


def name_value_table(values: Mapping[str, Any]) -> str:
    """Return a Markdown table of names and values; items of a list or mapping get a line each."""
    lines = ["| | |", "|---|---|"]
    for key, value in values.items():
        if key == "command" and isinstance(value, list):
            value = shlex.join(map(str, value))
        elif isinstance(value, dict):
            value = [f"{name} {content}" for name, content in value.items()]
        items = value if isinstance(value, list) else [value]
        lines.append(f"| {_without_markup(key)} | {'<br>'.join(map(_without_markup, items))} |")
    return "\n".join(lines)


def _without_markup(value: object) -> str:
    """Return text with all markup of HTML and Markdown escaped."""
    escaped = html.escape(visible(str(value)), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", escaped).replace("\\|", "&#124;")
