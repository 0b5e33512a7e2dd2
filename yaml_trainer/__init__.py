"""Train image classifiers from a YAML file, and use the models of runs in Python.

    from yaml_trainer import load, train

    run = train("configs/lenet_rmb.yaml", ["train.epochs=3"])
    model = load(run.folder)
    print(model.predict(["photo.jpg"])[0].label)

In the wheel, the checkout's other folders lie in this package. In a checkout they lie beside it.
Importing this imports no torch.
"""

import os
import sys

_here = os.path.dirname(os.path.realpath(__file__))
if not os.path.isdir(os.path.join(_here, "trainer")):  # this is a checkout, not a wheel
    _checkout = os.path.dirname(_here)
    for _name in ("datasets", "models", "trainer", "transforms"):
        _other = getattr(sys.modules.get(_name), "__file__", None) or ""
        if _other and not os.path.realpath(_other).startswith(f"{_checkout}{os.sep}"):
            raise ImportError(
                f"the checkout's folder {_name} and {_other} have one name, and the latter is "
                "imported already: install the wheel, whose folders lie in yaml_trainer "
                f"(pip install {_checkout})"
            )
    if sys.path[:1] != [_checkout]:
        sys.path.insert(0, _checkout)
