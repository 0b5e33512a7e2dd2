"""A run in Trackio's database on this machine."""

import hashlib
import os
from shlex import quote

from yaml_trainer.mirror.about import About
from yaml_trainer.mirror.points import Rows


class TrackioRun:
    """One run in the project that is named after the configuration or the sweep.

    Trackio keeps a row with an id once, so each row gets one. Rows are written as its importer of
    CSV files writes them, in one transaction. Where the database holds what the run does not have,
    Trackio's run is deleted and written again.
    """

    def __init__(self, place: str | None) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        if place is not None:
            os.environ["TRACKIO_DIR"] = os.path.abspath(place)  # read when it is imported
        self.project, self.name, self.config = "", "", dict[str, str]()

    def open(self, about: About) -> Rows:
        """Read the rows of Trackio's run."""
        from trackio.sqlite_storage import SQLiteStorage

        self.project, self.name = about.group, about.identity
        rows = Rows()
        for row in SQLiteStorage.get_logs(self.project, run_id=self.name):
            step = row.pop("step")
            row.pop("timestamp")
            rows.setdefault(step, {}).update(row)
        return rows

    def add(self, rows: Rows) -> None:
        """Write rows. Their time is now: metrics.jsonl has none."""
        self._write(list(rows.values()), list(rows))

    def _write(self, rows: list[dict[str, float]], steps: list[int]) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        SQLiteStorage.bulk_log(
            self.project,
            self.name,
            rows,
            steps=steps,
            log_ids=[self.id_of(step, row) for step, row in zip(steps, rows, strict=True)],
            config=self.config or None,
            run_id=self.name,
        )

    def id_of(self, step: int, row: dict[str, float]) -> str:
        """The row's id: Trackio takes each once."""
        names = hashlib.sha256(" ".join(row).encode()).hexdigest()[:12]
        return f"{self.name}/{step}/{names}"

    def begin_again(self) -> None:
        """Delete Trackio's run."""
        from trackio.sqlite_storage import SQLiteStorage

        SQLiteStorage.delete_run(self.project, self.name, run_id=self.name)

    def describe(self, about: About) -> None:
        """Write settings and tags into the run's config."""
        from trackio.sqlite_storage import SQLiteStorage

        config = about.settings | {f"run/{name}": value for name, value in about.tags.items()}
        self.config = {"_Group": about.group, "_Created": about.identity} | config
        there = SQLiteStorage.get_run_config(self.project, self.name, run_id=self.name)
        rows = (
            SQLiteStorage.get_logs(self.project, run_id=self.name) if there != self.config else []
        )
        if rows:  # it writes the config with rows only: the last one again, which it has
            last = rows[-1]
            step = last.pop("step")
            last.pop("timestamp")
            self._write([last], [step])

    def close(self) -> None:
        """Nothing: Trackio's database has all."""

    def where(self) -> str:
        """Trackio's folder."""
        from trackio import utils

        return str(utils.TRACKIO_DIR)

    def look(self) -> str:
        """The command for Trackio's dashboard of the project."""
        return f"TRACKIO_DIR={quote(self.where())} trackio show --project {quote(self.project)}"
