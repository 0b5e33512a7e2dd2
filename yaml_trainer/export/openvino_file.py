"""A model in OpenVINO's two files, a graph (.xml) and weights (.bin), which compute in float32."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yaml_trainer.export.export_check import Network

# Without this hint OpenVINO computes in bfloat16 where the processor can.
PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}


def as_openvino(content: bytes, card: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The graph, with the card in its ``rt_info``, and the weights, of an ONNX file's content."""
    import openvino

    # read_model sends nothing anywhere; convert_model reports its use to the vendor.
    model = openvino.Core().read_model(model=content)
    model.set_rt_info(json.dumps(card), ["card"])
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "model.xml")
        openvino.save_model(model, path, compress_to_fp16=False)  # its default rounds weights
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def openvino_model(path: Path) -> Network:
    """Return a function that runs a graph, and the weights beside it, in float32 on the CPU."""
    import openvino

    settings = PRECISION | {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", settings)

    def network(images: Tensor) -> list[Tensor]:
        found = model({"images": images.numpy()})
        return [torch.from_numpy(found[port].copy()) for port in model.outputs]

    return network
