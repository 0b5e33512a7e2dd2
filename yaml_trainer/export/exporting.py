"""Exports a run's best model: writes a file, reads it back, compares it, and only then keeps it."""

import copy
import dataclasses
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datasets.temporary import unfinished
from trainer.build.precision import FP32, HALF
from trainer.build.trained import TrainedModel, build_network, load_trained
from trainer.config import Config
from trainer.inference.prediction import choose_rejection
from trainer.process.errors import NO_ANSWER, NoAnswer, OutOfMemory, RunError, in_plain_words
from trainer.run import disk
from trainer.run.known import Rejection
from trainer.run.resume import config_for_use
from yaml_trainer.export import export_check
from yaml_trainer.export.export_check import Difference, Network, Sample
from yaml_trainer.export.model_card import about_unknown, describe_model, hub_files, program
from yaml_trainer.export.openvino_file import as_openvino, openvino_model
from yaml_trainer.export.program_check import check_program

MAX_ONNX = 2**31 - 2**24  # bytes of weights: protobuf's limit, less the graph


class Exported(NamedTuple):
    """What ``export_run`` wrote, by format, from which model, and what it was tried on."""

    trained: TrainedModel
    sample: Sample
    card: dict[str, Any]
    files: dict[str, Path]


def export_run(
    run: Path,
    formats: Sequence[str],
    folder: Path,
    images: Sequence[Path] | None = None,
    overrides: Sequence[str] = (),
    reject: tuple[Fraction, str] | None = None,
) -> Exported:
    """Write the run's best model into ``folder`` in each format, and print what was done.

    images: files or folders to test it on instead of the run's test images. reject: the level and
    the score of the second output ``unknown``, which graphs get. Raises RunError if
    the model cannot be exported, or if a file gives other outputs than the run's model.
    """
    trained, config = load_for_export(run, overrides)
    result = disk.read_json(run / "result.json")
    sample = export_check.take_sample(trained, config, images)
    if not trained.logits(sample.inputs).isfinite().all():
        raise NoAnswer(f"{run}: {NO_ANSWER} on {sample.source}; no file was written.")
    if reject is not None:
        sample = dataclasses.replace(sample, rejection=choose_rejection(trained, *reject, "none"))
        if "safetensors" in formats:
            export_check.note("safetensors holds weights, and no output unknown: see pt2 and onnx")
    card = describe_model(trained, result)
    write = {"safetensors": write_safetensors, "pt2": write_pt2}
    write |= {"onnx": write_onnx, "openvino": write_openvino}
    shape = ", ".join(map(str, sample.inputs.shape[1:]))
    print(f"{run}: {trained.model_name}, input (batch, {shape})")
    print(f"tried on {sample.source}")
    exported: torch.export.ExportedProgram | None = None
    files: dict[str, Path] = {}
    for name in formats:
        if name != "safetensors" and exported is None:
            exported = export(trained, sample.inputs, sample.rejection)
        with disk.all_or_nothing():
            disk.make_output_folder(folder)
            path, difference = write[name](
                folder, trained, *for_format(name, sample, card), exported
            )
            told = check_beside(name, path, trained, for_format(name, sample, card)[0].rejection)
        weights = path.with_suffix(".bin") if name == "openvino" else path
        size = sum(each.stat().st_size for each in {path, weights})
        print(f"{name:<12} {path} ({size / 2**20:,.1f} MiB)")
        print(f"{'':<12} greatest difference: logits {difference.logits:.1e}, "
            f"probabilities {difference.probabilities:.1e}", end="")  # fmt: skip
        unknown = difference.unknown
        print("" if unknown is None else f", unknown {unknown:.1e} of the score")
        print(f"{'':<12} {told}")
        files[name] = path
    print(f"use it: the .py files in {folder} show how, without this project")
    return Exported(trained, sample, card, files)


def load_for_export(run: Path, overrides: Sequence[str]) -> tuple[TrainedModel, Config]:
    """The run's best model on the CPU, computing in float32; and its configuration."""
    config = config_for_use(run, overrides)
    trained = load_trained(run, [*overrides, "train.device=cpu"])  # equal files on any machine
    if config.train.precision in HALF:  # the weights are float32, and few tools compute otherwise
        export_check.note(f"the run computed in {config.train.precision}, the files do in float32")
        trained = dataclasses.replace(trained, precision=FP32)
    return trained, config


