"""The harness can fail: cores that are broken on purpose do not survive its trials."""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from tests.conftest import exit_code_of, fork
from tests.torture import faults as torture_faults
from tests.torture import run as torture_run
from tests.torture.__main__ import Outcome, import_once, main, survived, table
from tests.torture.run import digest, is_whole
from tests.torture.trials import DAMAGES, spread

EMPTIED = str(DAMAGES.index("empty folder"))  # the newest checkpoint: the one before it is taken
SABOTAGES = {  # what is broken -> (the patch, the trial that must notice, its words)
    "nothing": ("", ["damage", EMPTIED], "1 of 1 survived"),
    "the schedule begins anew": (
        "trainer.components.schedulers.Schedule.load_state_dict = lambda *_: None",
        ["resume", "6"],
        "differ",
    ),
    "lines of metrics stay": (
        "cut = trainer.run.disk.AppendedFile.__init__\n"
        "def keep(self, path, length=0):\n"
        "    cut(self, path, path.stat().st_size if path.exists() else 0)\n"
        "trainer.run.disk.AppendedFile.__init__ = keep",
        ["damage", EMPTIED],
        "differ",
    ),
    "older checkpoints go first": (
        "write = trainer.run.saver.write_checkpoint\n"
        "def prune_first(run, *rest):\n"
        "    for old in trainer.run.checkpoint.checkpoints(run):\n"
        "        trainer.run.checkpoint.remove(old)\n"
        "    return write(run, *rest)\n"
        "trainer.run.saver.write_checkpoint = prune_first",
        ["damage", EMPTIED],
        "not two",
    ),
    "a stop does not save": (
        "trainer.loop.epochs.save_here = lambda session: session.saver.wait()",
        ["resume", "7"],
        "stopped at step 8, saved step",
    ),
    "a damaged checkpoint is taken for whole": (
        "trainer.run.checkpoint.problem_of = lambda *_: None",
        ["damage", str(DAMAGES.index("forged digest"))],
        "without a word",
    ),
    "nothing of the store": ("", ["store", "0"], "1 of 1 survived"),
    "the store gives bytes of an image's neighbour": (
        "append = trainer.input.pool.Segment.append\n"
        "def shifted(self, data):\n"
        "    place = append(self, data)\n"
        "    return place - 1 if self.folder and place else place\n"
        "trainer.input.pool.Segment.append = shifted",
        ["store", "2"],
        "differs from what was prepared without a store",
    ),
}


def attempt(patch, kind, seed, images):
    """Try one trial with the harness's own command, after a patch; returns its exit code."""
    import trainer

    exec(patch, {"trainer": trainer})
    return main(["--only", kind, "--seed", seed, "--trials", "1", "--rmb", str(images)])


@pytest.fixture
def reported(tmp_path_factory, notes):
    """The exit code and the report of the harness for a sabotage, which happens in a fork."""
    folder = tmp_path_factory.mktemp("report")

    def attempted(name):
        patch, (kind, seed), _ = SABOTAGES[name]

        def work():
            tempfile.tempdir = str(folder)
            import_once()
            return attempt(patch, kind, seed, notes)

        code = exit_code_of(fork(folder / "said.txt", work), 300)
        return code, (folder / "said.txt").read_text()

    return attempted


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the harness is Linux's")
@pytest.mark.parametrize("name", SABOTAGES)
def test_a_sabotaged_core_does_not_survive_and_a_sound_one_does(reported, name):
    code, report = reported(name)
    patch, (kind, seed), words = SABOTAGES[name]
    assert words in report, report
    assert code == bool(patch), report
    assert (f"--only {kind} --seed {seed} --trials 1" in report) == bool(patch)


