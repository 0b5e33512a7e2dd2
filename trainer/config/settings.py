"""The sections of a configuration, as types: what each may hold, and what it holds by default."""

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from trainer.components.duration import Duration
from trainer.config.components import NESTING, RESERVED


class Frozen(BaseModel):
    """A section: no other keys, no changes; the text below a field is its help in editors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",  # infinity stays infinity
    )

    def __eq__(self, other: object) -> bool:
        """Equal settings; where and in which order they were written does not matter."""
        return isinstance(other, type(self)) and self.__dict__ == other.__dict__


class Component(Frozen):
    """One part of a run: its name in a table, and the arguments of its constructor.

    In the YAML ``{name: X, **arguments}``, or a bare ``X``. Arguments are plain values, except the
    ``transforms`` of RandomApply and its like, which are components. ``trainer_arguments`` are
    those that the trainer takes itself (RESERVED), such as a model's ``freeze``.
    """

    name: str
    arguments: dict[str, Any] = {}
    trainer_arguments: dict[str, Any] = {}

    _order: dict[str, None] = PrivateAttr(default_factory=dict)  # of the YAML's keys

    @property
    def written(self) -> dict[str, Any]:
        """Arguments of both kinds, in the order of the YAML."""
        both = self.arguments | self.trainer_arguments
        return {key: both[key] for key in {**self._order, **both} if key in both}

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and not isinstance(value.get("arguments"), dict):
            rest = {key: item for key, item in value.items() if key != "name"}
            if value.get("name") in NESTING and isinstance(inner := rest.get("transforms"), list):
                rest["transforms"] = [cls.model_validate(item) for item in inner]
            return {"name": value.get("name"), "arguments": rest}
        return value

    @model_serializer
    def _to_yaml(self) -> dict[str, Any]:
        return {"name": self.name, **self.written}


def _apart(kind: str) -> AfterValidator:
    """Set the trainer's own arguments of a kind of component apart from its constructor's."""

    def set_apart(component: Component) -> Component:
        own, ours = dict(component.arguments), dict(component.trainer_arguments)
        ours |= {key: own.pop(key) for key in RESERVED[kind] if key in own}
        apart = component.model_copy(update={"arguments": own, "trainer_arguments": ours})
        apart._order = dict.fromkeys(component.written)
        return apart

    return AfterValidator(set_apart)


DatasetSettings = Annotated[Component, WithJsonSchema({"component": "dataset"})]
TransformSettings = Annotated[Component, WithJsonSchema({"component": "transform"})]
ModelSettings = Annotated[Component, _apart("model"), WithJsonSchema({"component": "model"})]
LossSettings = Annotated[Component, _apart("loss"), WithJsonSchema({"component": "loss"})]
OptimizerSettings = Annotated[
    Component, _apart("optimizer"), WithJsonSchema({"component": "optimizer"})
]
SchedulerSettings = Annotated[
    Component, _apart("scheduler"), WithJsonSchema({"component": "scheduler"})
]
AverageSettings = Annotated[Component, WithJsonSchema({"component": "average"})]
MetricSettings = Annotated[Component, WithJsonSchema({"component": "metric"})]

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


class SplitSettings(Frozen):
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


class TransformsSettings(Frozen):
    """What happens to images before the model, in order."""

    train: tuple[TransformSettings, ...]
    """For the training split; may be random."""
    eval: tuple[TransformSettings, ...]
    """For val and test, and for use; never random."""


class LoaderSettings(Frozen):
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


class TrainSettings(Frozen):
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


class DistillSettings(Frozen):
    """A teacher, whose answers training follows beside the labels."""

    run: str
    """The run whose best weights teach: its folder, or runs/NAME for the newest of that name."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The teacher's share of the loss; the labels' own has the rest."""
    temperature: Positive = 4.0
    """What both models' logits are divided by: above 1, unlikely classes tell more."""


class EarlyStopSettings(Frozen):
    """Stop when the monitored value no longer gets better."""

    patience: AtLeastOne
    """Epochs without a better value after which training stops."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """How much better counts as better."""


class CheckpointSettings(Frozen):
    """When to save what is needed to resume."""

    every: Annotated[Duration, WithJsonSchema(Duration.schema("st", "ep", "m"))] = Duration(1, "ep")
    """Time between two checkpoints."""
    keep: Annotated[int, Field(ge=2)] = 2
    """How many of the newest are kept."""


LogItem = Literal[
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


class LogSettings(Frozen):
    """What is written while training."""

    every: Annotated[Duration, WithJsonSchema(Duration.schema("st"))] = Duration(20, "st")
    """Steps between two lines of metrics.jsonl and TensorBoard."""
    images: Count = 16
    """Images in a picture of several: training images, predictions. 0 draws no such picture."""
    show: tuple[LogItem, ...] = get_args(LogItem)
    """What TensorBoard shows of the run, and whether its report is written; [] is nothing."""
