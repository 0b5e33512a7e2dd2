"""The wheel: what it holds, and that it does what the checkout does, beside others of its names.

It is built once and installed into a folder. Before that folder on the path lie other packages
datasets, models, trainer and transforms, and commands run in a third folder.
"""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import SMALL
from yaml_trainer.__main__ import COMMANDS, main

pytest.importorskip("setuptools", minversion="77", reason='needs pip install -e ".[dev]"')

import setup

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "configs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
ABOUT = f"yaml_trainer-{VERSION}.dist-info"
NAMES = ("datasets", "models", "trainer", "transforms")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
INSTALL = (*PIP, "install", "--no-deps", "--no-compile")
WHEEL = (*PIP, "wheel", "--no-deps", "--no-build-isolation")


class Installed(NamedTuple):
    """The wheel, where it is installed, the others of its names, and where commands run."""

    wheel: Path
    target: Path
    others: Path
    cwd: Path

    def run(self, *words: str, code: int = 0, **environment: str) -> str:
        """What Python prints with these arguments; the exit code must be ``code``."""
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.cwd,
            env=self.environment() | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def environment(self) -> dict[str, str]:
        paths = f"{self.others}{os.pathsep}{self.target}"
        own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        return {k: v for k, v in os.environ.items() if k != "RANK"} | own


def copy_of_the_checkout(folder: Path) -> Path:
    """What a wheel is built from; a build leaves files in the folder that it runs in."""
    without = shutil.ignore_patterns("__pycache__")
    for name in (*SOURCES, *NAMES, "yaml_trainer"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=without)
        else:
            folder.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(["git", "init", "-q", str(folder)], check=False)  # of another project
    source = copy_of_the_checkout(folder / "source")
    subprocess.run([*WHEEL, "-w", folder, source], check=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    target = folder / "target"
    subprocess.run([*INSTALL, "--target", target, wheel], check=True, timeout=120)
    shutil.rmtree(source)
    others = folder / "others"
    for name in NAMES:
        (others / name).mkdir(parents=True)
        (others / name / "__init__.py").write_text("IS_ANOTHER = True\n")
    (folder / "cwd").mkdir()
    return Installed(wheel, target, others, folder / "cwd")


def code_of(package: Path) -> list[Path]:
    return [path for path in package.rglob("*") if path.suffix in (".py", ".j2")]


# --- what it holds


def test_the_wheel_brings_one_package_and_one_command(installed):
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"yaml_trainer", ABOUT}
    script = zipfile.ZipFile(installed.wheel).read(f"{ABOUT}/entry_points.txt")
    assert script.decode().split() == [
        "[console_scripts]",
        *"yaml-trainer = yaml_trainer.__main__:main".split(),
    ]


def test_the_wheel_holds_each_file_of_the_checkouts_packages(installed):
    kept = subprocess.run(["git", "ls-files", *NAMES, "configs"], cwd=ROOT, capture_output=True)
    files = {f"yaml_trainer/{name}" for name in kept.stdout.decode().split()}
    files |= {path.relative_to(ROOT).as_posix() for path in code_of(ROOT / "yaml_trainer")}
    if kept.returncode:
        pytest.skip("this is no git checkout")
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    assert files <= names
    assert "yaml_trainer/py.typed" in names
    assert not [name for name in names if "__pycache__" in name]


def test_every_import_of_the_wheel_leads_to_a_file_of_it(installed):
    package = installed.target / "yaml_trainer"
    named = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = str(node.module) if isinstance(node, ast.ImportFrom) else ""
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named |= {name for name in (module, *names) if name.startswith("yaml_trainer")}
    assert len(named) > 150
    for name in named:
        place = installed.target / name.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__init__.py").exists(), name


@pytest.mark.slow
def test_every_module_imports_and_leaves_the_other_packages_alone(installed):
    modules = sorted(
        ".".join(path.relative_to(installed.target).with_suffix("").parts)
        for path in (installed.target / "yaml_trainer").rglob("*.py")
    )
    lines = [f"import {name}" for name in NAMES]
    lines += [f"import {name.removesuffix('.__init__')}" for name in modules]
    lines += [f"assert {name}.IS_ANOTHER" for name in NAMES]
    lines += [f"assert not [m for m in sys.modules if m.startswith({name!r} + '.')]"
              for name in NAMES]  # fmt: skip
    assert len(modules) > 200
    installed.run("-c", "\n".join(["import sys", *lines]))


