"""Train image classifiers from a YAML file, and use the models of runs in Python.

    from yaml_trainer import load, train

    run = train("configs/lenet_rmb.yaml", ["train.epochs=3"])
    model = load(run.folder)
    print(model.predict(["photo.jpg"])[0].label)

In the wheel, the checkout's other folders lie in this package. In a checkout they lie beside it.
Importing this imports no torch.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yaml_trainer.answer import Answer as Answer
    from yaml_trainer.errors import InputError as InputError
    from yaml_trainer.errors import TrainerError as TrainerError
    from yaml_trainer.model import Model as Model
    from yaml_trainer.model import load as load
    from yaml_trainer.training import Run as Run
    from yaml_trainer.training import train as train

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

_PLACES = {
    **dict.fromkeys(("InputError", "TrainerError"), "errors"),
    "Answer": "answer",
    **dict.fromkeys(("Model", "load"), "model"),
    **dict.fromkeys(("Run", "train"), "training"),
}
__all__ = ["Answer", "InputError", "Model", "Run", "TrainerError", "load", "train"]


def __getattr__(name: str) -> Any:
    """The names of ``__all__``, imported when they are first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
