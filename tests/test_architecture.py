"""What holds for the whole tree: who may import whom, where files lie, how large they may be."""

import ast
import functools
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import structure
from scripts.structure import COMMANDS as COMMAND_FILES
from scripts.structure import (
    LAYERS,
    MAX_LINES,
    MAX_PARAMETERS,
    Import,
    Modules,
    against_layers,
    circles,
    defined_twice,
    functions,
    graph,
    large_functions,
    layer_of,
    longest_chain,
    package_of,
    read_modules,
    resolve,
)
from tests.conftest import exit_code_of, fork

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("datasets", "models", "scripts", "trainer", "transforms", "yaml_trainer")
MAY_IMPORT = {
    "datasets": {"datasets"},
    "models": {"models"},
    "transforms": {"transforms"},
    "trainer": {"datasets", "models", "trainer", "transforms", "yaml_trainer"},
    "yaml_trainer": {"datasets", "models", "trainer", "transforms", "yaml_trainer"},
    "scripts": set(FOLDERS),
}
COMMANDS = (
    "clean combine compare data evaluate explain export find_lr mirror new predict runs schema "
    "serve speed sweep train"
).split()
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
MODULES = read_modules(ROOT)

# --- the layout of trainer/: each rule gives its offences, and names the file ---------------------

PACKAGES = range(10, 15)
MAX_FILES = 12  # of a package, besides its __init__.py

# Importing these imports no torch, also not through other files of the project. A command answers
# --help and a wrong key by them alone. An import within a function does not count here.
TORCH = {"torch", "torchvision", "timm"}
TORCH_FREE_PACKAGES = {"process", "drawing", "config", "comparing"}
TORCH_FREE_FILES = {
    "datasets",
    "models",
    "transforms",
    "trainer.components",
    "trainer.run.disk",
    "trainer.run.folder",
    "trainer.run.resume",
}
DRAW_WITH_TORCH = {"trainer.drawing.charts", "trainer.drawing.pictures"}

# Names that several files of trainer/ may define, and why.
EXCEPTIONS = {
    "main": "each command has one, which `python -m` calls",
    "run": "each command has one, which main calls with what argparse found",
    "parse": "each of the larger commands has its own arguments",
    "EXIT_CODES": "the last lines of a command's own --help",
}
MAX_EXCEPTIONS = 8

MAIN_PATH = {"config", "input", "build", "loop", "run", "distributed"}
STEP = ("trainer.loop.step", "train_steps")
MAX_STEP_LINES, MAX_STEP_PARAMETERS = 25, 4


def of_trainer(modules: Modules) -> Modules:
    return {name: module for name, module in modules.items() if module.path.startswith("trainer/")}


def wrong_commands(modules: Modules) -> list[str]:
    """Files of trainer/ itself that are no command, and commands that are no file there."""
    there = {m.path for m in of_trainer(modules).values() if package_of(m.path) == COMMAND_FILES}
    right = {f"trainer/{name}.py" for name in [*COMMANDS, "__init__"]}
    return [f"{path}: no command" for path in sorted(there - right)] + [
        f"{path}: missing" for path in sorted(right - there)
    ]


def wrong_packages(modules: Modules) -> list[str]:
    """Too many or few packages, too many files in one, a missing or unknown one."""
    counts: dict[str, int] = {}
    for module in of_trainer(modules).values():
        package = package_of(module.path)
        counts[package] = counts.get(package, 0) + (not module.path.endswith("/__init__.py"))
    del counts[COMMAND_FILES]
    wrong = [f"{p}: {n} files, at most {MAX_FILES}" for p, n in counts.items() if n > MAX_FILES]
    wrong += [f"{package}: has no layer" for package in counts if layer_of(package) is None]
    outside: dict[str, int] = {}
    for module in modules.values():
        if module.path.startswith("yaml_trainer/") and not module.path.endswith("/__init__.py"):
            folder = module.path.rpartition("/")[0]
            outside[folder] = outside.get(folder, 0) + 1
    wrong += [f"{p}: {n} files, at most {MAX_FILES}" for p, n in outside.items() if n > MAX_FILES]
    if len(counts) not in PACKAGES:
        wrong.append(f"{len(counts)} packages: {' '.join(sorted(counts))}")
    return wrong


