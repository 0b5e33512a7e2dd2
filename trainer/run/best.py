"""Reads the best weights of a run's folder, and checks them; knows no job."""

import json
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from trainer.config import Config
from trainer.process.errors import RunError
from trainer.process.lock import is_held
from trainer.process.words import shortened, visible
from trainer.run.checkpoint import is_finite
from trainer.run.disk import read_json, sha256_of
from trainer.run.folder import name_of, runs_in
from trainer.run.tensors import load_tensors

RETRY_AFTER = 0.5  # seconds; a run replaces model.pt, then model.json


def require_best(run: Path) -> None:
    """Raise RunError if a run has no best weights: it says why, and how to get some."""
    for wait in (RETRY_AFTER, 0.0):
        files = [(run / name).is_file() for name in ("model.pt", "model.json")]
        if all(files):
            return
        if any(files) and wait:  # the run may be writing its first ones
            time.sleep(wait)
    state, reason = state_of(run)
    if any(files) or state == "done":
        missing = run / ("model.json" if files[0] else "model.pt")
        raise RunError(f"{missing} is missing: it was removed. A copy of the run may have it.")
    go_on = f"to go on with it: python -m trainer.train --resume {shlex.quote(str(run))}"
    how = {"running": "wait for its first epoch", "failed": f"once that is repaired, {go_on}"}
    why = f": {shortened(visible(reason), 300)}" if reason else ""
    other = newest_with_weights(run)
    raise RunError(
        f"{run} has no weights yet: no epoch was the best yet.\n"
        f"its status is {state}{why}\n{how.get(state, go_on)}"
        + (f"\n{other} has weights: it is the newest that has some" if other else "")
    )


def newest_with_weights(run: Path) -> Path | None:
    """The newest run beside ``run``, of the same name, that has best weights; None without one."""
    name = name_of(run)
    return next(
        (
            other
            for other in reversed(runs_in(run.parent))
            if all((other / file).is_file() for file in ("model.pt", "model.json"))
            and name_of(other) == name
        ),
        None,
    )


def require_done(run: Path, what: str) -> None:
    """Raise RunError if a run is not done; ``what`` begins it: what needs a file of the end."""
    if (state := state_of(run)[0]) != "done":
        how = f"to end it: python -m trainer.train --resume {shlex.quote(str(run))}"
        how = "wait for its end" if state == "running" else how
        raise RunError(f"{what}, which a run writes at its end: {run} is {state}; {how}")


def state_of(run: Path) -> tuple[str, str]:
    """A run's status and the reason for it; "interrupted" if it runs no more, "unknown" if lost."""
    result: dict[str, Any] = {}
    with suppress(RunError):
        result = read_json(run / "result.json")
    state = str(result.get("status") or "unknown")
    if state == "running" and not is_held(run):
        state = "interrupted"
    return state, str(result.get("reason") or "")


def read_best(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's best weights, and the content of model.json that describes them.

    A run may replace both files meanwhile: then they are read once more. Raises RunError if
    model.pt is not the file of model.json.
    """
    for wait in (RETRY_AFTER, 0.0):
        require_best(run)
        card, file = read_json(run / "model.json"), run / "model.pt"
        expected, begun = card.get("weights"), file.stat()
        if isinstance(expected, dict) and sha256_of(file) == expected.get("sha256"):
            content: dict[str, Any] = load_tensors(file)
            ended = file.stat()
            if (begun.st_ino, begun.st_mtime_ns) == (ended.st_ino, ended.st_mtime_ns):
                return content, card
        time.sleep(wait)
    raise RunError(f"{run / 'model.pt'} is not the file that model.json describes.")


def load_best(model: nn.Module, run: Path) -> dict[str, Any]:
    """Load the run's best weights into ``model``; returns the content of their model.json.

    Raises RunError if they do not fit or are not finite.
    """
    content, card = read_best(run)
    try:
        model.load_state_dict(content)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{run / 'model.pt'} does not fit the run's model: {reason}") from None
    if not is_finite(content):
        raise RunError(f"{run / 'model.pt'} holds weights that are no numbers.")
    return card


def require_same_model(run: Path, config: Config) -> None:
    """Raise RunError if config.yaml and model.json differ in the model or in eval transforms."""
    card = read_json(run / "model.json")
    settings = json.loads(json.dumps(config.model_dump(mode="json")))
    expected = {"model": settings["model"], "transforms": settings["transforms"]["eval"]}
    expected |= {"components": settings["components"]} if settings["components"] else {}
    for name, value in expected.items():
        if card.get(name) != value:
            raise RunError(f"{run / 'config.yaml'}: its {name} is not that of model.json.")
