"""The sections of a configuration, as types: what each may hold, and what it holds by default."""

import re
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from trainer.words import listed

NESTING = ("RandomApply", "RandomChoice", "RandomOrder")  # their `transforms:` are components too


class Duration(NamedTuple):
    """A length of training: ``20st`` steps, ``1ep`` epochs or ``10m`` minutes."""

    value: int
    unit: str  # "st", "ep" or "m"

    def __str__(self) -> str:
        return f"{self.value}{self.unit}"

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """Read ``20st``; raises ValueError for anything else."""
        match = re.fullmatch("([1-9][0-9]{0,8})(st|ep|m)", str(text))
        if match is None:
            raise ValueError("expected a duration such as 20st, 1ep or 10m")
        return cls(int(match[1]), match[2])

    @classmethod
    def schema(cls, *units: str) -> dict[str, Any]:
        """The JSON Schema of a duration in some of the units."""
        examples = {"st": "20st", "ep": "1ep", "m": "10m"}
        names = {"st": "steps", "ep": "epochs", "m": "minutes"}
        return {
            "type": "string",
            "$comment": f"a whole number of {listed([names[unit] for unit in units], 'or')}",
            "pattern": f"^[1-9][0-9]{{0,8}}({'|'.join(units)})$",
            "examples": [examples[unit] for unit in units],
        }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema(when_used="always")
        )


class Frozen(BaseModel):
    """A section: no other keys, no changes; the text below a field is its help in editors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",  # infinity stays infinity
    )


class Component(Frozen):
    """One part of a run, by its name in a table, with the arguments of its constructor.

    In the YAML ``{name: X, **arguments}``, or a bare ``X``. Arguments are plain values, except the
    ``transforms`` of RandomApply and its like (components) and a scheduler's ``warmup`` (Duration).
    """

    name: str
    arguments: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and not isinstance(value.get("arguments"), dict):
            rest = {key: item for key, item in value.items() if key != "name"}
            return {"name": value.get("name"), "arguments": rest}
        return value

    @model_serializer
    def _to_yaml(self) -> dict[str, Any]:
        arguments = {
            key: str(value) if isinstance(value, Duration) else value
            for key, value in self.arguments.items()
        }
        return {"name": self.name, **arguments}


def _with_inner_transforms(component: Component) -> Component:
    arguments = component.arguments
    if component.name in NESTING and isinstance(inner := arguments.get("transforms"), list):
        built = [_with_inner_transforms(Component.model_validate(item)) for item in inner]
        return component.model_copy(update={"arguments": {**arguments, "transforms": built}})
    return component


def _with_warmup(component: Component) -> Component:
    arguments = component.arguments
    if isinstance(warmup := arguments.get("warmup"), str):
        arguments = {**arguments, "warmup": Duration.parse(warmup)}
        return component.model_copy(update={"arguments": arguments})
    return component


Dataset = Annotated[Component, WithJsonSchema({"component": "dataset"})]
Transform = Annotated[
    Component, AfterValidator(_with_inner_transforms), WithJsonSchema({"component": "transform"})
]
Model = Annotated[Component, WithJsonSchema({"component": "model"})]
Loss = Annotated[Component, WithJsonSchema({"component": "loss"})]
Optimizer = Annotated[Component, WithJsonSchema({"component": "optimizer"})]
Scheduler = Annotated[
    Component, AfterValidator(_with_warmup), WithJsonSchema({"component": "scheduler"})
]
Average = Annotated[Component, WithJsonSchema({"component": "average"})]
Metric = Annotated[Component, WithJsonSchema({"component": "metric"})]

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


class Split(Frozen):
    """How samples are cut into train, val and test."""

    ratios: tuple[Positive, Positive, Annotated[float, Field(ge=0)]] = (8, 1, 1)
    """Shares of train, val and test; only their ratio matters."""
    seed: Count = 0
    """Decides which samples are held out; the run's own seed never moves one."""
    pool: bool = False
    """Cut everything anew, instead of keeping an official test set."""
    folds: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Cut into so many equal folds, for cross-validation; ratios play no part then. null does not.
    At least 3; where an official test set is kept, 2."""
    fold: Count | None = None
    """Which fold, from 0, is test (or val, where an official test set is kept); the next is val."""

    @model_serializer(mode="wrap")
    def _without_idle_ratios(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The ratios may not be given beside folds, so that a dump must not."""
        section: dict[str, Any] = dumped(self)
        idle = {"ratios"} if self.folds is not None else set()
        return {key: value for key, value in section.items() if key not in idle}