def in_circles(modules: Modules) -> list[str]:
    """Each group of files that import each other."""
    return [" <-> ".join(modules[name].path for name in group) for group in circles(graph(modules))]


def torch_imports(modules: Modules) -> list[str]:
    """The way from each file that must not import torch to the file that does."""
    wrong = [f"{name}: missing" for name in sorted(TORCH_FREE_FILES - modules.keys())]
    for name, module in modules.items():
        if name in TORCH_FREE_FILES or (
            package_of(module.path) in TORCH_FREE_PACKAGES and name not in DRAW_WITH_TORCH
        ):
            wrong += [" > ".join(way)] if (way := way_to_torch(name, modules)) else []
    return wrong


def way_to_torch(start: str, modules: Modules) -> list[str]:
    ways = {start: [modules[start].path]}
    todo = [start]
    for name in todo:  # grows
        package = Import(name.rpartition(".")[0], 1, True)  # its __init__.py runs first
        for item in [package, *(item for item in modules[name].imports if item.at_start)]:
            if item.name.partition(".")[0] in TORCH:
                return [*ways[name], f"{item.name} in line {item.line}"]
            found = resolve(item.name, modules)
            if found is not None and found not in ways:
                ways[found] = [*ways[name], modules[found].path]
                todo.append(found)
    return []


def repeated_names(modules: Modules) -> list[str]:
    """Names that several files define, exceptions aside; exceptions that are none."""
    names = defined_twice(of_trainer(modules))
    return [
        f"{name}: {' '.join(names[name])}" for name in sorted(names.keys() - EXCEPTIONS.keys())
    ] + [f"{name}: no exception is needed" for name in sorted(EXCEPTIONS.keys() - names.keys())]


def large_on_the_main_path(modules: Modules) -> list[str]:
    """Functions of the main path that are too long or take too many parameters."""
    return [
        f"{place}: {lines} lines, {parameters} parameters; at most {MAX_LINES} and {MAX_PARAMETERS}"
        for place, lines, parameters in large_functions(of_trainer(modules))
        if package_of(place.partition(":")[0]) in MAIN_PATH
    ]


def large_step(modules: Modules) -> list[str]:
    """What is too large of the training step. Comments, blank lines, the docstring do not count."""
    name, function = STEP
    if name not in modules:
        return [f"{name}: missing"]
    module = modules[name]
    nodes = [n for n in module.tree.body if isinstance(n, ast.FunctionDef) and n.name == function]
    if not nodes:
        return [f"{module.path}: no function {function}"]
    lines = structure.code_lines(nodes[0], module.text)
    (parameters,) = (
        n for place, _, n in functions(module.path, module.tree) if place.endswith(f" {function}")
    )
    return [
        f"{module.path} {function}: {number} {what}, at most {most}"
        for number, what, most in (
            (lines, "lines of code", MAX_STEP_LINES),
            (parameters, "parameters", MAX_STEP_PARAMETERS),
        )
        if number > most
    ]


def assert_none(offences: list[str]) -> None:
    assert not offences, "\n".join(["", *offences])  # all of them


def test_trainer_itself_holds_only_the_commands():
    assert_none(wrong_commands(MODULES))


def test_everything_else_lies_in_ten_to_fourteen_packages_of_at_most_twelve_files():
    assert_none(wrong_packages(MODULES))


def test_a_package_imports_only_lower_layers():
    assert_none(against_layers(MODULES))


def test_no_files_import_each_other_in_a_circle():
    assert_none(in_circles(MODULES))


def test_what_a_command_needs_to_answer_at_once_imports_no_torch():
    assert_none(torch_imports(MODULES))


def test_a_name_is_defined_once():
    assert len(EXCEPTIONS) <= MAX_EXCEPTIONS
    assert_none(repeated_names(MODULES))