def write_run(folder: Path, *, change: str = "") -> Path:
    """A run's results by hand, with one of its values changed by one bit."""
    run = folder / (change or "as it was")
    checkpoint = run / "checkpoints" / "step-000000010"
    checkpoint.mkdir(parents=True)

    def tensor(name: str) -> torch.Tensor:
        bits = torch.tensor([1065353216, 7], dtype=torch.int32)  # 1.0, and next to nothing
        return (bits ^ torch.tensor([0, name == change], dtype=torch.int32)).view(torch.float32)

    state = {
        "model": {"weight": tensor("a weight")},
        "optimizer": {"state": {0: {"momentum_buffer": tensor("an optimizer's state")}}},
        "counters": {"step": 10 + (change == "a counter")},
        "clocks": {"train_seconds": 1.0 + (change == "clocks")},
    }
    torch.save(state.pop("model"), checkpoint / "weights.pt")
    torch.save(state, checkpoint / "state.pt")
    torch.save({"weight": tensor("the best weights")}, run / "model.pt")
    (run / "metrics.jsonl").write_text('{"step": 10}\n' * (1 + (change == "metrics")))
    (run / "predictions.csv").write_text("id\n" * (1 + (change == "an answer")))
    result = {"test": {"loss": 0.5 + (change == "a result")}, "images_per_second": len(change)}
    (run / "result.json").write_text(json.dumps(result))
    files = {}
    for name in ("weights.pt", "state.pt"):
        data = (checkpoint / name).read_bytes()
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint / "MANIFEST.json").write_text(json.dumps({"files": files}))
    assert is_whole(checkpoint)
    return run


@pytest.mark.parametrize(
    "change",
    [
        *("a weight", "an optimizer's state", "a counter", "the best weights", "metrics"),
        *("an answer", "a result"),
    ],
)
def test_one_bit_changes_the_digest(tmp_path, change):
    as_it_was = digest(write_run(tmp_path), tmp_path)
    assert digest(write_run(tmp_path, change=change), tmp_path) != as_it_was


def test_clocks_do_not_change_the_digest(tmp_path):
    assert digest(write_run(tmp_path), tmp_path) == digest(
        write_run(tmp_path, change="clocks"), tmp_path
    )


@pytest.mark.parametrize("name", ["weights.pt", "state.pt"])
def test_a_checkpoint_with_another_byte_is_not_whole(tmp_path, name):
    checkpoint = write_run(tmp_path) / "checkpoints" / "step-000000010"
    data = bytearray((checkpoint / name).read_bytes())
    data[-1] ^= 1
    (checkpoint / name).write_bytes(data)
    assert not is_whole(checkpoint)


def test_a_checkpoint_pruned_while_it_is_looked_at_is_not_lost_and_one_that_stays_is(
    tmp_path, monkeypatch
):
    """A fault that strikes in one thread looks while the saver's thread goes on."""
    trial = torture_run.Trial(torture_run.Bench(tmp_path), 0, tmp_path)
    run = write_run(tmp_path / "runs" / "torture")
    (run / "config.yaml").write_text("")
    checkpoints = run / "checkpoints"
    newer = shutil.copytree(checkpoints / "step-000000010", checkpoints / "step-000000020")
    assert trial.steps() == [10, 20]

    def prune_first(folder: Path) -> bool:
        if folder != newer and folder.exists():
            folder.rename(folder.with_name(f"{folder.name}.tmp-1"))
        return is_whole(folder)

    monkeypatch.setattr(torture_run, "is_whole", prune_first)
    assert trial.steps() == [20]
    (newer / "weights.pt").unlink()
    with pytest.raises(torture_run.Lost, match="step-000000020 can be seen, and is not whole"):
        trial.steps()


def test_what_was_lost_or_never_tried_did_not_survive():
    fine, lost = Outcome(3, "survived", ""), Outcome(4, "lost", "it differs")
    never = Outcome(5, "not reached", "")
    assert survived([fine, never], "")
    assert not survived([fine, lost], "")
    assert not survived([never], "") and not survived([], "")
    assert survived([], "no strace here")
    assert table([("kill", [fine, lost, never], "")]).endswith("| 2 | 1 | 4 |")


def test_a_slice_of_the_cases_holds_the_first_and_the_last():
    assert spread(3, 10) == [1, 2, 3]
    assert spread(100, 4) == [1, 34, 67, 100]


def test_a_kind_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "kill,kil"])
    assert "--only kil: expected some of kill" in capsys.readouterr().err


def test_each_module_of_each_phase_has_functions_to_strike():
    for phase, modules in torture_faults.PHASES.items():
        found = {name.partition(":")[0] for name in torture_faults.functions(phase)}
        assert found == {f"trainer.{module}" for module in modules}
