"""Mirrors of runs in trackers: each point once, none lost, whatever is killed; nothing in training.

What a tracker holds is read here from its own files, and compared with the lines of metrics.jsonl.
"""

import csv
import functools
import importlib
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import statistics
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import exit_code_of, fork
from trainer.mirror import main
from trainer.process.lock import hold
from yaml_trainer.mirror import following
from yaml_trainer.mirror.points import Lines
from yaml_trainer.mirror.tracker import new_tracker

ROOT = Path(__file__).resolve().parent.parent


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def points_of(run: Path) -> Counter:
    """(name, step, value) of each point of the run, with the test result at the last step."""
    points: dict[tuple[str, int], float] = {}
    for line in lines_of(run):
        for name, value in line.items():
            if name != "step":
                points.setdefault((name, line["step"]), value)
    result = json.loads((run / "result.json").read_text())
    if result["status"] == "done":
        last = max(step for _, step in points)
        points |= {(f"test/{k}", last): v for k, v in result["test"].items()}
    return Counter((name, step, repr(float(value))) for (name, step), value in points.items())


def in_csv(path: Path) -> Counter:
    with path.open(newline="") as file:
        return Counter(
            (name, int(row["step"]), repr(float(text)))
            for row in csv.DictReader(file)
            for name, text in row.items()
            if text and name != "step"
        )


def in_mlflow(place: Path, run: Path) -> Counter:
    """The points in the files of MLflow's file store, of runs that are not deleted."""
    found: Counter = Counter()
    for meta in place.glob("*/*/meta.yaml"):
        text = meta.read_text()
        if f"run_name: {run.name}\n" not in text or "lifecycle_stage: deleted" in text:
            continue
        metrics = meta.parent / "metrics"
        for path in (path for path in metrics.rglob("*") if path.is_file()):
            for line in path.read_text().splitlines():
                _, value, step = line.split()
                name = path.relative_to(metrics).as_posix()
                found[name, int(step), repr(float(value))] += 1
    return found


def in_trackio(place: Path, run: Path) -> Counter:
    found: Counter = Counter()
    for path in place.glob("*.db"):
        with closing(sqlite3.connect(path)) as base:
            query = "SELECT step, metrics FROM metrics WHERE run_id = ?"
            rows = base.execute(query, [run.name]).fetchall()
        for step, text in rows:
            for name, value in json.loads(text).items():
                found[name, step, repr(float(value))] += 1
    return found