def test_no_function_of_the_main_path_is_too_large():
    assert_none(large_on_the_main_path(MODULES))


def test_the_training_step_is_short():
    assert_none(large_step(MODULES))


RULES: list[Callable[[Modules], list[str]]] = [
    wrong_commands,
    wrong_packages,
    against_layers,
    in_circles,
    torch_imports,
    repeated_names,
    large_on_the_main_path,
    large_step,
]
COMMAND = "".join(f"{name} = 0\n" for name in EXCEPTIONS)
LONG = "def long():\n" + "    x = 1\n" * MAX_LINES
STEP_OF_25 = (
    "def train_steps(a, b, c, d):\n"
    '    """Train."""\n\n    # A comment.\n' + "    x = 1\n" * (MAX_STEP_LINES - 1)
)


def tiny_tree(root: Path, files: dict[str, str]) -> Modules:
    """A tree that obeys every rule, with ``files`` over it, read."""
    packages = set().union(*LAYERS) - {COMMAND_FILES}
    tree = {
        f"{name}/__init__.py" if name in FOLDERS else f"trainer/{name}/__init__.py": ""
        for name in packages
    }
    tree |= {f"trainer/{name}.py": COMMAND for name in COMMANDS}
    tree |= {f"trainer/run/{name}.py": "" for name in ("disk", "folder", "resume")}
    tree |= {"trainer/__init__.py": "", "trainer/loop/step.py": STEP_OF_25}
    for path, text in (tree | files).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return read_modules(root)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"trainer/loop/step.py": f"from trainer import run, build\n{STEP_OF_25}"},
        {"trainer/config/a.py": "def f():\n    import torch\n"},
        {"trainer/config/a.py": "if TYPE_CHECKING:\n    import torch\n"},
        {"trainer/drawing/charts.py": "import torch\n"},
        {"trainer/components/losses.py": "import torch\n"},
        {
            "trainer/config/__init__.py": "from trainer.config.a import A\n",
            "trainer/config/a.py": "A = 1\n",
        },
        {"trainer/insight/a.py": LONG},
        {"trainer/run/a.py": "class A:\n    def f(self, a, b, c, d, e, f): ...\n"},
    ],
    ids=str,
)
def test_what_the_rules_allow(tmp_path, files):
    modules = tiny_tree(tmp_path, files)
    assert {rule.__name__: rule(modules) for rule in RULES} == {r.__name__: [] for r in RULES}


