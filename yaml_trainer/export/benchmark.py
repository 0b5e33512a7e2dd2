"""Times each exported file beside the run's model in PyTorch, with as many threads each."""

from collections.abc import Callable
from pathlib import Path

import torch

from trainer.run import disk
from yaml_trainer.export import latency
from yaml_trainer.export.export_check import Network, note
from yaml_trainer.export.exporting import Exported, as_run_error, onnx_model, quiet
from yaml_trainer.export.openvino_file import openvino_model


def pt2_model(path: Path) -> Network:
    """The model of a .pt2 file."""
    model: Network = torch.export.load(path).module()
    return model


READ: dict[str, Callable[[Path], Network]] = {
    "pt2": pt2_model,
    "onnx": onnx_model,
    "int8": onnx_model,
    "openvino": openvino_model,
}


def write_benchmark(done: Exported, folder: Path) -> Path:
    """Print a table of times, and write it to NAME.benchmark.json in ``folder``.

    Files that hold weights alone are left out: PyTorch computes with them as with the run's.
    """
    models: dict[str, Network] = {"pytorch": done.trained.logits}
    for name, path in done.files.items():
        if name in READ:
            with as_run_error(f"{path.name} cannot be read back"), quiet():
                models[name] = READ[name](path)
        else:
            note(f"{name} is not timed: it holds weights, which PyTorch computes with")
    machine = latency.about_machine(torch.get_num_threads())
    latency.tell_if_busy(machine)
    turns = latency.take_turns(models, done.sample.inputs)
    print(f"benchmark    {latency.in_words(machine)}, {latency.ROUNDS} rounds")
    for line in latency.lines_of(turns):
        print(f"{'':<12} {line}")
    path = folder / f"{done.trained.config.name}.benchmark.json"
    facts = {"machine": machine, "rounds": latency.ROUNDS, "models": latency.facts_of(turns)}
    disk.write_json(path, facts)
    print(f"{'':<12} {path}; as fast: PyTorch's time of a batch divided by the file's")
    return path