def check_beside(kind: str, path: Path, trained: TrainedModel, rejection: Rejection | None) -> str:
    """Run the program beside a model file, as ``check_program`` does; returns its name and that.

    kind: the format.
    """
    name = "use.py" if kind == "safetensors" else f"{path.stem}_{kind}.py"
    program = path.with_name(name)
    # With ``unknown`` it answers of the image alone, to which the threshold belongs.
    tta = None if rejection is None else "none"
    return f"{program.name}: {check_program(program, trained, rejection, tta=tta)}"


def for_format(name: str, sample: Sample, card: dict[str, Any]) -> tuple[Sample, dict[str, Any]]:
    """The sample and the card of a format: with ``unknown``, if it has a graph and one is asked."""
    if sample.rejection is None:
        return sample, card
    if name == "safetensors":
        return dataclasses.replace(sample, rejection=None), card
    return sample, card | about_unknown(sample.rejection)


def keep(
    path: Path,
    content: bytes,
    read: Callable[[Path], Network],
    trained: TrainedModel,
    sample: Sample,
    weights: bytes | None = None,
) -> Difference:
    """Write ``content`` to ``path`` if it gives the run's outputs when read; else RunError.

    weights: the content of a second file beside it, .bin, if the format has one.
    """
    unproven = path.with_name(f".unproven-{path.name}")
    beside = unproven.with_suffix(".bin")
    with unfinished(unproven), unfinished(beside):
        disk.write_file(unproven, content)
        if weights is not None:
            disk.write_file(beside, weights)
        with as_run_error(f"{path.name} cannot be read back"), quiet(), torch.inference_mode():
            difference = export_check.deviation(trained, read(unproven), sample)
        if not difference.is_small:
            raise RunError(
                f"{path.name} was removed: on {sample.source} it differs from the run's model by "
                f"{difference.in_words}. A newer version of what reads it may help, or another "
                "--format."
            )
        if weights is not None:
            disk.rename(beside, path.with_suffix(".bin"))
        disk.rename(unproven, path)
    disk.sync_folder(path.parent)
    return difference


def export(
    trained: TrainedModel, inputs: Tensor, rejection: Rejection | None = None
) -> torch.export.ExportedProgram:
    """Return the model as a graph for batches of any size."""
    model = plain_copy(trained.model if rejection is None else rejection.network)
    example = inputs[torch.arange(2) % len(inputs)]
    return as_graph(model, example, {0: torch.export.Dim("batch", min=1)}, trained.model_name)


