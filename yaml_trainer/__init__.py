"""Train image classifiers from a YAML file, and use the models of runs in Python.

    from yaml_trainer import load, train

    run = train("configs/lenet_rmb.yaml", ["train.epochs=3"])
    model = load(run.folder)
    print(model.predict(["photo.jpg"])[0].label)

In the wheel, the checkout's other folders lie in this package. In a checkout they lie beside it.
Importing this imports no torch.
"""

import sys
from pathlib import Path

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
