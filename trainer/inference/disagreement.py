"""Shows the images that only one of two sides gets right, as one picture."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from trainer.comparing.head_to_head import Paired
from trainer.comparing.predictions import SEPARATOR
from trainer.drawing.axes import COLOURS
from trainer.drawing.fonts import drawable
from trainer.drawing.pictures import sheet
from trainer.input.data import load_subset
from trainer.insight.samples import original_images
from trainer.process.errors import RunError
from trainer.run.disk import MAX_SPLIT, read_json
from trainer.run.resume import config_for_use

MAX_SHOWN = 16  # images of each side
COLUMNS, SIZE = 8, 160


def disagreement(paired: Paired, run: Path) -> Image.Image:
    """Return up to MAX_SHOWN images of each side, in the colour of its first curve.

    run: the first side's run, whose dataset gives the images. Raises RunError or DataError if they
    are not there any more.
    """
    first = paired.tables[0][0]
    rows = [row for side in paired.only for row in side[:MAX_SHOWN]]
    sides = [number for number, side in enumerate(paired.only) for _ in side[:MAX_SHOWN]]
    saved = read_json(run / "split.json", MAX_SPLIT)
    try:
        wanted = {first.ids[row]: saved["test"][first.ids[row]] for row in rows}
    except (KeyError, TypeError):
        raise RunError(f"{run / 'split.json'} does not name the images of its table.") from None
    config = config_for_use(run, ["loader.cache=off"])
    _, subset = load_subset(config, wanted, torch.device("cpu"))
    captions = []
    for row in rows:
        answers = [side[0].predicted[row] for side in paired.tables]
        told = zip(paired.names, answers, strict=True)
        captions.append(
            [in_letters(first.true[row], first.classes)]
            + [f"{name}: {in_letters(answer, first.classes)}" for name, answer in told]
        )
    pictures = original_images(subset, range(len(rows)), SIZE)
    return sheet(pictures, captions, [COLOURS[side] for side in sides], COLUMNS, SIZE)


def in_letters(cell: str, classes: Sequence[str]) -> str:
    """The names in a cell of the table in letters that a picture can show."""
    number = {name: k for k, name in enumerate(classes)}
    names = [drawable(name, number.get(name, 0)) for name in cell.split(SEPARATOR)]
    return ", ".join(names) if cell else "no label"