def as_graph(
    model: nn.Module, example: Tensor, free: Mapping[int, Any], name: str
) -> torch.export.ExportedProgram:
    """A module as a graph, without paths of this machine.

    free: the dimensions of its input that may have another size than in ``example``.
    """
    with as_run_error(f"torch.export cannot export {name}"), quiet():
        exported = torch.export.export(
            model, (example,), dynamic_shapes=(dict(free),), strict=False
        )
    for module in exported.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return exported


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the model without gradients, with contiguous weights for other tools."""
    model = copy.deepcopy(model).requires_grad_(False).eval()
    return model.to(memory_format=torch.contiguous_format)


def write_pt2(
    folder: Path, trained: TrainedModel, sample: Sample, card: dict[str, Any], exported: Any
) -> tuple[Path, Difference]:
    """Write NAME.pt2, which PyTorch reads without this project, with NAME.json and NAME_pt2.py."""
    path = folder / f"{trained.config.name}.pt2"
    difference = keep(path, pt2_content(exported, card), pt2_model, trained, sample)
    write_beside(path, "pt2", trained, sample, card)
    return path, difference


def write_onnx(
    folder: Path, trained: TrainedModel, sample: Sample, card: dict[str, Any], exported: Any
) -> tuple[Path, Difference]:
    """Write NAME.onnx, one file with the card in its metadata, with NAME.json and NAME_onnx.py."""
    path, content = folder / f"{trained.config.name}.onnx", onnx_of(trained, sample, card, exported)
    difference = keep(path, content, onnx_model, trained, sample)
    write_beside(path, "onnx", trained, sample, card)
    return path, difference


def write_openvino(
    folder: Path, trained: TrainedModel, sample: Sample, card: dict[str, Any], exported: Any
) -> tuple[Path, Difference]:
    """Write NAME.xml, NAME.bin beside it, NAME.json and NAME_openvino.py; made of the ONNX file."""
    path, content = folder / f"{trained.config.name}.xml", onnx_of(trained, sample, card, exported)
    with as_run_error(f"OpenVINO cannot express {trained.model_name}"), quiet():
        graph, weights = as_openvino(content, card)
    difference = keep(path, graph, openvino_model, trained, sample, weights)
    write_beside(path, "openvino", trained, sample, card)
    return path, difference


def write_beside(
    path: Path, kind: str, trained: TrainedModel, sample: Sample, card: dict[str, Any]
) -> None:
    """Write the card and the program beside a file of a format."""
    disk.write_json(path.with_suffix(".json"), card)
    text = program(kind, trained, sample.rejection is not None)
    disk.write_file(path.with_name(f"{path.stem}_{kind}.py"), text)


def pt2_content(exported: torch.export.ExportedProgram, card: dict[str, Any]) -> bytes:
    """The bytes of a .pt2 file, with the card in it."""
    content = io.BytesIO()
    with as_run_error("pt2"), quiet():
        torch.export.save(exported, content, extra_files={"card.json": json.dumps(card)})
    return content.getvalue()


def pt2_model(path: Path) -> Network:
    """The model of a .pt2 file."""
    model: Network = torch.export.load(path).module()
    return model


def onnx_of(trained: TrainedModel, sample: Sample, card: dict[str, Any], exported: Any) -> bytes:
    """``onnx_content`` for batches of any size."""
    outputs = ["logits"] + ["unknown"] * (sample.rejection is not None)
    return onnx_content(exported, card, trained.model_name, outputs, {0: "batch"})


def onnx_content(
    exported: torch.export.ExportedProgram,
    card: dict[str, Any],
    name: str,
    outputs: Sequence[str],
    free: Mapping[int, str],
) -> bytes:
    """The bytes of an ONNX file, with the card in its metadata.

    name: of the model, for errors. free: the names of the input's dimensions of any size.
    """
    size = sum(tensor.nbytes for tensor in exported.state_dict.values())
    if size > MAX_ONNX:
        raise RunError(
            f"{name} takes {size / 2**30:.1f} GiB, and an ONNX file holds at most 2; use --format "
            "pt2."
        )
    with as_run_error(f"ONNX cannot express {name}"), quiet():
        made = torch.onnx.export(
            exported,
            dynamo=True,
            input_names=[card["input"]["name"]],
            output_names=outputs,
            dynamic_shapes=(dict(free),) if free else None,
            verbose=False,
        )
        assert made is not None
        proto = made.model_proto
        for key, value in card_strings(card).items():
            proto.metadata_props.add(key=key, value=value)
        return bytes(proto.SerializeToString())


def onnx_model(path: Path, threads: int | None = None) -> Network:
    """Return a function that runs an ONNX file of one input in ONNX Runtime on the CPU.

    threads: how many it computes with; None for as many as PyTorch.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (only,) = session.get_inputs()

    def model(images: Tensor) -> list[Tensor]:
        return [*map(torch.as_tensor, session.run(None, {only.name: images.numpy()}))]

    return model


def write_safetensors(
    folder: Path, trained: TrainedModel, sample: Sample, card: dict[str, Any], exported: Any = None
) -> tuple[Path, Difference]:
    """Write NAME-safetensors/, weights first, in Hugging Face's layout of a model."""
    import safetensors.torch

    folder = folder / f"{trained.config.name}-safetensors"
    disk.make_output_folder(folder)
    # Copies: tied tensors share memory, which the format refuses.
    tensors = {k: v.clone() for k, v in plain_copy(trained.model).state_dict().items()}
    content = safetensors.torch.save(tensors, {"format": "pt", **card_strings(card)})

    def read(path: Path) -> Network:
        several, shape = trained.thresholds is not None, trained.input_shape
        model = build_network(trained.config, trained.voters, trained.classes, shape, several)
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()

    difference = keep(folder / "model.safetensors", content, read, trained, sample)
    for name, text in hub_files(trained, card).items():
        disk.make_output_folder((folder / name).parent)
        disk.write_file(folder / name, text)
    return folder / "model.safetensors", difference


def card_strings(card: Mapping[str, Any]) -> dict[str, str]:
    """Return a card with each value as JSON in ASCII: the formats keep strings only."""
    return {key: json.dumps(value) for key, value in card.items()}


@contextmanager
def as_run_error(what: str) -> Iterator[None]:
    """Context manager: turn what a library raises into a RunError that begins with ``what``."""
    try:
        yield
    except Exception as error:  # exporters raise every kind
        if isinstance(in_plain_words(error), RunError | OutOfMemory):
            raise
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise RunError(f"{what}: {reason[:300]}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Context manager: suppress the output and the warnings of exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
