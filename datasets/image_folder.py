"""Images in one folder per class."""

from typing import Literal

from datasets.bands import Bits, Channels, Form, check_form
from datasets.files import ImageFiles, natural, user_path
from datasets.folders import Layout, scan


class ImageFolder(ImageFiles):
    """Images in one folder per class: ``root/CLASS/**/IMAGE``, classes in natural order (2 < 10).

    Images may lie in folders below the class. ``root`` may instead hold ``train``, ``val`` (or
    ``valid``, ``validation``) and ``test`` folders of that form; these are the splits. Without a
    validation folder, val is cut from train.

    layout: ``auto`` decides whether the folders are classes or splits. ``parts`` reads those named
    like splits (seg_train, val2017) that hold class folders, and leaves out others; ``classes``
    reads each folder as a class.

    Images: (3, H, W) uint8, RGB, or as ``channels`` and ``bits`` say; sizes may differ. Raises
    DataError as ``scan`` does.

    root: The folder with a folder for each class, or with train, val and test folders of them.
    on_broken: What a file that cannot be decoded does: error ends the run, skip leaves it out.
    decode: fast decodes a JPEG that is much larger than needed at 1/2, 1/4 or 1/8 of its size.
    channels: keep leaves each file its own channels, from 1 to 64; rgb makes each image RGB.
    bits: 16 keeps the values of 16-bit files; 8 keeps their high byte.
    """

    def __init__(
        self,
        root: str,
        on_broken: Literal["error", "skip"] = "error",
        layout: Layout = "auto",
        decode: Literal["exact", "fast"] = "exact",
        channels: Channels = "rgb",
        bits: Bits = 8,
    ) -> None:
        folder = user_path(root, "dataset.root")
        self.form = Form(channels, bits)
        samples, note = scan(folder, layout, more=self.form.suffixes)
        classes = sorted({sample.class_name for sample in samples}, key=natural)
        super().__init__(folder, samples, classes, on_broken, note, decode)
        check_form(self.form, self.ids)