def in_wandb(place: Path, run: Path) -> Counter:
    """The history in the offline folders: records of LevelDB's log format, each a protobuf."""
    wandb_internal_pb2: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    found: Counter = Counter()
    for path in place.glob(f"wandb/offline-run-*-{run.name}/*.wandb"):
        content, position, record = path.read_bytes(), 7, b""
        while position + 7 <= len(content):
            if 2**15 - position % 2**15 < 7:  # the rest of a block is empty
                position += 2**15 - position % 2**15
                continue
            _, length, kind = struct.unpack_from("<IHB", content, position)
            record += content[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # all of a record, or its last piece
                found += history_of(wandb_internal_pb2.Record.FromString(record))
                record = b""
    return found


def history_of(record: Any) -> Counter:
    if record.WhichOneof("record_type") != "history":
        return Counter()
    items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
    step = int(record.history.step.num)
    values = {k: float(json.loads(v)) for k, v in items.items() if not k.startswith("_")}
    return Counter((name, step, repr(value)) for name, value in values.items())


READERS = {"mlflow": in_mlflow, "trackio": in_trackio, "wandb": in_wandb}


def held(to: str, place: Path, run: Path) -> Counter:
    """What a tracker holds of a run."""
    if to == "csv":
        return in_csv(place / run.parent.name / f"{run.name}.csv")
    return READERS[to](place, run)


def mirror(run, to: str, place: Path, *more: str) -> int:
    return main([str(run), "--to", to, "--place", str(place), *more])


def command(output: Path, name: str, *arguments: object, cwd: Path = ROOT) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", f"trainer.{name}", *map(str, arguments)]
    with output.open("ab") as file:
        return subprocess.Popen(words, cwd=cwd, env=environment, stdout=file, stderr=file)


def kill(process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_ten_kills_of_the_run_and_ten_of_each_mirror_lose_no_point_and_double_none(
    config_file, tmp_path
):
    runs, trackers = tmp_path / "runs", ("mlflow", "csv", "trackio")
    settings = ["train.epochs=6000", "log.every=1st", "checkpoint.every=17st", "log.show=[scalars]"]
    output = tmp_path / "train.txt"
    training = command(output, "train", "--config", config_file, "--runs", runs, *settings)
    drawn = random.Random(7)
    while not (found := list(runs.glob("*/*/metrics.jsonl"))):
        time.sleep(0.1)
    run = found[0].parent

    def begin(to, *more):
        words = [run, "--to", to, "--place", tmp_path / to, *more]
        return command(tmp_path / f"{to}.txt", "mirror", *words)

    mirrors = {to: begin(to, "--follow", "--wait", 1) for to in trackers}
    steps = []
    for number in range(10):
        time.sleep(drawn.uniform(2, 4))
        for to in trackers:
            kill(mirrors[to])
            mirrors[to] = begin(to, "--follow", "--wait", 1)
        time.sleep(drawn.uniform(3, 6))
        assert training.poll() is None, output.read_text()[-2000:]
        kill(training)
        steps.append(lines_of(run)[-1]["step"])
        more = [f"train.epochs={lines_of(run)[-1]['epoch'] + 300}"] * (number == 9)
        training = command(output, "train", "--resume", run, *more)
    assert training.wait(600) == 0, output.read_text()[-2000:]
    began_at = re.findall(r"going on after step ([\d,]+)", output.read_text())
    cuts = sum(int(at.replace(",", "")) < step for at, step in zip(began_at, steps, strict=True))
    assert cuts > 3
    for to, process in mirrors.items():
        assert process.wait(120) == 0, (tmp_path / f"{to}.txt").read_text()
        assert held(to, tmp_path / to, run) == points_of(run), to
        assert begin(to).wait(120) == 0
        assert " 0 of them new" in (tmp_path / f"{to}.txt").read_text().splitlines()[-1]
        assert held(to, tmp_path / to, run) == points_of(run), to
        print((tmp_path / f"{to}.txt").read_text())
    print(cuts, "cuts seen,", points_of(run).total(), "points")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("to", ["mlflow", "csv"])
def test_a_mirror_that_follows_takes_a_small_share_of_a_core_and_no_time_of_training(
    config_file, tmp_path, to
):
    """In one training, the mirror is stopped (SIGSTOP) and let go in turn: ten pairs of 3 s."""
    runs, settings = tmp_path / "runs", ["train.epochs=100000", "log.every=20st", "log.show=[]"]
    output = tmp_path / "output.txt"
    training = command(output, "train", "--config", config_file, "--runs", runs, *settings)
    while not (found := list(runs.glob("*/*/metrics.jsonl"))):
        time.sleep(0.1)
    run = found[0].parent
    follower = command(output, "mirror", run, "--to", to, "--place", tmp_path / to, "--follow")
    time.sleep(12)  # it imports, and catches up
    steps: dict[bool, list[float]] = {True: [], False: []}
    share = 0.0
    for follows in 10 * (False, True):
        follower.send_signal(signal.SIGCONT if follows else signal.SIGSTOP)
        before = cpu_of(training), last_step(run), cpu_of(follower)
        time.sleep(3)
        took = cpu_of(training) - before[0]
        steps[follows].append(took / (last_step(run) - before[1]))
        share += (cpu_of(follower) - before[2]) / 30
    kill(follower)
    kill(training)
    ratios = [one / other for one, other in zip(steps[True], steps[False], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"\n{to}: CPU time of a step with to without a mirror: {middle:.3f} (quartiles {low:.3f} "
          f"to {high:.3f}); the mirror takes {share:.1%} of a core")  # fmt: skip
    assert share < 0.05
    assert middle < 1.1


def cpu_of(process: subprocess.Popen) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def last_step(run: Path) -> int:
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    whole = next(line for line in reversed(lines) if line.endswith(b"\n"))
    return int(json.loads(whole)["step"])


@pytest.mark.parametrize("to", ["csv", "mlflow", "trackio", "wandb"])
def test_each_point_of_a_finished_run_is_in_the_tracker_once_also_after_a_second_mirror(
    finished, tmp_path, capsys, to
):
    run, place = finished(), trackers_place(tmp_path, to)
    assert mirror(run, to, place) == 0
    assert held(to, place, run) == points_of(run)
    # A database that is opened may be touched, and its side files come and go.
    files = [p for p in place.rglob("*") if p.suffix != ".lock"] if to != "trackio" else []
    before = {path: path.stat().st_mtime_ns for path in files}
    capsys.readouterr()
    assert mirror(run, to, place) == 0
    assert " 0 of them new" in capsys.readouterr().out
    assert held(to, place, run) == points_of(run)
    if to != "trackio":
        after = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.suffix != ".lock"}
        assert after == before


def trackers_place(tmp_path: Path, to: str) -> Path:
    """A folder for a tracker; Trackio's is chosen once a process, when it is imported."""
    if to == "trackio" and "trackio.utils" in sys.modules:
        return Path(sys.modules["trackio.utils"].TRACKIO_DIR)
    return tmp_path / "tracked" / to


def test_numbers_that_are_not_finite_arrive(finished, tmp_path):
    run = finished()
    lines = lines_of(run)
    lines[0] |= {"train/loss": float("nan"), "train/accuracy": float("inf"), "lr/group0": 5e-324}
    lines[1] |= {"train/loss": -float("inf"), "train/accuracy": 0.1 + 0.2}
    write_lines(run, lines)
    for to in ("csv", "mlflow", "trackio", "wandb"):
        place = trackers_place(tmp_path, to)
        assert mirror(run, to, place) == 0
        assert held(to, place, run) == points_of(run), to
        assert mirror(run, to, place) == 0
        assert held(to, place, run) == points_of(run), to


def write_lines(run: Path, lines: list[dict]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text)


def set_result(run: Path, **values: object) -> None:
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | values))