@pytest.mark.parametrize(
    "rule, files, told",
    [
        (wrong_commands, {"trainer/disk.py": ""}, "trainer/disk.py: no command"),
        (
            wrong_packages,
            {f"trainer/loop/f{n}.py": "" for n in range(MAX_FILES)},
            f"loop: {MAX_FILES + 1} files, at most {MAX_FILES}",
        ),
        (
            wrong_packages,
            {f"yaml_trainer/export/f{n}.py": "" for n in range(MAX_FILES + 1)},
            f"yaml_trainer/export: {MAX_FILES + 1} files, at most {MAX_FILES}",
        ),
        (wrong_packages, {"trainer/misc/a.py": ""}, "misc: has no layer"),
        (
            against_layers,
            {"trainer/config/a.py": "import sys\nimport trainer.build\n"},
            "config -> build: trainer/config/a.py:2 imports trainer.build",
        ),
        (
            against_layers,
            {"trainer/comparing/a.py": "def f():\n    from trainer import run\n"},
            "comparing -> run: trainer/comparing/a.py:2 imports trainer.run",
        ),
        (
            against_layers,
            {"trainer/run/a.py": "if TYPE_CHECKING:\n    from trainer.loop.step import x\n"},
            "run -> loop: trainer/run/a.py:2 imports trainer.loop.step",
        ),
        (
            against_layers,
            {"trainer/run/a.py": "from ..build import x\n"},
            "run -> build: trainer/run/a.py:1 imports trainer.build",
        ),
        (
            against_layers,
            {"trainer/loop/a.py": "from trainer.train import main\n"},
            f"loop -> {COMMAND_FILES}: trainer/loop/a.py:1 imports trainer.train",
        ),
        (
            against_layers,
            {"models/a.py": "import datasets\n"},
            "models -> datasets: models/a.py:1 imports datasets",
        ),
        (
            in_circles,
            {
                "trainer/run/a.py": "from trainer.run.b import x\n",
                "trainer/run/b.py": "def f():\n    from trainer.run import c\n",
                "trainer/run/c.py": "import trainer.run.a\n",
            },
            "trainer/run/a.py <-> trainer/run/b.py <-> trainer/run/c.py",
        ),
        (
            in_circles,
            {"datasets/a.py": "import datasets.b\n", "datasets/b.py": "from datasets import a\n"},
            "datasets/a.py <-> datasets/b.py",
        ),
        (
            torch_imports,
            {
                "trainer/comparing/a.py": "from trainer.config import Config\n",
                "trainer/config/__init__.py": "",
                "trainer/components/a.py": "\nfrom torch import nn\n",
                "trainer/comparing/b.py": "from trainer.components import a\n",
            },
            "trainer/comparing/b.py > trainer/components/a.py > torch.nn in line 2",
        ),
        (
            torch_imports,
            {
                "trainer/run/__init__.py": "from trainer.run.tensors import save\n",
                "trainer/run/tensors.py": "import torch\n",
            },
            "trainer/run/disk.py > trainer/run/__init__.py > trainer/run/tensors.py"
            " > torch in line 1",
        ),
        (
            torch_imports,
            {"trainer/drawing/svg.py": "if 1:\n    import torchvision\n"},
            "trainer/drawing/svg.py > torchvision in line 2",
        ),
        (
            repeated_names,
            {"trainer/run/a.py": "Say = int\n", "trainer/loop/a.py": "def Say(): ...\n"},
            "Say: trainer/loop/a.py trainer/run/a.py",
        ),
        (
            large_on_the_main_path,
            {"trainer/input/a.py": f"\n{LONG}"},
            f"trainer/input/a.py:2 long: {MAX_LINES + 1} lines, 0 parameters",
        ),
        (
            large_on_the_main_path,
            {"trainer/run/a.py": "class A:\n    def f(self, a, b, c, d, *e, f, g): ...\n"},
            "trainer/run/a.py:2 A.f: 1 lines, 7 parameters",
        ),
        (
            large_step,
            {"trainer/loop/step.py": f"{STEP_OF_25}    y = 1\n"},
            "trainer/loop/step.py train_steps: 26 lines of code, at most 25",
        ),
        (
            large_step,
            {"trainer/loop/step.py": "def train_steps(a, b, c, d, *, e): ...\n"},
            "trainer/loop/step.py train_steps: 5 parameters, at most 4",
        ),
        (large_step, {"trainer/loop/step.py": ""}, "trainer/loop/step.py: no function train_steps"),
    ],
)
def test_each_rule_tells_of_an_offence_and_no_other_rule_does(tmp_path, rule, files, told):
    modules = tiny_tree(tmp_path, files)
    assert any(offence.startswith(told) for offence in rule(modules)), rule(modules)
    others = [other for other in RULES if other is not rule and other(modules)]
    assert others in ([], [against_layers]), "misc has no layer, so that its imports have none"


@pytest.mark.parametrize(
    "edges, floors",
    [
        ("", 0),
        ("ab bc", 2),
        ("ab bc ac", 2),
        ("ab bc cb cd", 3),  # into the circle, once around it, out
        ("ab ac bc cb bd", 3),
        ("ab ba bc cd dc", 3),
    ],
)
def test_floors_are_the_imports_in_the_longest_chain_without_a_file_twice(edges, floors):
    pairs = edges.split()
    graph = {name: {b for a, b in pairs if a == name} for name in "abcd"}
    assert len(longest_chain(graph)) == floors + 1


