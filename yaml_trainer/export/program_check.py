"""Runs the program beside an exported model on odd pictures, and compares it with ``predict``."""

import contextlib
import io
import runpy
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import torch

from datasets.words import counted
from trainer.build.trained import TrainedModel
from trainer.inference.prediction import Also, Prediction, file_source, predict_images
from trainer.process.errors import RunError
from trainer.process.words import visible
from trainer.run.known import Rejection
from yaml_trainer.export.odd_pictures import odd_pictures

ALLOWED = 1e-3  # by which a probability may differ, and half a digit of those that are printed
TIE = 2 * ALLOWED
SIZE = (45, 61)  # of the odd pictures, if the model takes any
_OF_FOLDER = "models"  # a folder of weights brings its own package of this name

Answers = dict[str, list[list[str]]]  # of each file, the words of its lines


def check_program(
    program: Path,
    trained: TrainedModel,
    rejection: Rejection | None = None,
    sizes: Iterable[tuple[int, int]] = (),
    tta: str | None = None,
) -> str:
    """Run a program on odd pictures, in a temporary folder; returns counts of what it did.

    sizes: those of the run's own images; one is taken if the run takes no other. tta: predict's,
    None for the run's own. Raises RunError if the program's answer to a file is not that of
    ``predict``. It may refuse a file.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name, content in odd_pictures(*_size_for(trained, sizes)).items():
            paths.append(str(Path(folder, name)))
            Path(paths[-1]).write_bytes(content)
        remarks = len(trained.remarks)
        expected = list(
            predict_images(trained, map(file_source, paths), tta=tta, also=Also(rejection))
        )
        del trained.remarks[remarks:]
        answers, said = run_program(program, paths)
    if not answers and "do here what the run's" in said:
        return f"it prepares no pictures: {said.strip()}"
    refused = 0
    for one in expected:
        name = Path(one.path).name
        if not (found := answers.get(one.path)):
            refused += 1
            if one.path not in said:
                raise RunError(f"{program.name} was removed: {name} ended it: {said[-300:]}")
        elif not _agrees(one, found, trained.classes):
            what = " ".join(found[0])
            other = _in_words(one, trained.classes)
            raise RunError(
                f"{program.name} was removed: of an odd picture, {name}, it says {what}, and "
                f"predict says {other}. The versions of Pillow, NumPy or the runtime may differ."
            )
    equal = len(expected) - refused
    return f"as predict on {counted(equal, 'odd picture')}, and refuses {refused}"


def run_program(program: Path, paths: list[str]) -> tuple[Answers, str]:
    """The lines that a program prints for files, and what it says on stderr, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with _as_main(program, paths), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(str(program), run_name="__main__")
        except SystemExit as ended:
            err.write("" if isinstance(ended.code, int | None) else f"{ended.code}\n")
        except Exception as error:  # a fault of the program: it is not kept
            err.write(f"{type(error).__name__}: {error}\n")
    found: Answers = defaultdict(list)
    for line in out.getvalue().splitlines():
        path, *words = line.split("\t")
        found[path].append(words)
    return dict(found), err.getvalue()


@contextlib.contextmanager
def _as_main(program: Path, paths: list[str]) -> Iterator[None]:
    """Context manager: command line and modules are as if Python had begun with the program."""
    argv, path = sys.argv, list(sys.path)
    threads, writes_none = torch.get_num_threads(), sys.dont_write_bytecode
    kept = _taken_out()
    sys.argv, sys.path[:0] = [str(program), *paths], [str(program.parent)]
    sys.dont_write_bytecode = True  # it would lie beside the program, with names of this machine
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.argv, sys.path[:] = argv, path
        sys.dont_write_bytecode = writes_none
        _taken_out()
        sys.modules.update(kept)
        torch.set_num_threads(threads)


def _taken_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] == _OF_FOLDER]
    return {name: sys.modules.pop(name) for name in names}


def _size_for(trained: TrainedModel, sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """A size of pictures that the run takes."""
    dtype = torch.uint16 if trained.form.bits == 16 else torch.uint8
    height, width = trained.input_shape[1:]
    padded = [(height - less, width - less) for less in range(min(height, width, 64))]
    for size in (SIZE, *sizes, *padded):
        picture = torch.zeros(trained.image_channels, *size, dtype=torch.int32).to(dtype)
        with contextlib.suppress(ValueError):
            trained.inputs([picture])
            return size
    return height, width


def _agrees(one: Prediction, found: list[list[str]], classes: tuple[str, ...]) -> bool:
    """Whether the lines of a file say what ``predict`` does."""
    if one.probabilities is None or one.raw is None:
        return False
    # A class may have these two names; its line has a probability too.
    if one.is_unknown or found == [["unknown"]]:
        return one.is_unknown and found == [["unknown"]]
    names = [visible(name) for name in classes]
    chances = dict(zip(names, one.probabilities.tolist(), strict=True))
    said = {words[0]: words[1:] for words in found if words != ["-"]}
    wanted = {names[label] for label in one.predicted}
    if not one.has_several and wanted != {*said}:  # two may be equally likely
        (wanted_one,), other = wanted, next(iter(said), "")
        if other not in chances or chances[wanted_one] - chances[other] > TIE:
            return False
    elif wanted != {*said}:
        return False
    return all(abs(float(p) - chances[name]) <= ALLOWED for name, (p,) in said.items())


def _in_words(one: Prediction, classes: tuple[str, ...]) -> str:
    if one.probabilities is None:
        return f"that it cannot be used ({one.reason})"
    if one.is_unknown:
        return "unknown"
    named = [f"{classes[label]} {one.probabilities[label]:.4f}" for label in one.predicted]
    return ", ".join(named) or "-"