class Transforms(Frozen):
    """What happens to images before the model, in order."""

    train: tuple[Transform, ...]
    """For the training split; may be random."""
    eval: tuple[Transform, ...]
    """For val and test, and for use; never random."""


class Loader(Frozen):
    """How batches are made."""

    batch_size: AtLeastOne = 32
    """Images of an optimizer step, over all processes."""
    eval_batch_size: AtLeastOne | None = None
    """Images of a batch that is only judged; null chooses one that fits. Changes no result."""
    workers: Count | Literal["auto"] = "auto"
    """Processes that transform images; 0 does it in the training process."""
    cache: Literal["auto", "ram", "device", "off"] = "auto"
    """Where decoded images are kept: auto on the device, or in memory, where they fit."""
    drop_last: bool = False
    """Leave out an epoch's last batch when it is not full."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """What an epoch trains on: every image once, or as many images, every class equally often."""


class Train(Frozen):
    """The training itself."""

    epochs: AtLeastOne
    """Passes over the training split."""
    device: (
        Literal["auto", "cpu", "cuda", "mps"]
        | Annotated[str, Field(pattern="^cuda:[0-9]{1,3}$", examples=["cuda:1"])]
    ) = "auto"
    """Where to compute; auto takes a GPU where there is one, a named one must be there."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """The number format of the arithmetic; weights stay fp32. bf16 suits newer GPUs, fp16 older."""
    compile: (
        bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
    ) = False
    """Have PyTorch's compiler speed the training step up, in one of its modes; true is default."""
    cuda_graphs: bool = False
    """Replay the step of a small model as one piece of work for the GPU; no effect on a CPU."""
    activation_checkpointing: bool = False
    """Compute the insides of the model's blocks twice, to save memory."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes (torchrun) share a model: each has it all, or a part (it is larger)."""
    sync_batch_norm: bool = False
    """Take batch norm's statistics over all processes' images, not each one's own; needs GPUs."""
    threads: AtLeastOne | Literal["auto"] = "auto"
    """CPU threads of the arithmetic; auto is PyTorch's choice. Sums may differ in the last bits."""
    channels_last: bool | Literal["auto"] = "auto"
    """Keep a pixel's channels together in memory; auto does for convolutions on a CPU."""
    accumulate: AtLeastOne = 1
    """Parts in which a batch goes through the model, to save memory."""
    clip_grad_norm: Positive | None = None
    """The largest length of the gradient; null does not limit it."""
    skip_non_finite: Count = 0
    """How many steps of a NaN or infinite loss or gradient to leave out; one more ends the run."""
    budget: Annotated[Duration, WithJsonSchema(Duration.schema("m"))] | None = None
    """Time after which the run saves, and stops to be resumed, such as 30m; null sets none."""
    monitor: str = "val/accuracy"
    """What decides which epoch is the best: val/loss or val/METRIC; default the first metric.
    Of equal epochs the one of lower val/loss is."""


class Distill(Frozen):
    """A teacher, whose answers training follows beside the labels."""

    run: str
    """The run whose best weights teach: its folder, or runs/NAME for the newest of that name."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The teacher's share of the loss; the labels' own has the rest."""
    temperature: Positive = 4.0
    """What both models' logits are divided by: above 1, unlikely classes tell more."""


class EarlyStop(Frozen):
    """Stop when the monitored value no longer gets better."""

    patience: AtLeastOne
    """Epochs without a better value after which training stops."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """How much better counts as better."""


class Checkpoint(Frozen):
    """When to save what is needed to resume."""

    every: Annotated[Duration, WithJsonSchema(Duration.schema("st", "ep", "m"))] = Duration(1, "ep")
    """Time between two checkpoints."""
    keep: Annotated[int, Field(ge=2)] = 2
    """How many of the newest are kept."""


Shown = Literal[
    "scalars",
    "text",
    "hparams",
    "inputs",
    "graph",
    "histograms",
    "kernels",
    "feature_maps",
    "predictions",
    "confusion_matrix",
    "pr_curves",
    "embedding",
    "report",
]


class Log(Frozen):
    """What is written while training."""

    every: Annotated[Duration, WithJsonSchema(Duration.schema("st"))] = Duration(20, "st")
    """Steps between two lines of metrics.jsonl and TensorBoard."""
    images: Count = 16
    """Images in a picture of several: training images, predictions. 0 draws no such picture."""
    show: tuple[Shown, ...] = get_args(Shown)
    """What TensorBoard shows of the run, and whether its report is written; [] is nothing."""
