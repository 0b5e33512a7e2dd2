"""Images in one folder per class."""

from typing import Literal

from datasets.files import ImageFiles, natural, scan, user_path


class ImageFolder(ImageFiles):
    """Images in one folder per class: ``root/CLASS/**/IMAGE``, classes in natural order (2 < 10).

    ``root`` may instead hold ``train``, ``val`` (or ``valid``, ``validation``) and ``test`` folders
    of that form; these are the splits. Without a validation folder, val is cut from train.
    Images: (3, H, W) uint8, RGB, sizes may differ. Raises DataError as ``scan`` does.

    root: The folder with a folder for each class, or with train, val and test folders of them.
    on_broken: What a file that cannot be decoded does: error ends the run, skip leaves it out.
    """

    def __init__(self, root: str, on_broken: Literal["error", "skip"] = "error") -> None:
        folder = user_path(root, "dataset.root")
        samples = scan(folder)
        classes = sorted({sample.class_name for sample in samples}, key=natural)
        super().__init__(folder, samples, classes, on_broken)
