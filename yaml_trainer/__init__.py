"""Train image classifiers from a YAML file, and use the models of runs in Python.

    from yaml_trainer import load, train

    run = train("configs/lenet_rmb.yaml", ["train.epochs=3"])
    model = load(run.folder)
    print(model.predict(["photo.jpg"])[0].label)

In the wheel, the checkout's other folders lie in this package. In a checkout they lie beside it.
Importing this imports no torch.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yaml_trainer.answer import Answer as Answer
    from yaml_trainer.errors import InputError as InputError
    from yaml_trainer.errors import TrainerError as TrainerError
    from yaml_trainer.model import Model as Model
    from yaml_trainer.model import load as load
    from yaml_trainer.training import Run as Run
    from yaml_trainer.training import train as train

_checkout = Path(__file__).resolve().parent.parent
if not (Path(__file__).parent / "trainer").is_dir():  # this is a checkout, not a wheel
    if str(_checkout) not in sys.path:
        sys.path.insert(0, str(_checkout))
    _other = sys.modules.get("datasets")
    if _other is not None and Path(str(_other.__file__)).parent.parent != _checkout:
        raise ImportError(
            f"the checkout's folder datasets and {_other.__file__} have one name, and that one is "
            f"imported already: install the package (pip install {_checkout}), which has no "
            "such folder"
        )

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
