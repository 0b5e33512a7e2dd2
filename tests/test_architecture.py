"""What holds for the whole tree: who may import whom, and that ours are the modules that load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("datasets", "models", "scripts", "trainer", "transforms")
MAY_IMPORT = {
    "datasets": {"datasets"},
    "models": {"models"},
    "transforms": {"transforms"},
    "trainer": {"datasets", "models", "trainer", "transforms"},
    "scripts": set(FOLDERS),
}
COMMANDS = sorted(  # schema is for developers: it may take its time
    path.stem
    for path in (ROOT / "trainer").glob("*.py")
    if "argparse" in path.read_text() and path.stem != "schema"
)
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def entry_points() -> set[str]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in FILES
        if '__name__ == "__main__"' in path.read_text()
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    folder = path.relative_to(ROOT).parts[0]
    modules = imported_modules(path)
    ours = {module.split(".")[0] for module in modules} & set(FOLDERS)
    assert ours <= MAY_IMPORT[folder]
    assert not modules & entry_points(), "nobody imports an entry point"


@pytest.mark.parametrize("name", FOLDERS)
def test_the_checkout_wins_over_packages_of_the_same_name(name):
    assert Path(str(__import__(name).__file__)).parent == ROOT / name


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_before_anything_heavy_is_imported(command):
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('trainer.{command}', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code\n"
        "assert not {'torch', 'pydantic', 'yaml', 'tqdm', 'numpy', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python -m trainer.{command}" in done.stdout


def test_a_wrong_key_is_told_before_torch_is_imported(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("datasett: {name: RMB}\n")
    code = (
        "import sys; from trainer.train import main\n"
        f"code = main(['--config', {str(file)!r}])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"{file}:1:1: datasett: " in done.stderr and "dataset" in done.stderr


def test_a_wrong_override_on_resume_is_told_before_torch_is_imported(tmp_path):
    run = tmp_path / "runs" / "lenet_rmb" / "20260131-120000-ab12"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text((ROOT / "configs" / "lenet_rmb.yaml").read_text())
    code = (
        "import sys; from trainer.train import main\n"
        f"code = main(['--resume', {str(run)!r}, 'wrong.key=1', 'train.epochs=none'])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "unknown key 'wrong'" in done.stderr and "train.epochs: expected" in done.stderr


@pytest.mark.parametrize(
    "module", ["config", "signatures", "components", "resume", "disk", "folder", "environment"]
)
def test_what_is_needed_before_torch_imports_none(module):
    code = f"import sys, trainer.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "modules, absent",
    [
        ("trainer.sweeping.page, trainer.drawing.svg", "torch"),  # a sweep's page needs none
        (
            "trainer.train, trainer.training, trainer.sweeping.page, trainer.inference.exporting",
            "jinja2",
        ),
    ],
)
def test_what_a_page_is_made_with_is_imported_when_there_is_one(modules, absent):
    code = f"import sys, {modules}\nassert {absent!r} not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_weights_are_unpickled_and_no_yaml_is_executed():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "yaml.load", "yaml.unsafe_load"), path
                if name == "torch.load":
                    assert any(
                        keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True"
                        for keyword in node.keywords
                    ), path
