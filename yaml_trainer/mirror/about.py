"""What a tracker shows of a run beside its curves: settings, tags, status, test result, files."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainer.comparing.listing import inspect_run, number, numbers_of, read_object, read_text
from trainer.process.errors import RunError
from trainer.run.resume import as_yaml, flatten

MAX_VALUE = 500  # letters of a setting, as older trackers allow


@dataclass(frozen=True)
class File:
    """A file of the run: the folder for it in the tracker, and what tells that it has changed."""

    path: Path
    folder: str
    size: int
    modified: int


@dataclass(frozen=True)
class About:
    """A run as its folder describes it now.

    identity: the name of the run's folder.  group: the sweep's name, or that of the configuration.
    status: running, done, stopped, failed or interrupted.  test: the numbers of the test result.
    """

    run: Path
    identity: str
    group: str
    status: str
    reason: str
    settings: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    files: tuple[File, ...] = ()

    @property
    def is_running(self) -> bool:
        """Whether a process trains the run."""
        return self.status == "running"


def about_run(run: Path, with_model: bool = False) -> About:
    """Read what is to be told of a run, in any state; raises RunError for a damaged folder."""
    found = inspect_run(run)
    if found.status == "damaged":
        raise RunError(f"{run}: {found.reason}.")
    place = run.resolve()
    sweep = place.parent.parent if (place.parent.parent / "plan.json").is_file() else None
    environment, _ = read_object(run / "environment.json")
    tags = {
        "run": place.name,
        "folder": str(place),
        "status": found.status,
        "reason": " ".join(found.reason.split())[:MAX_VALUE],
        "name": str(found.result.get("name", "")),
        "seed": str(found.result.get("seed", "")),
        "device": str(found.result.get("device", "")),
        "commit": str(environment.get("git_commit") or ""),
        "machine": str(environment.get("platform", "")),
        "trial": place.parent.name if sweep else "",
    }
    if found.status == "done":
        tags["best_epoch"] = str(found.best.get("epoch", ""))
    test = numbers_of(found.result.get("test")) if found.status == "done" else {}
    return About(
        run=run,
        identity=place.name,
        group=sweep.name if sweep else place.parent.name,
        status=found.status,
        reason=found.reason,
        settings=settings_of(run),
        tags={name: value for name, value in tags.items() if value},
        test={f"test/{name}": value for name, value in test.items() if number(value) is not None},
        files=files_of(run, found.status == "running", with_model),
    )


def settings_of(run: Path) -> dict[str, str]:
    """The settings of config.yaml by their dotted names, as text; {} if it cannot be read."""
    text, _ = read_text(run / "config.yaml", 2**20)
    try:
        values: Any = yaml.safe_load(text)
        flat = flatten(values if isinstance(values, dict) else {})
        return {
            name: (value if isinstance(value, str) else as_yaml(value))[:MAX_VALUE]
            for name, value in flat.items()
            if name
        }
    except (yaml.YAMLError, RecursionError, TypeError, ValueError):
        return {}


def files_of(run: Path, is_running: bool, with_model: bool) -> tuple[File, ...]:
    """The files that a tracker keeps a copy of: the settings, and at the end result and report."""
    names = ["config.yaml", "environment.json"]
    if not is_running:
        names.append("result.json")
        names += ["model.pt", "model.json"] * with_model
    paths = [(run / name, "") for name in names]
    if not is_running and not (run / "report").is_symlink():
        paths += [(path, "report") for path in sorted((run / "report").glob("*"))]
    return tuple(
        File(path, folder, path.stat().st_size, path.stat().st_mtime_ns)
        for path, folder in paths
        if path.is_file() and not path.is_symlink()
    )


def digest_text(about: About) -> str:
    """Text that differs if the files do."""
    files = [(f.folder, f.path.name, f.size, f.modified) for f in about.files]
    return json.dumps(files)
