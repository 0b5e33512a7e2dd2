"""Print how the code is laid out: packages, layers, the longest chain of imports, circles, sizes.

python -m scripts.structure [--checkout DIR] [--names] [--functions]

Files are parsed, not imported. Imports inside functions and under TYPE_CHECKING count too.
"""

import argparse
import ast
import functools
import io
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("datasets", "models", "transforms", "trainer", "yaml_trainer")
COMMANDS = "trainer/*.py"
# The lowest first. A package imports lower layers and itself, but no other of its own layer.
LAYERS = [
    {"datasets", "models", "transforms"},
    {"process", "drawing"},
    {"components"},
    {"config", "distributed"},
    {"run", "comparing"},
    {"input"},
    {"build"},
    {"insight"},
    {"loop"},
    {"inference", "sweeping", "tuning"},
    {"yaml_trainer"},
    {COMMANDS},
]
MAX_LINES, MAX_PARAMETERS = 60, 6


class Import(NamedTuple):
    """A name that a file imports, such as ``torch.nn`` or ``trainer.config.Config``."""

    name: str
    line: int
    at_start: bool  # false within a function or under TYPE_CHECKING


class Module(NamedTuple):
    """A parsed file. ``path`` begins at the checkout."""

    path: str
    text: str
    tree: ast.Module
    imports: list[Import]


Modules = Mapping[str, Module]  # by dotted name; an __init__.py has the name of its folder


def read_modules(checkout: Path) -> dict[str, Module]:
    """Every Python file of the product, by its dotted name."""
    modules = {}
    for file in (file for folder in FOLDERS for file in sorted((checkout / folder).rglob("*.py"))):
        path = file.relative_to(checkout)
        name = path.parent if path.name == "__init__.py" else path.with_suffix("")
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        imports = list(_imports(tree, path.parent.parts, at_start=True))
        modules[".".join(name.parts)] = Module(path.as_posix(), text, tree, imports)
    return modules


def _imports(node: ast.AST, package: Sequence[str], at_start: bool) -> Iterator[Import]:
    is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue  # an import is a statement, and no expression holds statements
        starts = at_start and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_for_types and isinstance(node, ast.If):
            starts = starts and child in node.orelse
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, starts) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = [*package[: len(package) + 1 - child.level]] if child.level else []
            base += [child.module] if child.module else []
            for alias in child.names:
                yield Import(".".join([*base, alias.name]), child.lineno, starts)
        else:
            yield from _imports(child, package, starts)


def resolve(name: str, modules: Modules) -> str | None:
    """The module of the project that ``name`` is, or is defined in; None for other packages."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def graph(modules: Modules) -> dict[str, set[str]]:
    """The modules that each module imports; only those in ``modules``."""
    return {
        name: {other for item in module.imports if (other := resolve(item.name, modules))} - {name}
        for name, module in modules.items()
    }


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Every group of modules that import each other, directly or through others."""
    reached = {}
    for start in edges:
        found: set[str] = set()
        todo = [start]
        while todo:
            new = edges[todo.pop()] - found
            found |= new
            todo += new
        reached[start] = found
    groups = {
        tuple(sorted(other for other in found if name in reached[other]))
        for name, found in reached.items()
        if name in found
    }
    return [list(group) for group in sorted(groups)]


def longest_chain(edges: Mapping[str, set[str]]) -> list[str]:
    """The modules of the longest chain of imports, the highest first, each once."""
    circle_of = {name: group for group in circles(edges) for name in group}

    @functools.cache
    def chain(name: str, used: frozenset[str]) -> list[str]:  # used: modules of its own circle only
        used |= {name}
        ways = [
            chain(other, used if other in circle_of.get(name, ()) else frozenset())
            for other in sorted(edges[name] - used)
        ]
        return [name, *max(ways, key=len, default=[])]

    return max((chain(name, frozenset()) for name in edges), key=len, default=[])


def package_of(path: str) -> str:
    """A package of trainer/, or ``trainer/*.py``, or another folder of the product."""
    folder, *inner = path.split("/")
    return folder if folder != "trainer" else COMMANDS if len(inner) == 1 else inner[0]


def layer_of(package: str) -> int | None:
    """The number of the package's layer, from 0; None if LAYERS does not name it."""
    return next((number for number, layer in enumerate(LAYERS) if package in layer), None)


def against_layers(modules: Modules) -> list[str]:
    """Every import that goes upwards, sideways, or to or from a package without a layer."""
    found: dict[str, None] = {}  # each once, in order
    for module in modules.values():
        source = package_of(module.path)
        for name, line, _ in module.imports:
            imported = resolve(name, modules)
            if imported in (None, "trainer"):
                continue
            target = package_of(modules[imported].path)
            above, below = layer_of(source), layer_of(target)
            if source != target and (above is None or below is None or above <= below):
                found[f"{source} -> {target}: {module.path}:{line} imports {imported}"] = None
    return list(found)


def defined_twice(modules: Modules) -> dict[str, list[str]]:
    """Names of functions, classes and constants that several files define, with their paths."""
    paths: dict[str, list[str]] = {}
    for module in modules.values():
        for name in sorted(set(_defined(module.tree.body)) - {"__all__"}):
            paths.setdefault(name, []).append(module.path)
    return {name: found for name, found in sorted(paths.items()) if len(found) > 1}


