"""A run in MLflow: a folder, a database or a server."""

import os
import re
import shlex
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import packages_distributions
from typing import TYPE_CHECKING, Any

from trainer.process.errors import RunError
from yaml_trainer.mirror.about import About, digest_text
from yaml_trainer.mirror.points import Rows
from yaml_trainer.mirror.tracker import Unreachable

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

OURS = "yaml_trainer."  # begins the names of our tags
STATUS = {"running": "RUNNING", "done": "FINISHED", "failed": "FAILED"}  # all others: KILLED
AT_ONCE = 500  # points in a request; MLflow takes 1000
PARAMS_AT_ONCE = 90  # MLflow takes 100


def require_database(uri: str) -> None:
    """Raise RunError if SQLite's file cannot be opened: MLflow would try it for 100 seconds."""
    scheme, _, path = uri.partition(":///")
    if not scheme.startswith("sqlite"):
        return
    try:
        with closing(sqlite3.connect(path.partition("?")[0])) as base:
            base.execute("PRAGMA schema_version")
    except (sqlite3.Error, ValueError) as error:
        raise RunError(f"{uri}: {error}.") from None


class MLflowRun:
    """One run of MLflow, in the experiment that is named after the configuration or the sweep.

    MLflow removes no point, and its folders keep a point twice if it is logged twice. Therefore
    what it holds is read back before anything is logged. Where it holds what the run does not have,
    its run is deleted, as MLflow deletes (it can be restored), and another is begun.
    """

    def __init__(self, place: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        # A server that is not there is told in seconds, and tried again by us.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self.uri = place or os.environ.get("MLFLOW_TRACKING_URI") or "mlruns"
        if is_folder(self.uri):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else MLflow 3 refuses it
        self._client: MlflowClient | None = None
        self._id, self._experiment = "", ""
        self._about: About | None = None

    @property
    def client(self) -> "MlflowClient":
        """MLflow's client."""
        if self._client is None:
            require_database(self.uri)
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient(self.uri)
        return self._client

    def open(self, about: About) -> Rows:
        """Find the run, or begin one, and read its points."""
        with self.reached():
            self._experiment = self.experiment(about.group)
            found = self.find(about)
            self._id = found.info.run_id if found else self.begin(about)
            rows = Rows()
            for name in self.client.get_run(self._id).data.metrics:
                for point in self.client.get_metric_history(self._id, name):
                    rows.setdefault(point.step, {})[name] = point.value
            self._about = about
            return rows

    def experiment(self, name: str) -> str:
        """The id of the experiment, which is made if there is none."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return str(self.client.create_experiment(name))
        if found.lifecycle_stage != "active":
            raise RunError(f"{self.where()}: the experiment {name} was deleted; restore it there.")
        return str(found.experiment_id)

    def find(self, about: About) -> "Run | None":
        """MLflow's run of this run. One that was killed while it was made has only its name."""
        for wanted in (
            f"tags.`{OURS}run` = '{about.identity}'",
            f"attributes.run_name = '{about.identity}'",
        ):
            if found := self.client.search_runs([self._experiment], wanted):
                return found[0]
        return None

    def begin(self, about: About) -> str:
        """Make a run in MLflow; returns its id."""
        made = self.client.create_run(
            self._experiment, run_name=about.identity, tags={f"{OURS}run": about.identity}
        )
        return str(made.info.run_id)

    def add(self, rows: Rows) -> None:
        """Log points. Their time is now: metrics.jsonl has none."""
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        points = [
            Metric(name, float(value), now, step)
            for step, row in rows.items()
            for name, value in row.items()
        ]
        with self.reached():
            for first in range(0, len(points), AT_ONCE):
                self.client.log_batch(self._id, metrics=points[first : first + AT_ONCE])

    def begin_again(self) -> None:
        """Delete MLflow's run, which can be restored, and begin another."""
        assert self._about is not None
        with self.reached():
            self.client.set_tag(self._id, f"{OURS}replaced", "the run was cut back, and went on")
            self.client.delete_run(self._id)
            self._id = self.begin(self._about)

    def describe(self, about: About) -> None:
        """Write settings, tags, files and status, as far as they are not there yet."""
        with self.reached():
            there = self.client.get_run(self._id)
            self.write_settings(about, there)
            files = digest_text(about)
            if there.data.tags.get(f"{OURS}files") != files[:5000]:
                for file in about.files:
                    self.client.log_artifact(self._id, str(file.path), file.folder or None)
                self.client.set_tag(self._id, f"{OURS}files", files[:5000])
            status = STATUS.get(about.status, "KILLED")
            if there.info.status != status:
                if status == "RUNNING":
                    self.client.update_run(self._id, status)
                else:
                    self.client.set_terminated(self._id, status)

    def write_settings(self, about: About, there: "Run") -> None:
        """Write params and tags. MLflow changes no param: a later value becomes a tag."""
        from mlflow.entities import Param

        had, tags = there.data.params, {f"{OURS}{k}": v for k, v in about.tags.items()}
        # A class name may be part of a name, and MLflow takes few signs in it.
        settings = {re.sub(r"[^\w.-]", "_", k)[:200]: v for k, v in about.settings.items()}
        tags |= {
            f"{OURS}now.{name}": value
            for name, value in settings.items()
            if had.get(name, value) != value
        }
        if "commit" in about.tags:
            tags["mlflow.source.git.commit"] = about.tags["commit"]
        new = [Param(name, value) for name, value in settings.items() if name not in had]
        for first in range(0, len(new), PARAMS_AT_ONCE):
            self.client.log_batch(self._id, params=new[first : first + PARAMS_AT_ONCE])
        for name, value in tags.items():
            if there.data.tags.get(name) != value:
                self.client.set_tag(self._id, name, value)
        if "reason" not in about.tags and f"{OURS}reason" in there.data.tags:
            self.client.delete_tag(self._id, f"{OURS}reason")

    def close(self) -> None:
        """Nothing: MLflow writes at once."""

    def where(self) -> str:
        """The place, without a password."""
        return re.sub(r"//[^/@]*@", "//...@", self.uri)

    def look(self) -> str:
        """The command for MLflow's pages, which the small package of the extra lacks."""
        if self.uri.startswith(("http:", "https:", "databricks")):
            return ""  # the server shows them
        allow = "MLFLOW_ALLOW_FILE_STORE=true " * is_folder(self.uri)
        lacks = "  (it needs: pip install mlflow)" * (
            "mlflow" not in packages_distributions().get("mlflow", [])
        )
        return f"{allow}mlflow ui --backend-store-uri {shlex.quote(self.where())}{lacks}"

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Context manager: MLflow's errors become Unreachable for a server, RunError for a disk."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            text: Any = re.sub(r"//[^/@\s]*@", "//...@", str(error).strip()).split("\n")[0][:300]
            if self.uri.startswith(("http:", "https:")):
                raise Unreachable(text) from None
            raise RunError(f"{self.where()}: {text}") from None


def is_folder(uri: str) -> bool:
    """Whether MLflow keeps runs in a folder there, which MLflow 3 does only where it is allowed."""
    return "://" not in uri or uri.startswith("file:")
