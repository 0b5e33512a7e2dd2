"""What a tracker is to the mirror."""

import importlib
import importlib.util
from typing import Protocol

from trainer.process.errors import UsageError
from yaml_trainer.mirror.about import About
from yaml_trainer.mirror.points import Rows


class Unreachable(Exception):
    """A tracker's server does not answer now; what was sent may have arrived or not."""


class Tracker(Protocol):
    """One run in one tracker. After Unreachable, ``open`` comes first again."""

    def open(self, about: About) -> Rows:
        """Find the tracker's run, or begin one; returns the points that it holds."""

    def add(self, rows: Rows) -> None:
        """Add points that it does not hold; steps ascend."""

    def begin_again(self) -> None:
        """Set aside what it holds; after this it holds no point."""

    def describe(self, about: About) -> None:
        """Bring settings, tags, status and files up to date."""

    def close(self) -> None:
        """Write what waits."""

    def where(self) -> str:
        """Its place, for messages: without passwords."""

    def look(self) -> str:
        """The command that shows what it holds; empty if there is none."""


# Name: what it imports, the package's extra, the class.
TRACKERS = {
    "mlflow": ("mlflow", "yaml_trainer.mirror.mlflow_run", "MLflowRun"),
    "wandb": ("wandb", "yaml_trainer.mirror.wandb_run", "WandbRun"),
    "trackio": ("trackio", "yaml_trainer.mirror.trackio_run", "TrackioRun"),
    "csv": ("", "yaml_trainer.mirror.csv_file", "CSVFile"),
}


def require(name: str) -> None:
    """Raise UsageError if the tracker's package is not installed."""
    package = TRACKERS[name][0]
    if package and importlib.util.find_spec(package) is None:
        raise UsageError(
            f'--to {name} needs {package}, not installed here: pip install -e ".[{name}]"'
        )


def new_tracker(name: str, place: str | None) -> Tracker:
    """A tracker for one run. ``place``: a folder or an address; None is the tracker's own."""
    _, module, kind = TRACKERS[name]
    made: Tracker = getattr(importlib.import_module(module), kind)(place)
    return made