def _defined(body: Sequence[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for item in ast.walk(node):
                if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store):
                    yield item.id
        elif isinstance(node, ast.If | ast.Try):
            yield from _defined([*node.body, *node.orelse])
            for handler in getattr(node, "handlers", []):
                yield from _defined(handler.body)


def large_functions(modules: Modules) -> list[tuple[str, int, int]]:
    """Functions above MAX_LINES or MAX_PARAMETERS: (place and name, lines, parameters)."""
    found = [item for module in modules.values() for item in functions(module.path, module.tree)]
    return [item for item in found if item[1] > MAX_LINES or item[2] > MAX_PARAMETERS]


def functions(path: str, node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """(place and name, lines from ``def``, parameters without self) of functions below ``node``."""
    for child in ast.iter_child_nodes(node):
        inner = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{prefix}{child.name}."
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (child.end_lineno or child.lineno) - child.lineno + 1
            of = child.args
            count = len(of.posonlyargs) + len(of.args) + len(of.kwonlyargs)
            count += bool(of.vararg) + bool(of.kwarg)
            decorators = {ast.unparse(item) for item in child.decorator_list}
            count -= isinstance(node, ast.ClassDef) and "staticmethod" not in decorators  # self
            yield f"{path}:{child.lineno} {inner[:-1]}", lines, count
        yield from functions(path, child, inner)


def code_lines(node: ast.Module | ast.FunctionDef, text: str) -> int:
    """The lines of a file, or of a function, with code: no blank, comment, docstring or import."""
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    empty |= {tokenize.ENDMARKER}
    first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", text.count("\n") + 1)
    numbers = {
        number
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in empty
        for number in range(token.start[0], token.end[0] + 1)
    } & set(range(first, last + 1))
    for inner in ast.walk(node):
        no_code: ast.stmt | None = inner if isinstance(inner, ast.Import | ast.ImportFrom) else None
        if isinstance(inner, ast.Module | ast.ClassDef | ast.FunctionDef):
            no_code = inner.body[0] if ast.get_docstring(inner) is not None else None
        if no_code is not None:
            numbers -= set(range(no_code.lineno, (no_code.end_lineno or 0) + 1))
    return len(numbers)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the layout. Returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.structure",
        description="Print packages, layers, chains and circles of imports, and sizes of the code.",
    )
    large = f"above {MAX_LINES} lines or {MAX_PARAMETERS} parameters"
    add = parser.add_argument
    add("--checkout", type=Path, default=ROOT, help="another checkout (default: this one)")
    add("--names", action="store_true", help="list names that several files of trainer/ define")
    add("--functions", action="store_true", help=f"list functions of trainer/ {large}")
    arguments = parser.parse_args(argv)
    if not (arguments.checkout / "trainer").is_dir():
        parser.error(f"--checkout {arguments.checkout}: expected a folder with trainer/ in it")
    modules = read_modules(arguments.checkout)
    ours = {name: module for name, module in modules.items() if module.path.startswith("trainer/")}
    edges, names, too_large = graph(ours), defined_twice(ours), large_functions(ours)
    chain, wrong = longest_chain(edges), against_layers(modules)

    lines = _print_packages(arguments.checkout, modules)
    packages = [package_of(module.path) for module in ours.values()]
    top = packages.count(COMMANDS)
    print(f"\ntrainer/: {len({*packages} - {COMMANDS})} packages, ", end="")
    print(f"{len(packages)} files, {top} of them at its top")
    print(f"floors: {len(chain) - 1}, by the longest chain of imports: {' > '.join(chain)}")
    print(f"circles: {len(found := circles(edges))} of {sum(map(len, found))} files")
    print(*(f"  {' '.join(circle)}\n" for circle in found), sep="", end="")
    print(f"against the layers: {len(wrong)} imports")
    print(*(f"  {item}\n" for item in wrong), sep="", end="")
    print(f"names: {len(names)} defined in several files of trainer/")
    if arguments.names:
        print(*(f"  {name}: {' '.join(paths)}\n" for name, paths in names.items()), sep="", end="")
    print(f"functions: {len(too_large)} of trainer/ {large}")
    if arguments.functions:
        print(*(f"  {p}: {n} lines, {c} parameters\n" for p, n, c in too_large), sep="", end="")
    print(f"product: {lines} lines in {', '.join(f'{folder}/' for folder in FOLDERS)}; ", end="")
    code = sum(code_lines(module.tree, module.text) for module in modules.values())
    print(f"{code} of Python code without imports, docstrings, comments and blank lines")
    return 0


def _print_packages(checkout: Path, modules: Modules) -> int:
    """Print a line for each package, the highest first. Returns the lines of all files."""
    files: dict[str, list[tuple[bool, int]]] = {}
    for path in (path for folder in FOLDERS for path in sorted((checkout / folder).rglob("*"))):
        if path.suffix in (".py", ".j2", ".css"):
            package = package_of(path.relative_to(checkout).as_posix())
            lines = path.read_text(encoding="utf-8").count("\n")
            files.setdefault(package, []).append((path.suffix == ".py", lines))
    rows = []
    for package, found in files.items():
        face = "trainer" if package == COMMANDS else package
        module = modules.get(face) or modules.get(f"trainer.{package}")
        meaning = (ast.get_docstring(module.tree) or "" if module else "").partition("\n")[0]
        layer, count, lines = (
            layer_of(package),
            sum(python for python, _ in found),
            sum(n for _, n in found),
        )
        rows.append((-1 if layer is None else layer, package, count, lines, meaning))
    print("layer  package       files  lines  what it is")
    for layer, package, count, lines, meaning in sorted(rows, key=lambda row: (-row[0], row[1])):
        print(f"{layer:5}  {package:12}  {count:5}  {lines:5}  {meaning}")
    return sum(row[3] for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())
