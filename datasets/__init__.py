"""Table of the datasets for ``dataset.name``, without torch. To add one: its file, a line here."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

DATASETS = {
    "RMB": "datasets.rmb:RMB",
    "CIFAR10": "datasets.cifar10:CIFAR10",
    "FashionMNIST": "datasets.fashion_mnist:FashionMNIST",
    "ImageFolder": "datasets.image_folder:ImageFolder",
    "CSVImages": "datasets.csv_images:CSVImages",
    "Shards": "datasets.shards:Shards",
    "Arrays": "datasets.arrays:Arrays",
    "Parquet": "datasets.parquet:Parquet",
}
# The class number of each sample. Or, where an image may have several labels, K numbers in 0..1:
# its share of each class, as a rule 0.0 or 1.0; equal ones are one object.
Labels = tuple[int, ...] | tuple[tuple[float, ...], ...]
# The sets of torchvision.datasets with one class an image; datasets/torchvision_table.py has more.
TORCHVISION = (
    *("MNIST", "KMNIST", "FashionMNIST", "EMNIST", "QMNIST", "CIFAR10", "CIFAR100", "SVHN"),
    *("STL10", "USPS", "SEMEION", "FER2013", "PCAM", "Flowers102", "OxfordIIITPet", "Food101"),
    *("EuroSAT", "GTSRB", "DTD", "Imagenette", "Caltech101", "Caltech256", "Country211"),
    *("FGVCAircraft", "StanfordCars", "RenderedSST2", "SUN397", "Omniglot", "LFWPeople"),
    *("INaturalist", "Places365", "ImageNet", "CLEVRClassification"),
)
DATASETS |= {f"torchvision/{name}": f"datasets.torchvision_sets:{name}" for name in TORCHVISION}
_NO_CLASS = {  # why images have no class there -> sets of torchvision.datasets
    "an image has 40 attributes there, and no class; from a CSV file with 0 in place of -1, "
    "CSVImages reads several labels by label_columns": "CelebA",
    "an image has boxes or masks there, and no class": "VOCSegmentation VOCDetection "
    "CocoDetection Cityscapes SBDataset Kitti WIDERFace",
    "an image has captions there, and no class": "CocoCaptions Flickr8k Flickr30k SBU",
    "images are pairs or series there, and no image has a class": "LFWPairs PhotoTour MovingMNIST "
    "KittiFlow Sintel FlyingChairs FlyingThings3D HD1K Kitti2012Stereo Kitti2015Stereo CarlaStereo "
    "Middlebury2014Stereo CREStereo FallingThingsStereo SceneFlowStereo SintelStereo InStereo2k "
    "ETH3DStereo",
    "videos are no images": "Kinetics HMDB51 UCF101",
    "ImageFolder, without torchvision/, reads such folders": "ImageFolder DatasetFolder",
    "the images are noise": "FakeData",
    "a cache would be unpickled from the working directory": "LSUN LSUNClass",
}
# Datasets that cannot be used, and the reason for the error message.
UNSUPPORTED = {
    f"torchvision/{name}": why for why, names in _NO_CLASS.items() for name in names.split()
}
RMB_ROOT = "data/rmb"  # where RMB looks, unless its ``root`` is another folder


class DataError(Exception):
    """The data on disk is not as requested; the message says where, and how to correct it."""


class BrokenImage(DataError):
    """One image file that cannot be decoded."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def has_several_labels(labels: Labels) -> bool:
    """Whether an image may have several labels."""
    return bool(labels) and isinstance(labels[0], tuple)


class Dataset(Protocol):
    """Interface of every dataset. The constructor lists files and labels, but decodes nothing.

    A dataset of files may also have these three; one without them is read by image and digest:

    - ``content(index) -> bytes``: the file's bytes, whose SHA-256 is the digest. Raises
      BrokenImage.
    - ``decode(index, content, at_least=0) -> Tensor``: image(index) from these bytes. at_least is
      the number of pixels of the shorter side that are needed, 0 if all are; fewer may be decoded.
    - ``recipe -> str``, a property: all that decides the pixels of a content besides at_least.

    One whose samples are not each a file ``root`` / id may tell what identifies their contents:

    - ``states() -> NDArray``: (N, 4) int64; while its row stays, a sample's content does. The
      bytes, about; the times (ns) of content and any change of its file; a number of all else.

    All may have these too:

    - ``column(name) -> list[str]``: the text of a table's column for each sample, in the order of
      ``ids``. Raises DataError that lists the columns.
    - ``sizes``, (N,) int64: the bytes of each file, if ``digests`` returns a list. A set of very
      many bytes is split by name.
    - ``remarks``, a bytearray or an array of N numbers: what ``decode`` converted or guessed in
      each image (``Remark`` in images.py), 0 before.
    - ``decoding``: "fast" if ``decode`` may use at_least.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names: ``classes[k]`` is the name of label k."""

    @property
    def labels(self) -> "Labels":
        """The label of each sample; or its share of each class, where it may have several."""

    @property
    def ids(self) -> tuple[str, ...]:
        """A unique, stable name of each sample, such as its path below the root or "test/00017"."""

    @property
    def parts(self) -> tuple[str | None, ...]:
        """The official split of each sample, "train", "val" or "test"; None if there is none."""

    @property
    def on_broken(self) -> str:
        """What the trainer does on a BrokenImage: "error" or "skip"."""

    @property
    def note(self) -> str:
        """A warning about this data for the user; normally ""."""

    @property
    def images(self) -> "Tensor | None":
        """All images, (N, C, H, W) uint8 or uint16, if it holds them in memory; else None."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> "Tensor":
        """Decode one image: (C, H, W), the same C for all images. Raises BrokenImage.

        All images are uint8 (0 to 255), or all are uint16 (0 to 65535). The tensor may be a view of
        (H, W, C) in memory.
        """

    def digest(self, index: int) -> str:
        """SHA-256 (hex) of the file's bytes, or of the pixels if there are no image files."""

    def digests(self, indices: "Sequence[int]") -> "list[str] | None":
        """``digest`` of each index, if that opens no file; else None."""