def test_no_text_of_the_wheel_names_what_only_the_checkout_has(installed):
    only = r"python -m trainer|pip install -e|(?<!yaml_trainer)\.?\b-m trainer\.|docs/\w+\.md\b"
    allowed = {"trainer/schema.py", "trainer/config/schema_page.py"}  # they write docs/yaml.md
    package = installed.target / "yaml_trainer"
    found = [
        f"{path.relative_to(package)}: {line}"
        for path in code_of(package)
        if path.relative_to(package).as_posix() not in allowed
        for line in path.read_text().splitlines()
        if re.search(only, line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "import datasets",
        "import trainer.run.disk",
        "import os, models.lenet",
        "def f():\n    import transforms.keyed\n",
        "if True: from datasets import walk",
        "import importlib\nimportlib.import_module('trainer.run.disk')",
        "LINE = 'models.lenet:LeNet'",
    ],
)
def test_what_the_build_cannot_rename_is_told(code):
    assert list(setup.names_of_the_checkout(setup.as_installed(code)))


@pytest.mark.parametrize(
    "code",
    [
        "from datasets import DATASETS",
        "def f():\n    from trainer.run.disk import write_file\n",
        "from models import (\n    MODELS,\n)",
        "import trainer.components as tables",
        'TABLE = {"LeNet": "models.lenet:LeNet"}',
        "KEY = 'transforms.train'",
        "from . import datasets",
    ],
)
def test_what_the_build_can_rename_is_no_fault(code):
    assert list(setup.names_of_the_checkout(setup.as_installed(code))) == []


def test_a_build_that_cannot_rename_a_module_fails_and_names_the_line(tmp_path):
    source = copy_of_the_checkout(tmp_path / "source")
    with (source / "trainer" / "runs.py").open("a") as file:
        file.write("import models.lenet\n")
    lines = (source / "trainer" / "runs.py").read_text().count("\n")
    build = [sys.executable, "setup.py", "-q", "build", "--build-base", tmp_path / "build"]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert done.returncode
    assert f"trainer/runs.py:{lines}: models.lenet" in done.stderr
    assert not list((tmp_path / "build").rglob("*.py"))


