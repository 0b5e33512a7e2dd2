#!/usr/bin/env bash
# onnxruntime 1.32.0, onnx 1.23.2. quantize_static(calibrate_method=CalibrationMethod.Entropy) searches no threshold: it makes
# the file that MinMax makes, to the byte, also where one outlier of 64 inputs is 50 times as large as the others. It tries
# widths from num_quantized_bins (128) to num_bins (128 too), which is one: the whole range. quantize_static has no option
# for either. The calibrator itself, given 2,048 bins, cuts the outlier off.
# Expected: another range than MinMax's. Seen:
#   the files of Entropy and MinMax are equal: True
#   highest value of y: MinMax 102.8, Entropy 102.8, Entropy with 2,048 bins 26.3
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 sympy==1.14.0
cd "$folder"
"$folder/venv/bin/python" - 2> /dev/null <<'PYTHON'
import sys

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator, quantize_static

random = numpy.random.default_rng(0)
weight = numpy_helper.from_array(random.normal(0, 0.25, (16, 8)).astype("float32"), "w")
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
    "graph",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
    [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 8])],
    [weight],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), "model.onnx")
inputs = random.normal(0, 1, (64, 1, 16)).astype("float32")
inputs[5] *= 50  # the outlier


class Reader(CalibrationDataReader):
    def __init__(self):
        self.rows = iter(inputs)

    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {"x": row}


def highest(method, **options):
    calibrator = create_calibrator("model.onnx", calibrate_method=method, extra_options=options)
    calibrator.collect_data(Reader())
    return float(calibrator.compute_data()["y"].range_value[1].max())


files = {}
for name in ("MinMax", "Entropy"):
    quantize_static("model.onnx", f"{name}.onnx", Reader(), calibrate_method=CalibrationMethod[name])
    files[name] = open(f"{name}.onnx", "rb").read()
tops = {name: highest(CalibrationMethod[name]) for name in files}
tops["Entropy with 2,048 bins"] = highest(CalibrationMethod.Entropy, num_bins=2048)
same = files["Entropy"] == files["MinMax"]
print(f"the files of Entropy and MinMax are equal: {same}")
print("highest value of y:", ", ".join(f"{name} {value:.1f}" for name, value in tops.items()))
is_seen = same and tops["Entropy"] == tops["MinMax"] > 2 * tops["Entropy with 2,048 bins"]
print("as seen" if is_seen else "changed")
sys.exit(not is_seen)
PYTHON
