"""A run for Weights & Biases, written offline; `wandb sync FOLDER` uploads it."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.process.errors import RunError
from trainer.run.disk import make_folders, write_json
from yaml_trainer.mirror.about import About, digest_text
from yaml_trainer.mirror.points import Rows, merge

if TYPE_CHECKING:
    import wandb

DONE = "mirrored.json"  # in the offline folder: what it holds, written when it is complete


class WandbRun:
    """One offline folder of wandb, with the run's folder name as the id.

    wandb refuses a step that is lower than the last one, and an offline folder cannot be opened
    again. Therefore a folder that was not completed, or that lacks something, is replaced by one
    with all points.
    """

    def __init__(self, place: str | None) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
        os.environ |= {"WANDB_DISABLE_GIT": "true", "WANDB_DISABLE_CODE": "true"}
        self.root = Path(place or os.environ.get("WANDB_DIR") or ".")
        self.rows, self.written = Rows(), ""
        self.about: About | None = None
        self.run: wandb.Run | None = None

    def folders(self) -> list[Path]:
        """The offline folders of this run."""
        assert self.about is not None
        return sorted((self.root / "wandb").glob(f"offline-run-*-{self.about.identity}"))

    def open(self, about: About) -> Rows:
        """The rows of a complete folder; an incomplete one is removed."""
        make_folders(self.root)
        if not os.access(self.root, os.W_OK):  # wandb would write to another place
            raise RunError(f"--place {self.root}: this folder cannot be written to.")
        self.about, self.rows = about, {}
        for folder in self.folders():
            try:
                done = json.loads((folder / DONE).read_text(encoding="utf-8"))
                self.rows = {int(step): row for step, row in done["rows"].items()}
                self.written = done["about"]
            except (OSError, ValueError, LookupError, AttributeError):
                shutil.rmtree(folder)
        return {step: dict(row) for step, row in self.rows.items()}

    def add(self, rows: Rows) -> None:
        """Log rows; if one is of an earlier step than the last, all are written again."""
        last = max(self.rows, default=-1)
        merge(self.rows, rows)
        if self.run is None or min(rows) < last:
            self._write_again()
        else:
            self._log(rows)

    def _write_again(self) -> None:
        import wandb

        assert self.about is not None
        self._end(keep=False)
        for folder in self.folders():
            shutil.rmtree(folder)
        self.run = wandb.init(
            project=self.about.group,
            id=self.about.identity,
            name=self.about.identity,
            group=self.about.tags.get("trial") or None,
            dir=self.root,
            mode="offline",
            settings=wandb.Settings(
                console="off", x_disable_stats=True, x_disable_meta=True, silent=True
            ),
        )
        self._log(self.rows)

    def _log(self, rows: Rows) -> None:
        assert self.run is not None
        for step, row in sorted(rows.items()):
            self.run.log(row, step=step)

    def begin_again(self) -> None:
        """Forget the rows; the next ``add`` writes another folder."""
        self._end(keep=False)
        self.rows = {}

    def describe(self, about: About) -> None:
        """Write settings and tags into the config, and the test result into the summary."""
        now = json.dumps([about.settings, about.tags, digest_text(about)])
        self.about = about
        if now == self.written and self.run is None:
            return
        if self.run is None:
            self._write_again()
        assert self.run is not None
        tags = {f"run/{name}": value for name, value in about.tags.items()}
        self.run.config.update(  # type: ignore[no-untyped-call]
            about.settings | tags, allow_val_change=True
        )
        self.run.summary.update({"status": about.status} | about.test)
        self.written = now

    def close(self) -> None:
        """Complete the folder."""
        self._end(keep=True)

    def _end(self, keep: bool) -> None:
        if self.run is None:
            return
        import wandb

        assert self.about is not None
        self.run.finish(exit_code=0 if self.about.status in ("done", "running") else 1)
        wandb.teardown()  # waits until the process that writes the folder has ended
        self.run = None
        if keep:
            content = {"rows": self.rows, "about": self.written}
            write_json(self.folders()[-1] / DONE, content)

    def where(self) -> str:
        """The offline folder, or the folder in which it will lie."""
        return str(self.folders()[-1] if self.folders() else self.root / "wandb")

    def look(self) -> str:
        """None: the folder is to be uploaded first."""
        return ""
