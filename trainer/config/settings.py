"""The sections of a YAML file. A class is a section, a field is a key: its type, default and help.

``Config`` in config.py joins them. A Duration is in steps (20st), epochs (1ep) or minutes (30m).
"""

from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, WithJsonSchema

from trainer.components.duration import Duration
from trainer.components.own import OwnFile
from trainer.config.components import GROUP, NESTING, OWN_FILE, RESERVED


class Frozen(pydantic.BaseModel):
    """Base class of sections: unknown keys are errors, values are fixed, docstrings are help."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",  # infinity stays infinity
    )

    def __eq__(self, other: object) -> bool:
        """Equal settings; where and in which order they were written does not matter."""
        return isinstance(other, type(self)) and self.__dict__ == other.__dict__


class Component(Frozen):
    """A component of a run: its name in a table, and the arguments of its constructor.

    The YAML has ``{name: X, **arguments}``, or a bare ``X``. Arguments are plain values; only the
    ``transforms`` of RandomApply, RandomChoice and RandomOrder are components. The trainer itself
    uses ``trainer_arguments`` (RESERVED), such as a model's ``freeze``.
    """

    name: str
    arguments: dict[str, Any] = {}
    trainer_arguments: dict[str, Any] = {}

    _order: dict[str, None] = pydantic.PrivateAttr(default_factory=dict)  # the YAML's order of keys

    _own: OwnFile | None = pydantic.PrivateAttr(default=None)

    @property
    def own(self) -> OwnFile | None:
        """The user's file that has the component; None if it is one of the project's."""
        return self._own

    @property
    def written(self) -> dict[str, Any]:
        """Arguments of both kinds, in the order of the YAML."""
        both = self.arguments | self.trainer_arguments
        return {key: both[key] for key in {**self._order, **both} if key in both}

    @pydantic.model_validator(mode="before")
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

    @pydantic.model_serializer
    def _to_yaml(self) -> dict[str, Any]:
        return {"name": self.name, **self.written}


def _separate(kind: str) -> AfterValidator:
    """A validator that moves RESERVED arguments from ``arguments`` to ``trainer_arguments``."""

    def move(component: Component) -> Component:
        own, ours = dict(component.arguments), dict(component.trainer_arguments)
        ours |= {key: own.pop(key) for key in RESERVED[kind] if key in own}
        separated = component.model_copy(update={"arguments": own, "trainer_arguments": ours})
        separated._order = dict.fromkeys(component.written)
        return separated

    return AfterValidator(move)


DatasetSettings = Annotated[
    Component, _separate("dataset"), WithJsonSchema({"component": "dataset"})
]
TransformSettings = Annotated[Component, WithJsonSchema({"component": "transform"})]
ModelSettings = Annotated[Component, _separate("model"), WithJsonSchema({"component": "model"})]
LossSettings = Annotated[Component, _separate("loss"), WithJsonSchema({"component": "loss"})]
OptimizerSettings = Annotated[
    Component, _separate("optimizer"), WithJsonSchema({"component": "optimizer"})
]
SchedulerSettings = Annotated[
    Component, _separate("scheduler"), WithJsonSchema({"component": "scheduler"})
]
AverageSettings = Annotated[Component, WithJsonSchema({"component": "average"})]
MetricSettings = Annotated[Component, WithJsonSchema({"component": "metric"})]


class OwnSettings(Frozen):
    """The file of own components, and the content that a run was trained with."""

    file: str
    sha256: str | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value


OwnComponents = Annotated[OwnSettings | None, WithJsonSchema(OWN_FILE)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
ImageSide = Annotated[int, Field(ge=1, le=4096)]


class SplitSettings(Frozen):
    """How samples are split into train, val and test."""

    ratios: tuple[Positive, Positive, Annotated[float, Field(ge=0)]] = (8, 1, 1)
    """Shares of train, val and test; only their ratio matters."""
    seed: Count = 0
    """Decides which samples are in val and test; the run's own seed does not."""
    by: Literal["auto", "content", "name"] = "auto"
    """What a sample is known by: a hash of its file's content, or its name. auto takes names if the
    files have more than 4 GiB together, for reading all of them would delay the first step."""
    pool: bool = False
    """Split all samples anew, instead of keeping an official test set."""
    folds: Annotated[int, Field(ge=2, le=1000)] | None = None
    """The number of folds of a cross-validation, instead of ratios; null splits by ratios. A
    hash of the content decides, so the folds' sizes differ. At least 3, or 2 if an official test
    set is kept."""
    fold: Count | None = None
    """The fold, from 0, that is test, or val if an official test set is kept. The next is val."""
    group: Annotated[Literal["duplicates"] | dict[str, str | int] | None, WithJsonSchema(GROUP)] = (
        None
    )
    """Images that must share a split: {column: NAME} of the dataset's table, {folder: N} for the
    first N folders below the class folder, {regex: PATTERN} for its first parentheses in the
    file's name, or duplicates: similar images. null has no groups, beside equal files."""

    @pydantic.model_serializer(mode="wrap")
    def _without_idle_ratios(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out ratios beside folds: a YAML may not have both, so a dump may not either."""
        section: dict[str, Any] = dumped(self)
        idle = {"ratios"} if self.folds is not None else set()
        return {key: value for key, value in section.items() if key not in idle}


class TransformsSettings(Frozen):
    """The transforms of images before the model, in order.

    ``load_config`` puts ``both`` into ``train`` and ``eval``, so it is empty afterwards.
    """

    both: Annotated[tuple[Literal["own"] | TransformSettings, ...], Field(exclude=True)] = ()
    """Steps of train and of eval, never random, written once. The item own is where the steps of
    train, or of eval, come; without it they come at the end."""
    train: tuple[TransformSettings, ...] = ()
    """For the training split; may be random. Beside both, only what both lacks."""
    eval: tuple[TransformSettings, ...] = ()
    """For val, test and prediction; never random. Beside both, only what both lacks."""


class LoaderSettings(Frozen):
    """How batches are made."""

    batch_size: AtLeastOne = 32
    """Images per optimizer step, over all processes; batch norm needs 16 or more at once."""
    eval_batch_size: AtLeastOne | None = None
    """Images per batch in evaluation; null chooses a size that fits. Changes no result."""
    workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = "auto"
    """Processes that transform images; with 0 the training process does it."""
    cache: Literal["auto", "ram", "device", "store", "off"] = "auto"
    """Where decoded images are kept: auto is on the device, or in the store on disk, if they fit;
    ram keeps them in this run's memory only; off reads them anew in every epoch."""
    drop_last: bool = False
    """Leave out the last batch of an epoch if it is not full; batch norm may not take one image."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """Each image once an epoch (shuffle), or as many, but each class equally often (balanced)."""


class StoreSettings(Frozen):
    """The store of decoded images on disk, which all runs and commands on a machine share."""

    root: str | None = None
    """Its folder; null is the environment's TRAINER_STORE, else yaml-trainer in ~/.cache."""
    gigabytes: Positive | None = None
    """Its largest size; what was not used for longest goes first. null is the environment's
    TRAINER_STORE_GIGABYTES, else 100. It never takes more than half of what is free."""
    days: Positive | None = None
    """Days without use after which images are removed; null is the environment's
    TRAINER_STORE_DAYS, else 60."""


class TrainSettings(Frozen):
    """How long training runs, and how each step is computed."""

    epochs: AtLeastOne
    """Passes over the training split."""
    device: (
        Literal["auto", "cpu", "cuda", "mps"]
        | Annotated[
            str,
            Field(
                pattern="^cuda:[0-9]{1,3}$",
                examples=["cuda:1"],
                json_schema_extra={"$comment": "cuda:NUMBER"},
            ),
        ]
    ) = "auto"
    """Where to compute; auto takes a GPU if there is one, a named device must be there."""
    precision: Literal["fp32", "tf32", "bf16", "fp16", "auto"] = "fp32"
    """The number format of the arithmetic; weights stay fp32. bf16 suits newer GPUs, fp16 older.

    auto: bf16 if the device has instructions for it, else fp32; the run's config.yaml has which.
    """
    compile: (
        bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
    ) = False
    """Compile the training step with torch.compile, in one of its modes; true means default."""
    cuda_graphs: bool = False
    """Replay a small model's step from a CUDA graph, with one launch; no effect on a CPU."""
    activation_checkpointing: bool = False
    """Recompute the activations of the model's blocks in the backward pass, to save memory."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What each process (torchrun) keeps of the model: ddp all, fsdp a shard, for large models."""
    sync_batch_norm: bool = False
    """Compute batch-norm statistics over the images of all processes; needs GPUs."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """CPU threads of the arithmetic; auto is PyTorch's choice. Sums may differ in the last bits."""
    channels_last: bool | Literal["auto"] = "auto"
    """Keep a pixel's channels together in memory; auto does so for convolutions on a CPU."""
    accumulate: AtLeastOne = 1
    """Micro-batches per batch, to save memory; batch size and mean gradient stay the same."""
    clip_grad_norm: Positive | None = None
    """The largest norm of the gradient; null does not limit it."""
    skip_non_finite: Count = 0
    """How many steps with a NaN or infinite loss or gradient to skip; one more ends the run."""
    sizes: dict[str, ImageSide | tuple[ImageSide, ImageSide]] | None = None
    """The size of training images, one number or [height, width], from each epoch on, such as
    {0ep: 24, 4ep: 32}. They are resized after the transforms; evaluation is not. null: the size
    that the transforms give."""
    budget: Annotated[Duration, WithJsonSchema(Duration.schema("m"))] | None = None
    """Time after which the run saves and stops; it can be resumed. null sets no limit."""
    monitor: str = "val/accuracy"
    """What decides the best epoch: val/loss or val/METRIC; the default is the first metric.
    Between equal epochs the lower val/loss decides."""

    @property
    def sizes_by_epoch(self) -> dict[int, tuple[int, int]]:
        """(height, width) of ``sizes`` by the first epoch of each, from 0, in ascending order."""
        return {
            int(first.removesuffix("ep")): (size, size) if isinstance(size, int) else size
            for first, size in (self.sizes or {}).items()
        }


class EvaluationSettings(Frozen):
    """How the finished model answers: in the test, in evaluate and in predict."""

    tta: Literal["flip", "flip+shifts"] | None = None
    """Test-time augmentation: the logits are the mean over the image and its mirror image (flip: 2
    forward passes), or also over both moved by a pixel to two corners (flip+shifts: 6). The result
    holds the plain numbers too; each epoch's val, and exported models, are plain. null has none."""


class DistillSettings(Frozen):
    """A teacher model. Training follows its outputs as well as the labels."""

    run: str
    """The run whose best weights teach: its folder, or runs/NAME for the newest of that name."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The weight w of the teacher in the loss; the labels have 1 - w."""
    temperature: Positive = 4.0
    """Both models' logits are divided by it; above 1, unlikely classes count more."""


class EarlyStopSettings(Frozen):
    """When to stop because the monitored value no longer improves."""

    patience: AtLeastOne
    """Epochs without an improvement after which training stops."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """A change must be larger than this to count as an improvement."""


class CheckpointSettings(Frozen):
    """When to save a checkpoint, from which a run can be resumed."""

    every: Annotated[Duration, WithJsonSchema(Duration.schema("st", "ep", "m"))] = Duration(1, "ep")
    """Time between two checkpoints."""
    keep: Annotated[int, Field(ge=2)] = 2
    """How many of the newest checkpoints are kept."""


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
    """What is written during training."""

    every: Annotated[Duration, WithJsonSchema(Duration.schema("st"))] = Duration(20, "st")
    """Steps between two lines of metrics.jsonl and TensorBoard."""
    images: Count = 16
    """Images in each grid of training images or predictions; 0 draws no grid."""
    show: tuple[LogItem, ...] = get_args(LogItem)
    """What TensorBoard shows, and whether the report is written; [] means nothing."""


class NotifySettings(Frozen):
    """Who is told that a run or a sweep has ended: by mail, chat or others that apprise knows."""

    to: Annotated[
        str,
        Field(
            pattern="^[A-Z0-9_]{0,50}NOTIFY[A-Z0-9_]{0,50}$",
            examples=["YAML_TRAINER_NOTIFY"],
            json_schema_extra={"$comment": "an environment variable with NOTIFY in its name"},
        ),
    ] = "YAML_TRAINER_NOTIFY"
    """The environment variable that holds the address, or several with spaces between them. An
    address may hold a password, which config.yaml of each run would keep. NOTIFY is in the name, so
    that a YAML can name no variable that is meant for something else."""
    on: tuple[Literal["finished", "failed", "stopped"], ...] = ("finished", "failed", "stopped")
    """The ends that are told. A run that is killed (kill -9, power) cannot tell it."""
