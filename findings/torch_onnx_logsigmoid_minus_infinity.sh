#!/usr/bin/env bash
# torch 2.14.1, onnxscript 0.7.2, onnxruntime 1.32.0. An ONNX file of torch.nn.functional.logsigmoid has Log(Sigmoid(x)).
# Sigmoid rounds to 1 for large x, and to 0 for very negative ones, where the logarithm is -inf. PyTorch is exact there.
# -softplus(-x) is the same function, and becomes the exact Softplus.
# Expected: the numbers of PyTorch. Seen, for x = -100, 12, 17:
#   PyTorch         -100.0, -6.144e-06, -4.140e-08
#   ONNX Runtime    -inf,   -6.080e-06, -1.192e-07
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import onnxruntime
import torch
import torch.nn.functional as F


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def in_onnx(function, x):
    made = torch.onnx.export(Function(function), (x,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(made.model_proto.SerializeToString())
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


x = torch.tensor([[-100.0, 12.0, 17.0]])
seen = in_onnx(F.logsigmoid, x)
print("PyTorch        ", F.logsigmoid(x).tolist())
print("ONNX Runtime   ", seen.tolist())
exact = in_onnx(lambda x: -F.softplus(-x), x)
print("-softplus(-x)  ", exact.tolist())
is_seen = seen[0, 0].isinf() and torch.allclose(exact, F.logsigmoid(x), rtol=1e-5, atol=0)
print("as seen" if is_seen else "changed")
sys.exit(not is_seen)
PYTHON
