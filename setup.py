"""Builds the wheel: the packages of the checkout become one importable package, ``yaml_trainer``.

The folders of the checkout share their names with other packages (Hugging Face's ``datasets``). In
the wheel they lie inside ``yaml_trainer``, and their imports of each other begin with its name.
An editable install (``pip install -e .``) changes nothing: it runs the checkout's own files.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
FOLDERS = ("datasets", "models", "trainer", "transforms")
TEXTS = (".py", ".j2", ".js", ".html", ".css")
_NAMES = "|".join(FOLDERS)
# What changes in a text: a pattern, and what it becomes.
CHANGES = (
    (rf"^(\s*)from ({_NAMES})((?:\.\w+)* import )", r"\1from yaml_trainer.\2\3"),
    (rf"^(\s*)import ({_NAMES})((?:\.\w+)*)( as |$)", r"\1import yaml_trainer.\2\3\4"),
    (rf"\"({_NAMES})((?:\.\w+)+:)", r'"yaml_trainer.\1\2'),  # a line of a component table
    (r"\bpython -m trainer\.(\w+)", r"yaml-trainer \1"),
    (r" -m trainer\.(\w+)", r" -m yaml_trainer.trainer.\1"),  # after torchrun
    (r"pip install -e \"\.\[", r'pip install "yaml-trainer['),
)


def as_installed(text: str) -> str:
    """The text of a file of the checkout as it stands in the wheel."""
    for pattern, new in CHANGES:
        text = re.sub(pattern, new, text, flags=re.MULTILINE)
    return text


class BuildPackage(build_py):
    """Adds the folders of the checkout to the package ``yaml_trainer``."""

    def run(self) -> None:
        """Build as setuptools does, then add the folders and the configs."""
        package = Path(self.build_lib) / "yaml_trainer"
        if not self.editable_mode:
            shutil.rmtree(package, ignore_errors=True)  # files of an earlier build
        super().run()
        if not self.editable_mode:
            for folder in ("yaml_trainer", *FOLDERS, "configs"):
                self.add(folder, package.parent if folder == "yaml_trainer" else package)

    def add(self, folder: str, package: Path) -> None:
        """Copy a folder of the checkout into the package; texts as they stand in the wheel."""
        for file in sorted((ROOT / folder).rglob("*")):
            if not file.is_file() or "__pycache__" in file.parts:
                continue
            copy = package / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix in TEXTS:
                copy.write_text(as_installed(file.read_text("utf-8")), "utf-8", newline="\n")
            else:
                shutil.copyfile(file, copy)


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPackage})