def test_too_few_packages_and_a_needless_exception_are_told(tmp_path):
    modules = tiny_tree(tmp_path, {})
    few = {name: m for name, m in modules.items() if package_of(m.path) in ("run", COMMAND_FILES)}
    assert wrong_packages(few) == ["1 packages: run"]
    alone = {name: m for name, m in modules.items() if name == "trainer.train"}
    assert repeated_names(alone) == [
        f"{name}: no exception is needed" for name in sorted(EXCEPTIONS)
    ]


def test_the_layout_can_be_printed(tmp_path, capsys):
    files = {
        "trainer/run/__init__.py": '"""A folder.\n\nMore."""\n',
        "trainer/run/a.py": "from trainer.run import b\n",
        "trainer/run/b.py": "from trainer.run import a\n",
        "trainer/loop/a.py": f"from trainer.run import a\n{LONG}",
        "trainer/loop/page.j2": "a\nb\n",
    }
    tiny_tree(tmp_path, files)
    assert structure.main(["--checkout", str(tmp_path), "--names", "--functions"]) == 0
    told = capsys.readouterr().out
    lines = 97 + len(COMMANDS) * len(EXCEPTIONS)
    for line in (
        "    4  run               6      5  A folder.",
        "    8  loop              3     92  ",
        "trainer/: 14 packages, 39 files, 18 of them at its top",
        "floors: 2, by the longest chain of imports: trainer.loop.a > trainer.run.a > ",
        "circles: 1 of 2 files",
        "  trainer.run.a trainer.run.b",
        "against the layers: 0 imports",
        "  main: trainer/clean.py trainer/combine.py ",
        "  trainer/loop/a.py:2 long: 61 lines, 0 parameters",
        f"product: {lines} lines in datasets/, models/, transforms/, trainer/",
    ):
        assert f"\n{line}" in told, f"{line}\n{told}"


# --- imports between the folders, and what commands import ----------------------------------------


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@functools.cache
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


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"schema"}))  # which is for developers
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


def without_torch(*arguments: str) -> str:
    """What the command answers on standard error; it must end with 2, and not import PyTorch."""
    code = (
        "import sys; from trainer.train import main\n"
        f"code = main({list(arguments)!r})\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_a_wrong_key_is_told_before_torch_is_imported(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("datasett: {name: RMB}\n")
    answer = without_torch("--config", str(file))
    assert f"{file}:1:1: datasett: " in answer and "dataset" in answer


def test_a_wrong_override_on_resume_is_told_before_torch_is_imported(tmp_path):
    run = tmp_path / "runs" / "lenet_rmb" / "20260131-120000-ab12"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text((ROOT / "configs" / "lenet_rmb.yaml").read_text())
    answer = without_torch("--resume", str(run), "wrong.key=1", "train.epochs=none")
    assert "unknown key 'wrong'" in answer and "train.epochs: expected" in answer


@pytest.mark.parametrize(
    "module",
    [
        *("config", "config.signatures", "config.construct", "components"),
        *("run.resume", "run.disk", "run.folder", "run.environment"),
    ],
)
def test_what_is_needed_before_torch_imports_none(module):
    code = f"import sys, trainer.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


BESIDE_PAGES = (
    "trainer.train, trainer.loop.fit, trainer.sweeping.page, yaml_trainer.export.exporting"
)


@pytest.mark.parametrize(
    "modules, absent",
    [
        ("trainer.sweeping.page, trainer.drawing.svg", "torch"),  # a sweep's page needs none
        pytest.param(BESIDE_PAGES, "jinja2", marks=pytest.mark.slow),  # imports torch anew
    ],
)
def test_what_a_page_is_made_with_is_imported_when_there_is_one(modules, absent):
    code = f"import sys, {modules}\nassert {absent!r} not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_module_but_that_of_pages_imports_what_pages_are_made_with(tmp_path):
    def import_anew():
        for name in list(sys.modules):
            if name.partition(".")[0] in ("jinja2", *FOLDERS):
                del sys.modules[name]
        for module in BESIDE_PAGES.split(", "):
            importlib.import_module(module)
        return int("jinja2" in sys.modules)

    assert exit_code_of(fork(tmp_path / "said", import_anew)) == 0, (tmp_path / "said").read_text()


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
