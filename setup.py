"""Builds the wheel: the packages of the checkout become one importable package, ``yaml_trainer``.

The folders of the checkout share their names with other packages (Hugging Face's ``datasets``). In
the wheel they lie inside ``yaml_trainer``, and their imports of each other begin with its name.
A form of import that ``CHANGES`` misses fails the build. An editable install
(``pip install -e .``) changes nothing: it runs the checkout's own files.
"""

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "yaml_trainer"
FOLDERS = ("datasets", "models", "trainer", "transforms")
TEXTS = (".css", ".html", ".j2", ".js", ".json", ".py", ".typed", ".yaml")  # no other file goes in
_NAMES = "|".join(FOLDERS)
# What changes in a text: a pattern, and what it becomes.
CHANGES = (
    (rf"^(\s*)from ({_NAMES})((?:\.\w+)* import )", rf"\1from {PACKAGE}.\2\3"),
    (rf"^(\s*)import ({_NAMES})((?:\.\w+)* as )", rf"\1import {PACKAGE}.\2\3"),
    (rf"\"({_NAMES})((?:\.\w+)+:)", rf'"{PACKAGE}.\1\2'),  # a line of a component table
    (r"\bpython -m trainer\.(\w+)", r"yaml-trainer \1"),
    (r" -m trainer\.(\w+)", rf" -m {PACKAGE}.trainer.\1"),  # after torchrun
    (r"\(trainer\.data\)", "(yaml-trainer data)"),  # where a note comes from
    (r"(python -m scripts\.\w+)", r"\1 (in a checkout)"),
    (r"pip install -e (\\?)\"\.\[", r'pip install \1"yaml-trainer['),
)


def as_installed(text: str) -> str:
    """The text of a file of the checkout as it stands in the wheel."""
    for pattern, new in CHANGES:
        text = re.sub(pattern, new, text, flags=re.MULTILINE)
    return text


def names_of_the_checkout(code: str) -> Iterator[tuple[int, str]]:
    """Line and name of each module that is named as in the checkout: by an import, or by a text."""
    for node in ast.walk(ast.parse(code)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [str(node.module)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.partition(":")[0]
            path = ROOT / name.replace(".", "/") if re.fullmatch(r"\w+(\.\w+)+", name) else ROOT
            names = [name] if path.with_suffix(".py").is_file() else []
        for name in names:
            if name.partition(".")[0] in FOLDERS:
                yield getattr(node, "lineno", 0), name


class BuildPackage(build_py):
    """Adds the folders of the checkout to the package ``yaml_trainer``."""

    def run(self) -> None:
        """Build as setuptools does, then add the folders and the configs.

        Raises SystemExit if a module would still be named as in the checkout.
        """
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / PACKAGE
        shutil.rmtree(package, ignore_errors=True)  # files of an earlier build too
        faults = [fault for folder in (PACKAGE, *FOLDERS, "configs") for fault in self.add(folder)]
        if faults:
            shutil.rmtree(package)
            raise SystemExit("setup.py cannot bring these into the wheel:\n" + "\n".join(faults))

    def add(self, folder: str) -> Iterator[str]:
        """Copy the texts of a folder of the checkout as they stand in the wheel; yields faults."""
        package = Path(self.build_lib) / PACKAGE
        for file in sorted((ROOT / folder).rglob("*")):
            name = file.relative_to(ROOT)
            if file.suffix not in TEXTS or any(part[0] == "." for part in name.parts):
                continue
            text = as_installed(file.read_text("utf-8"))
            for line, module in names_of_the_checkout(text) if file.suffix == ".py" else ():
                how = "write `from X import Y`, or take the name from TRAINER"
                yield f"{name.as_posix()}:{line}: {module}; {how}"
            copy = package.parent / name if folder == PACKAGE else package / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text, "utf-8", newline="\n")


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPackage})
