#!/usr/bin/env bash
# onnx 1.23.2, onnxruntime 1.32.0. ONNX has an operator that decodes JPEG, PNG and others since opset 20, ImageDecoder, and
# onnx.checker takes a model with it. ONNX Runtime has no kernel of it for the CPU, so a graph cannot take the bytes of a file.
# Expected: a session. Seen: NOT_IMPLEMENTED : Could not find an implementation for ImageDecoder(20) node
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import onnx
import onnxruntime
from onnx import TensorProto, helper

node = helper.make_node("ImageDecoder", ["content"], ["picture"], pixel_format="RGB")
content = helper.make_tensor_value_info("content", TensorProto.UINT8, [None])
picture = helper.make_tensor_value_info("picture", TensorProto.UINT8, [None, None, None])
graph = helper.make_graph([node], "decode", [content], [picture])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
onnx.checker.check_model(model)
try:
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    seen = "a session"
except Exception as error:
    seen = str(error)
print(seen)
is_seen = "Could not find an implementation for ImageDecoder(20)" in seen
print("as seen" if is_seen else "changed")
sys.exit(not is_seen)
PYTHON