@pytest.mark.parametrize("to", ["csv", "mlflow", "trackio", "wandb"])
def test_what_a_resumed_run_was_cut_back_by_is_replaced(finished, tmp_path, to):
    run, place = finished(), trackers_place(tmp_path, to)
    set_result(run, status="stopped", reason="stopped by SIGTERM")
    assert mirror(run, to, place) == 0
    lines = lines_of(run)
    last = {**lines[-1], "train/loss_epoch": 0.125}
    write_lines(run, [*lines[: len(lines) // 2], last])  # other steps, and another value
    set_result(run, status="done")
    assert mirror(run, to, place) == 0
    assert held(to, place, run) == points_of(run)
    if to == "mlflow":  # which removes no point: its first run is deleted, and can be restored
        stages = [path.read_text() for path in place.glob("*/*/meta.yaml")]
        assert sum("lifecycle_stage: deleted" in text for text in stages) == 1
        assert sum(f"run_name: {run.name}" in text for text in stages) == 2


def test_points_that_have_not_come_again_when_the_run_ends_are_removed(finished, tmp_path):
    run, place = finished(), tmp_path / "csv"
    set_result(run, status="stopped")
    assert mirror(run, "csv", place) == 0
    before = held("csv", place, run)
    write_lines(run, lines_of(run)[:-2])  # the values of the steps before are the same
    set_result(run, status="done")
    assert mirror(run, "csv", place) == 0
    assert held("csv", place, run) == points_of(run) != before


def test_a_file_that_was_cut_and_has_grown_past_its_old_end_is_read_again(tmp_path):
    file = tmp_path / "metrics.jsonl"

    def write(losses):
        lines = [{"step": step, "loss": loss} for step, loss in losses.items()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    lines = Lines(file)
    write({0: 1.0, 1: 2.0, 2: 3.0})
    assert lines.read() == {0, 1, 2}
    write({0: 1.0, 1: 5.0, 3: 6.0, 4: 7.0})
    assert lines.read() == {0, 1, 2, 3, 4}
    assert lines.rows == {0: {"loss": 1.0}, 1: {"loss": 5.0}, 3: {"loss": 6.0}, 4: {"loss": 7.0}}


def test_a_run_that_goes_on_to_the_same_bits_stays_the_same_run_of_mlflow(finished, tmp_path):
    run, place = finished(), tmp_path / "mlruns"
    lines = lines_of(run)
    set_result(run, status="stopped")
    assert mirror(run, "mlflow", place) == 0
    write_lines(run, lines[:2])
    set_result(run, status="running")
    with (run / "run.lock").open("a") as file:
        hold(file)
        assert mirror(run, "mlflow", place) == 0
    write_lines(run, lines)
    set_result(run, status="done")
    assert mirror(run, "mlflow", place) == 0
    assert held("mlflow", place, run) == points_of(run)
    assert len(list(place.glob("*/*/meta.yaml"))) == 1


def test_a_run_without_lines_and_settings_with_odd_names_are_mirrored(finished, tmp_path):
    run, place = finished(), tmp_path / "mlruns"
    (run / "metrics.jsonl").unlink()  # as of several models as one
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(f"{config}odd: {{'a, b (c)/../d': 1, '猫 ü': 2}}\n")
    assert mirror(run, "mlflow", place) == 0
    test = json.loads((run / "result.json").read_text())["test"]
    assert held("mlflow", place, run) == Counter(
        (f"test/{name}", 0, repr(value)) for name, value in test.items()
    )


def test_a_file_that_is_no_table_of_a_mirror_is_not_replaced(finished, capsys):
    run = finished()
    table = run / "metrics.csv"
    assert main([str(run), "--to", "csv"]) == 0
    own = table.read_text()
    edits = (
        own.replace("\n", ",comment\n", 1).replace("\n", ",too fast\n", 2),
        own + "# what I saw here\n",
        "my own notes\n",
        "\0\xff",
    )
    for text in edits:
        table.write_text(text)
        assert main([str(run), "--to", "csv"]) == 5
        assert table.read_text() == text
        assert "is not replaced. Move it away" in capsys.readouterr().err
    table.unlink()
    assert main([str(run), "--to", "csv"]) == 0
    assert table.read_text() == own
    with pytest.raises(SystemExit, match="2"):
        main([str(run), "--to", "csv", "--place", ""])


def test_a_line_that_is_half_written_waits(finished, tmp_path):
    run, place = finished(), tmp_path / "csv"
    whole = (run / "metrics.jsonl").read_bytes()
    set_result(run, status="stopped")
    (run / "metrics.jsonl").write_bytes(whole[:-9])
    assert mirror(run, "csv", place) == 0
    (run / "metrics.jsonl").write_bytes(whole + b'{"step": 9')
    expected = [json.loads(line) for line in whole.splitlines()]
    assert mirror(run, "csv", place) == 0
    had = held("csv", place, run)
    write_lines(run, expected)
    assert had == points_of(run)


def test_mlflow_gets_what_a_mirror_that_was_killed_left_out(finished, tmp_path):
    run, place = finished(), tmp_path / "mlruns"
    assert mirror(run, "mlflow", place) == 0
    (meta,) = place.glob("*/*/meta.yaml")
    shutil.rmtree(meta.parent / "tags")  # killed as it was made, so that it has its name only
    shutil.rmtree(meta.parent / "metrics" / "val")
    loss = meta.parent / "metrics" / "train" / "loss"
    loss.write_text("".join(loss.read_text().splitlines(keepends=True)[:2]))
    assert mirror(run, "mlflow", place) == 0
    assert held("mlflow", place, run) == points_of(run)
    assert list(place.glob("*/*/meta.yaml")) == [meta]
    assert (meta.parent / "tags" / "yaml_trainer.run").read_text() == run.name


def test_mlflow_shows_settings_tags_status_and_files(finished, tmp_path):
    from mlflow.tracking import MlflowClient

    run, place = finished(), tmp_path / "mlruns"
    set_result(run, status="failed", reason="the loss became NaN")
    assert mirror(run, "mlflow", place, "--with-model") == 0
    client = MlflowClient(str(place))
    experiment: Any = client.get_experiment_by_name("small")
    (shown,) = client.search_runs([experiment.experiment_id])
    assert shown.info.status == "FAILED"
    assert shown.data.params["optimizer.lr"] == "0.01"
    assert shown.data.params["model.name"] == "LeNet"
    tags = shown.data.tags
    assert tags["yaml_trainer.folder"] == str(run.resolve())
    assert tags["yaml_trainer.reason"] == "the loss became NaN"
    names = {item.path for item in client.list_artifacts(shown.info.run_id)}
    assert names >= {"config.yaml", "result.json", "model.pt", "report"}
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("epochs: 2", "epochs: 9"))
    set_result(run, status="done")
    assert mirror(run, "mlflow", place) == 0
    shown = client.get_run(shown.info.run_id)
    assert shown.info.status == "FINISHED"
    assert shown.data.params["train.epochs"] == "2"  # MLflow changes none
    assert shown.data.tags["yaml_trainer.now.train.epochs"] == "9"


@pytest.mark.slow
def test_a_database_of_mlflow_holds_each_point_once_and_one_that_cannot_be_opened_is_told(
    finished, tmp_path
):
    run, output = finished(), tmp_path / "output.txt"

    def to(path):  # SQLAlchemy warns where MLflow imports it, which is an error in tests
        words = ["--to", "mlflow", "--place", f"sqlite:///{path}"]
        process = command(output, "mirror", run, *words, cwd=tmp_path)
        return process.wait(60), output.read_text()

    for new in (points_of(run).total(), 0):
        code, text = to(tmp_path / "mlflow.db")
        *_, ended, look = text.splitlines()
        assert code == 0 and f" {new} of them new" in ended and look.startswith("look ")
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as base:
            had = Counter(
                (name, step, repr(value))
                for name, step, value in base.execute("SELECT key, step, value FROM metrics")
            )
        assert had == points_of(run)
    assert list((tmp_path / "mlruns").glob("*/*/artifacts/config.yaml"))  # beside no database
    (tmp_path / "text").write_text("no database, but a text of some length")
    for path, why in (("no/such.db", "unable to open"), ("text", "not a database")):
        code, text = to(tmp_path / path)  # MLflow alone tries for 100 s
        assert (code, why in text.splitlines()[-1]) == (5, True), text
    assert (tmp_path / "text").read_text().startswith("no database")


def test_a_folder_stands_for_all_runs_in_it_and_a_sweep_is_one_experiment(finished, tmp_path):
    place, sweep = tmp_path / "csv", tmp_path / "swept" / "rates"
    for number in range(2):
        run = sweep / f"t{number:03d}-seed0" / finished().name
        shutil.copytree(tmp_path / "runs" / "small" / run.name, run)
    (sweep / "plan.json").write_text("{}")
    assert mirror(sweep, "csv", place) == 0
    assert len(list((place / "rates").glob("*.csv"))) == 2
    assert mirror(tmp_path / "runs", "csv", place) == 0
    assert len(list((place / "small").glob("*.csv"))) == 2


def test_who_waits_and_follows_is_told_at_once_and_how_to_look(
    finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(following, "LONGEST_POLL", 1.0)
    place, later = tmp_path / "its place", tmp_path / "later" / "small"
    run = finished()
    set_result(run, status="running")

    def begin():
        time.sleep(0.5)
        later.mkdir(parents=True)
        run.rename(later / run.name)
        time.sleep(2.5)
        set_result(later / run.name, status="done")

    def held_by_training():
        with (run / "run.lock").open("a") as file:
            hold(file)
            begin()
        return 0

    capsys.readouterr()  # of the run, if this test made it
    training = fork(tmp_path / "training.txt", held_by_training)
    assert mirror(tmp_path / "later", "mlflow", place, "--follow", "--wait", "1") == 0
    assert exit_code_of(training) == 0, (tmp_path / "training.txt").read_text()
    waits, follows, look, ended = capsys.readouterr().out.splitlines()
    assert waits == f"waits   for a run in {tmp_path / 'later'}, at most 1 min"
    assert follows.startswith(f"follows {later / run.name} to mlflow {place}, ")
    command = f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri '{place}'"
    assert look.startswith(f"look    {command}")
    assert ended.startswith(f"mlflow  {later / run.name} is done: ")


def test_the_mirror_of_a_file_is_told_that_it_is_one(config_file, tmp_path, capsys):
    assert mirror(config_file, "csv", tmp_path) == 2
    assert f"{config_file} is a file. Expected a run" in capsys.readouterr().err


def test_a_mirror_that_does_not_follow_tells_once_how_to_look(finished, tmp_path, capsys):
    run, _ = finished(), finished()
    capsys.readouterr()
    assert mirror(run.parent, "mlflow", tmp_path / "mlruns") == 0
    *ended, look = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in ended] == ["mlflow", "mlflow"]
    assert look.startswith("look    MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri ")
    database = new_tracker("mlflow", f"sqlite:///{tmp_path}/runs.db").look()
    assert database.startswith(f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/runs.db")
    assert new_tracker("mlflow", "http://me:secretpw@127.0.0.1:1").look() == ""


def test_a_server_that_does_not_answer_is_a_note_then_exit_code_5(
    finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("yaml_trainer.mirror.following.TRIES", 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://me:secretpw@127.0.0.1:{free.getsockname()[1]}"
    code = main([str(finished()), "--to", "mlflow", "--place", address, "--follow"])
    output = "".join(capsys.readouterr())
    assert code == 5
    assert "note    mlflow does not answer, it is tried again" in output
    assert "the same command adds them" in output
    assert "secretpw" not in output


def test_a_second_mirror_of_a_run_and_a_package_that_is_absent_are_told(
    finished, tmp_path, capsys, monkeypatch
):
    run = finished()
    with (run / "mirror-csv.lock").open("a") as file:
        hold(file)
        assert mirror(run, "csv", tmp_path) == 5
    assert "is being mirrored by another process" in capsys.readouterr().err
    monkeypatch.setattr("yaml_trainer.mirror.tracker.importlib.util.find_spec", lambda name: None)
    assert mirror(run, "wandb", tmp_path) == 2
    assert 'pip install -e ".[wandb]"' in capsys.readouterr().err
    assert mirror(tmp_path / "nowhere", "csv", tmp_path) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_run_that_does_not_begin_in_the_time_that_is_waited_is_told(tmp_path, capsys):
    waiting = ["--follow", "--wait", "0.001"]
    assert main([str(tmp_path / "later"), "--to", "csv", *waiting]) == 2
    assert "later: no run began within 0.001 minutes" in capsys.readouterr().err


def test_lines_that_are_damaged_end_only_the_mirror_of_that_run(finished, tmp_path, capsys):
    damaged, sound = finished(), finished()
    (damaged / "metrics.jsonl").write_text('{"step": 1}\nno line\n')
    assert mirror(damaged.parent, "csv", tmp_path / "csv") == 5
    assert "line 2 cannot be read" in capsys.readouterr().err
    assert held("csv", tmp_path / "csv", sound) == points_of(sound)


def test_kills_of_run_and_mirrors_while_they_follow_lose_no_point_and_double_none(
    config_file, tmp_path
):
    """The short form of the test with ten kills; forks need not import PyTorch and MLflow again."""
    import mlflow.tracking  # noqa: F401

    from trainer.train import main as train

    runs, trackers = tmp_path / "runs", ("mlflow", "csv")
    settings = ["train.epochs=2000", "log.every=1st", "checkpoint.every=7st", "log.show=[]"]
    argv = ["--config", str(config_file), "--runs", str(runs), *settings]
    training = fork(tmp_path / "train.txt", lambda: train(argv))
    while not (found := list(runs.glob("*/*/metrics.jsonl"))):
        assert training.is_alive(), (tmp_path / "train.txt").read_text()
        time.sleep(0.01)
    run = found[0].parent

    def follow(to):
        def work():
            following.POLL = 0.02
            following.SHARE = 1
            return mirror(run, to, tmp_path / to, "--follow", "--wait", "0.5")

        return fork(tmp_path / f"{to}.txt", work)

    def kill_fork(process):
        process.kill()
        process.join()

    mirrors = {to: follow(to) for to in trackers}
    drawn = random.Random(3)
    for number in range(3):
        time.sleep(drawn.uniform(0.2, 0.6))
        for to in trackers:
            kill_fork(mirrors[to])
            mirrors[to] = follow(to)
        time.sleep(drawn.uniform(0.1, 0.4))
        assert training.is_alive(), (tmp_path / "train.txt").read_text()
        kill_fork(training)
        again = ["--resume", str(run)]
        if number == 2:
            again.append(f"train.epochs={lines_of(run)[-1]['epoch'] + 20}")
        training = fork(tmp_path / "train.txt", functools.partial(train, again))
    assert exit_code_of(training) == 0, (tmp_path / "train.txt").read_text()
    for to, process in mirrors.items():
        assert exit_code_of(process) == 0, (tmp_path / f"{to}.txt").read_text()
        assert held(to, tmp_path / to, run) == points_of(run), to
        assert mirror(run, to, tmp_path / to) == 0
        assert held(to, tmp_path / to, run) == points_of(run), to


def test_no_file_of_the_training_names_the_mirrors():
    files = [path for path in (ROOT / "trainer").rglob("*.py") if path.name != "mirror.py"]
    files += (ROOT / name for name in ("yaml_trainer/notifying.py", "yaml_trainer/__init__.py"))
    assert not [path for path in files if "yaml_trainer.mirror" in path.read_text()]
