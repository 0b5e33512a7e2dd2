"""Photographs of RMB notes in one folder per face value."""

import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Literal

from datasets import RMB_ROOT, DataError
from datasets.bands import Bits, Channels, Form, check_form
from datasets.draw import MARK, draw
from datasets.files import ImageFiles, missing_folder, user_path
from datasets.folders import scan

DRAWN = "data/rmb_drawn"


class RMB(ImageFiles):
    """Photographs of RMB notes: ``root/YUAN/IMAGE``; label = rank of the face value (1 < 5 < 100).

    ``root`` may also hold train, valid and test folders of that form, as with ImageFolder.
    Drawn pictures are kept in ``data/rmb_drawn``; ``note`` then says so. A root other than the
    default must exist, because a missing one is most likely misspelt.
    Images: (3, H, W) uint8, RGB, or as ``channels`` and ``bits`` say; sizes may differ. Raises
    DataError as ``scan`` does, and for a folder whose name is not a face value.

    root: The folder with a folder of photographs for each face value, from where you start.
    draw_if_absent: Draw pictures like notes once, and read them, if the default root is absent.
    on_broken: What a file that cannot be decoded does: error ends the run, skip leaves it out.
    decode: fast decodes a JPEG that is much larger than needed at 1/2, 1/4 or 1/8 of its size.
    channels: keep leaves each file its own channels, from 1 to 64; rgb makes each image RGB.
    bits: 16 keeps the values of 16-bit files; 8 keeps their high byte.
    """

    def __init__(
        self,
        root: str = RMB_ROOT,
        draw_if_absent: bool = False,
        on_broken: Literal["error", "skip"] = "error",
        decode: Literal["exact", "fast"] = "exact",
        channels: Channels = "rgb",
        bits: Bits = 8,
    ) -> None:
        folder = user_path(root, "dataset.root")
        if not folder.exists() and root == RMB_ROOT:
            if not draw_if_absent:
                raise DataError(
                    f"{missing_folder(folder)} Put photographs into {RMB_ROOT}/1/ and "
                    f"{RMB_ROOT}/100/, or set dataset.draw_if_absent=true to train on drawn "
                    "pictures."
                )
            folder = Path(DRAWN)
            if not folder.exists():  # takes seconds; silence would look like a hang
                print(f"{RMB_ROOT} is absent: drawing notes into {DRAWN} ...", file=sys.stderr)
                try:
                    draw(folder)
                except OSError as error:
                    raise DataError(f"{folder}: cannot be drawn: {error.strerror}.") from error
        self.form = Form(channels, bits)
        # same_inside: such as 1/front and 100/front
        samples, note = scan(folder, same_inside=True, more=self.form.suffixes)
        classes = sorted({sample.class_name for sample in samples}, key=_value)
        for lower, higher in pairwise(classes):
            if _value(lower) == _value(higher):
                raise DataError(f"{folder}: '{lower}' and '{higher}' are the same face value.")
        if (folder / MARK).exists():
            drawn = (
                f"{folder} holds DRAWN pictures of notes, not photographs: "
                f"results say nothing about real notes."
            )
            note = "\n".join(filter(None, [drawn, note]))
        super().__init__(folder, samples, classes, on_broken, note, decode)
        check_form(self.form, self.ids)


def _value(name: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", name):
        raise DataError(
            f"folder '{name}': RMB expects folders named by face value in yuan, such as 1, 5, 100 "
            f"or 0.5; for other names use dataset.name=ImageFolder."
        )
    return float(name)
