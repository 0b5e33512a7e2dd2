"""The list of sabotages fits the code as it is, and the command tells caught from survived."""

import subprocess

import pytest

from tests.torture.sabotage import ROOT, main, patched, run
from tests.torture.sabotages import SABOTAGES, Sabotage


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.name)
def test_each_sabotage_fits_the_code_and_leaves_code(sabotage):
    text = patched(ROOT, sabotage)
    assert text != (ROOT / sabotage.file).read_text()
    compile(text, sabotage.file, "exec")


def test_each_sabotage_names_tests_that_there_are():
    assert all(sabotage.tests for sabotage in SABOTAGES)
    for test in {test for sabotage in SABOTAGES for test in sabotage.tests}:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text()
        assert not name or f"\ndef {name.partition('[')[0]}(" in text, test


def test_there_are_many_sabotages_and_no_two_alike():
    assert len(SABOTAGES) >= 50
    assert len({sabotage.name for sabotage in SABOTAGES}) == len(SABOTAGES)
    assert len({sabotage[2:5] for sabotage in SABOTAGES}) == len(SABOTAGES)
    assert not [sabotage.name for sabotage in SABOTAGES if "," in sabotage.name]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout of one function, whose test looks at one of its two promises."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer than the test;
    monkeypatch.setenv("PYTEST_PLUGINS", "_hypothesis_pytestplugin")  # the command names its seed
    (tmp_path / "tests").mkdir()
    (tmp_path / "sums.py").write_text("def plus(a, b):\n    return abs(a) + b\n")
    (tmp_path / "tests" / "test_sums.py").write_text(
        "import sums\n\ndef test_plus():\n    assert sums.plus(2, 3) == 5\n"
    )
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def bug(name: str, old: str, new: str) -> Sabotage:
    return Sabotage(name, "sums are wrong", "sums.py", old, new, ("tests/test_sums.py",))


def test_a_sabotage_counts_as_caught_where_a_test_fails_and_only_there(project, capsys):
    sabotages = [
        bug("minus", " + ", " - "),
        bug("abs forgotten", "abs(a)", "a"),
        bug("no code", "return", "return return"),
        bug("crash", "    return", "    import os\n    os.abort()\n    return"),
    ]
    assert run(project, sabotages, jobs=2) == 1
    told = capsys.readouterr().out.splitlines()
    assert f"{'minus':42} tests/test_sums.py::test_plus" in told
    for name in ("abs forgotten", "no code", "crash"):
        assert f"{name:42} SURVIVED: sums are wrong" in told
    assert told[-1].startswith("1 of 4 caught")
    assert "abs(a) + b" in (project / "sums.py").read_text()


def test_where_all_are_caught_the_exit_code_is_0(project):
    assert run(project, [bug("minus", " + ", " - ")], jobs=1) == 0


def test_tests_that_fail_by_themselves_show_nothing(project, capsys):
    (project / "sums.py").write_text("def plus(a, b):\n    return a - b\n")
    assert run(project, [bug("minus more", "a - b", "b - a")], jobs=1) == 2
    assert "fail without any sabotage" in capsys.readouterr().out


def test_a_patch_that_no_longer_fits_is_an_error_and_no_catch(project):
    with pytest.raises(ValueError, match="not exactly once"):
        run(project, [bug("times", "a * b", "a / b")], jobs=1)


def test_the_command_lists_what_there_is_and_refuses_what_there_is_not(capsys):
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(SABOTAGES)
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "no fsync of files,no such thing"])
    assert "unknown: no such thing" in capsys.readouterr().err