@pytest.mark.slow
def test_a_wheel_from_the_source_distribution_is_the_same(installed, tmp_path):
    source = copy_of_the_checkout(tmp_path / "source")
    build = "from setuptools import build_meta; print(build_meta.build_sdist(OUT))"
    code = build.replace("OUT", repr(str(tmp_path)))
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    subprocess.run([*WHEEL, "-w", tmp_path, archive], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    ours, theirs = zipfile.ZipFile(installed.wheel), zipfile.ZipFile(wheel)
    assert sorted(ours.namelist()) == sorted(theirs.namelist())
    assert [name for name in ours.namelist() if ours.read(name) != theirs.read(name)] == []


# --- the command


def test_the_command_knows_every_command_of_the_trainer():
    files = {path.stem for path in (ROOT / "trainer").glob("*.py")} - {"__init__"}
    assert set(COMMANDS) == files


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_tells_its_arguments_by_its_installed_name(installed, command):
    told = installed.run("-m", "yaml_trainer", command, "--help")
    assert told.startswith(f"usage: yaml-trainer {command} ")


def test_the_version_is_that_of_the_package_and_tells_its_folder(installed):
    place = installed.target / "yaml_trainer"
    told = installed.run("-m", "yaml_trainer", "--version")
    assert told == f"yaml-trainer {VERSION} ({place})\n"


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_lists_every_command_with_what_it_does(words, capsys):
    assert main(words) == 0
    told = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +{does}$", told, re.M) for name, does in COMMANDS.items())


@pytest.mark.parametrize(
    ("typed", "hint"), [("trian", "did you mean train?"), ("xyz", "there are new, train, sweep")]
)
def test_an_unknown_command_is_told_what_was_meant(typed, hint, capsys):
    assert main([typed]) == 2
    assert f"unknown command {typed}; {hint}" in capsys.readouterr().err


def test_a_command_may_be_typed_with_a_hyphen(installed):
    assert installed.run("-m", "yaml_trainer", "find-lr", "--help").startswith("usage: yaml-")


def test_the_installed_script_keeps_exit_codes(installed):
    script = str(installed.target / "bin" / "yaml-trainer")
    told = installed.run(script, "train", "--config", "absent.yaml", code=2)
    assert "absent.yaml: cannot be read" in told


def test_an_example_that_the_package_has_is_found_by_its_name(installed):
    told = installed.run("-m", "yaml_trainer", "train", "--config", "lenet_rmb.yaml", code=2)
    place = installed.target / "yaml_trainer" / "configs" / "lenet_rmb.yaml"
    assert f"did you mean {place}?" in told
    told = installed.run("-m", "yaml_trainer", "train", "--config", str(place), "--print-config")
    assert "name: lenet_rmb" in told


@pytest.mark.parametrize(
    ("words", "code"), [(["train"], 75), (["sweep"], 75), (["data"], 128 + signal.SIGTERM)]
)
def test_a_stop_before_the_work_began_ends_as_in_the_checkout(installed, words, code):
    pipe = installed.cwd / f"{words[0]}.yaml"
    os.mkfifo(pipe)
    words = [*words, "--config", pipe.name]
    process = subprocess.Popen(
        [sys.executable, str(installed.target / "bin" / "yaml-trainer"), *words],
        cwd=installed.cwd,
        env=installed.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    with pipe.open("w"):  # it waits until the command reads
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == code and "Traceback" not in told
    if code == 75:
        assert told.splitlines()[-1] == f"  yaml-trainer {' '.join(words)}"


# --- a run


@pytest.fixture(scope="session")
def run_of_the_wheel(installed, shared_config) -> Path:
    """A run of the small YAML by the wheel."""
    runs = installed.cwd / "runs"
    told = installed.run(
        *("-m", "yaml_trainer", "train", "--config", str(shared_config), "--runs", str(runs)),
        *("log.show=[]", "loader.workers=1"),
    )
    assert "yaml-trainer predict" in told and "python -m" not in told
    (run,) = (runs / "small").glob("2*")
    return Path(run)


def test_the_wheel_and_the_checkout_train_to_the_same_bits(run_of_the_wheel, finished):
    run = finished()
    for name in ("model.pt", "metrics.jsonl", "split.json"):
        assert (run_of_the_wheel / name).read_bytes() == (run / name).read_bytes()


def test_a_run_tells_the_wheels_code_and_no_commit_of_the_repository_around_it(run_of_the_wheel):
    about = json.loads((run_of_the_wheel / "environment.json").read_text())
    assert re.fullmatch(rf"yaml-trainer {re.escape(VERSION)}, [0-9a-f]{{10}}", about["code"])
    assert about["git_commit"] is None and about["git_changed_files"] == []
    assert (run_of_the_wheel / "uncommitted.patch").read_bytes() == b""


@pytest.mark.slow
def test_hugging_faces_datasets_and_the_wheel_work_in_one_process(installed, shared_config):
    try:
        place = distribution("datasets").locate_file("")
    except PackageNotFoundError:
        pytest.skip("needs pip install datasets")
    words = ["--config", str(shared_config), "--runs", "beside", "log.show=[]", "train.epochs=1"]
    code = f"""
import datasets
from yaml_trainer.trainer.train import main
assert main({words}) == 0
assert datasets.Dataset.from_dict({{"x": [1, 2]}}).map(lambda row: {{"y": row["x"]}})["y"][1] == 2
"""
    installed.run("-c", code, PYTHONPATH=f"{installed.target}{os.pathsep}{place}")


@pytest.mark.slow
@pytest.mark.parametrize("forks", [True, False])
def test_a_sweep_of_the_wheel_runs_the_wheel_in_its_processes(installed, tmp_path, notes, forks):
    (tmp_path / "base.yaml").write_text(SMALL.format(root=notes))
    text = "base: base.yaml\nsweep: {method: grid, params: {optimizer.lr: [0.1, 0.01]}}\n"
    (tmp_path / "two.yaml").write_text(text)
    words = ["--config", str(tmp_path / "two.yaml"), "--runs", str(tmp_path), "log.show=[]"]
    if forks:
        told = installed.run("-m", "yaml_trainer", "sweep", *words)
    else:  # a program that imports torch first
        code = f"import torch\nfrom yaml_trainer.trainer.sweep import main\nmain({words})"
        told = installed.run("-c", code)
    assert "trials  2 done" in told
    for path in (tmp_path / "two").glob("t*/2*/environment.json"):
        about = json.loads(path.read_text())
        assert "code" in about and "yaml_trainer.trainer.train" in about["command"]


@pytest.mark.slow
def test_the_wheel_resumes_a_run_of_the_checkout(installed, finished):
    run = finished("train.epochs=3")
    words = ["train", "--resume", str(run), "train.epochs=4"]
    assert "4/4" in installed.run("-m", "yaml_trainer", *words)
    same = finished("train.epochs=4")
    assert (run / "model.pt").read_bytes() == (same / "model.pt").read_bytes()


def test_the_folder_of_an_export_has_the_checkouts_sources_and_needs_no_package(
    installed, run_of_the_wheel, notes
):
    pytest.importorskip("safetensors", reason='needs pip install -e ".[export]"')
    installed.run("-m", "yaml_trainer", "export", str(run_of_the_wheel), "--format", "safetensors")
    (folder,) = (run_of_the_wheel / "export").glob("*-safetensors")
    sources = sorted((folder / "models").rglob("*.py"))
    assert folder / "models" / "lenet.py" in sources
    for path in sources:
        assert path.read_bytes() == (ROOT / path.relative_to(folder)).read_bytes()
    picture = str(notes / "1" / "000.jpg")
    told = installed.run(str(folder / "use.py"), picture, PYTHONPATH=str(installed.others))
    assert told.startswith(f"{picture}\t1")


def test_errors_know_the_wheels_files(installed):
    code = """
from pathlib import Path
from yaml_trainer.trainer.process.errors import CHECKOUT, component_place, is_machinery
assert is_machinery("datasets/walk.py") and not is_machinery("datasets/image_folder.py")
def place(file):
    try:
        exec(compile("raise KeyError(1)", str(CHECKOUT / file), "exec"))
    except KeyError as error:
        return component_place(error)
print(place("models/lenet.py"), place("export/exporting.py"), place("trainer/run/disk.py"), sep="|")
"""
    told = installed.run("-c", code)
    assert told == "models/lenet.py:1, in <module>||\n"


# --- the checkout as a package


def other_first(folder: Path, name: str) -> str:
    """Code that imports another package of this name, then the checkout's yaml_trainer."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    return f"""
import sys
sys.path[:0] = [{str(folder)!r}]
import {name}
sys.path[:1] = [{str(ROOT)!r}]
import yaml_trainer"""


@pytest.mark.parametrize("name", NAMES)
def test_a_checkout_refuses_to_be_imported_after_another_package_of_its_names(tmp_path, name):
    done = subprocess.run(
        [sys.executable, "-c", other_first(tmp_path, name)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    other = tmp_path / name / "__init__.py"
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: the checkout's folder {name} and {other} have one name")
    assert f"pip install {ROOT}" in last


def test_a_checkouts_command_runs_in_every_folder(tmp_path, shared_config):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "yaml_trainer").symlink_to(ROOT / "yaml_trainer")  # as if installed by -e
    words = ["train", "--config", str(shared_config), "--print-config"]
    done = subprocess.run(
        [sys.executable, "-m", "yaml_trainer", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "path")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "name: small" in done.stdout, done.stderr


# --- its types


@pytest.mark.slow
def test_mypy_sees_the_packages_types_in_a_users_script(installed, tmp_path):
    pytest.importorskip("mypy", reason='needs pip install -e ".[dev]"')
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    zipfile.ZipFile(installed.wheel).extractall(packages)
    ours = [path for path in sys.path if path.endswith("-packages")]
    (packages / "ours.pth").write_text("\n".join(ours))
    script = tmp_path / "script.py"
    text = "from yaml_trainer.trainer.config import load_config\nreveal_type(load_config('a.yaml'))"
    script.write_text(f"{text}\nload_config(1)\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path / 'cache'}",
         f"--python-executable={tmp_path / 'venv' / 'bin' / 'python'}", script.name],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    told = done.stdout.splitlines()
    assert 'Revealed type is "yaml_trainer.trainer.config.config.Config"' in told[0], done
    assert "script.py:3" in told[1] and "arg-type" in told[1]
    assert told[-1].startswith("Found 1 error in 1 file")


# --- its page


def test_the_page_on_installing_lists_every_extra_with_its_packages():
    page = (ROOT / "docs" / "install.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", page, re.M))
    extras = PROJECT["optional-dependencies"]
    assert list(rows) == sorted(extras)
    for extra, packages in extras.items():
        if extra != "dev":  # these are all packages, and more
            assert rows[extra].split(", ") == [re.split(r"[>=]", name)[0] for name in packages]
