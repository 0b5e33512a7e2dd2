"""What is known of torchvision's data sets, and of those that it holds in memory; no torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Arguments = Mapping[str, Any]
Opening = tuple[str | None, Arguments]  # "train", "val", "test" or None; what torchvision is given


class Own(NamedTuple):
    """An argument of a set that a YAML may give: its type, its default (... if required), help."""

    type: Any
    default: Any
    text: str


class Official(NamedTuple):
    """One data set.

    about: its first sentence in the documentation. files: what is looked for below the root. urls:
    where it is from. In both, {NAME} stands for an argument, or for a word of ``words``, by the
    value of an argument. parts: from the arguments, what is opened, in this order. own: the
    arguments. is_file_set: whether it has image files. needs: a package that reads it. fetched:
    whether missing files are downloaded: yes, no (unless asked, for they are large) or never
    (torchvision cannot, or compares no checksum). images: how many there are, where a folder cut
    short looks complete; 0 elsewhere. place: where below the root torchvision puts, and finds, what
    it downloads; None if that has other names than in urls.
    """

    about: str
    files: str
    urls: str
    parts: Callable[[Arguments], Sequence[Opening]]
    own: Mapping[str, Own] = {}
    is_file_set: bool = True
    needs: str = ""
    fetched: Literal["yes", "no", "never"] = "yes"
    images: int = 0
    words: Mapping[Any, Mapping[str, str]] = {}
    place: str | None = ""


def whole(own: Arguments) -> list[Opening]:
    """All images, without parts."""
    return [(None, own)]


def _train_or_not(own: Arguments) -> list[Opening]:
    return [("train", {**own, "train": True}), ("test", {**own, "train": False})]


def splits(**values: str) -> Callable[[Arguments], list[Opening]]:
    """The parts by torchvision's argument ``split``."""
    return lambda own: [(part, {**own, "split": value}) for part, value in values.items()]


def _qmnist(own: Arguments) -> list[Opening]:
    return [(part, {**own, "what": part}) for part in ("train", "test")]


def _svhn(own: Arguments) -> list[Opening]:
    more: list[Opening] = [("train", {"split": "extra"})] if own["extra"] else []
    return [("train", {"split": "train"}), *more, ("test", {"split": "test"})]


TRAIN_TEST = splits(train="train", test="test")
ALL_THREE = splits(train="train", val="val", test="test")
_IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def _idx(folder: str) -> str:
    return " ".join(f"{folder}/raw/{name}-ubyte" for name in _IDX)


def _gz(site: str) -> str:
    return " ".join(f"{site}{name}-ubyte.gz" for name in _IDX)


_QMNIST = "https://raw.githubusercontent.com/facebookresearch/qmnist/master/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_USPS = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/"
_PCAM = " ".join(
    f"pcam/camelyonpatch_level_2_split_{part}_{axis}.h5"
    for part in ("train", "valid", "test")
    for axis in "xy"
)

IN_MEMORY: Mapping[str, Official] = {
    "MNIST": Official(
        "MNIST (LeCun et al., 1998): 60,000 + 10,000 grey digits of 28 x 28, 10 classes.",
        _idx("MNIST"),
        _gz("https://ossci-datasets.s3.amazonaws.com/mnist/"),
        _train_or_not,
        place="MNIST/raw",
    ),
    "KMNIST": Official(
        "Kuzushiji-MNIST: 60,000 + 10,000 grey Japanese characters of 28 x 28, 10 classes.",
        _idx("KMNIST"),
        _gz("http://codh.rois.ac.jp/kmnist/dataset/kmnist/"),
        _train_or_not,
        place="KMNIST/raw",
    ),
    "FashionMNIST": Official(
        "Fashion-MNIST: 60,000 + 10,000 grey clothes of 28 x 28, 10 classes; FashionMNIST alone "
        "also reads smaller files.",
        _idx("FashionMNIST"),
        _gz("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
        _train_or_not,
        place="FashionMNIST/raw",
    ),
    "EMNIST": Official(
        "EMNIST (Cohen et al., 2017): grey digits and letters of 28 x 28, rows and columns "
        "exchanged as in its files.",
        " ".join(
            f"EMNIST/raw/emnist-{{split}}-{part}-{kind}-ubyte"
            for part in ("train", "test")
            for kind in ("images-idx3", "labels-idx1")
        ),
        "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
        _train_or_not,
        {
            "split": Own(
                Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"],
                ...,
                "The variant of EMNIST, with 62, 47, 47, 26, 10 and 10 classes.",
            )
        },
        place="EMNIST/raw",
    ),
    "QMNIST": Official(
        "QMNIST: MNIST with all 60,000 test digits; 60,000 + 60,000 grey images of 28 x 28.",
        " ".join(
            f"QMNIST/raw/qmnist-{part}-{kind}"
            for part in ("train", "test")
            for kind in ("images-idx3-ubyte", "labels-idx2-int")
        ),
        " ".join(
            f"{_QMNIST}qmnist-{part}-{kind}.gz"
            for part in ("train", "test")
            for kind in ("images-idx3-ubyte", "labels-idx2-int")
        ),
        _qmnist,
        place="QMNIST/raw",
    ),
    "CIFAR10": Official(
        "CIFAR-10 as torchvision reads it; CIFAR10 alone gives the same images.",
        " ".join(
            f"cifar-10-batches-py/{name}"
            for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
        ),
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        _train_or_not,
    ),
    "CIFAR100": Official(
        "CIFAR-100 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32 x 32, 100 classes.",
        "cifar-100-python/train cifar-100-python/test cifar-100-python/meta",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        _train_or_not,
    ),
    "SVHN": Official(
        "Street View House Numbers: 73,257 + 26,032 colour digits of 32 x 32, 10 classes.",
        "train_32x32.mat test_32x32.mat {more}",
        f"{_SVHN}train_32x32.mat {_SVHN}test_32x32.mat {_SVHN}extra_32x32.mat",
        _svhn,
        {
            "extra": Own(
                bool, False, "Train also on the 531,131 easier images of extra_32x32.mat (1.3 GB)."
            )
        },
        needs="scipy",
        words={False: {"more": ""}, True: {"more": "extra_32x32.mat"}},
    ),
    "STL10": Official(
        "STL-10: 5,000 + 8,000 colour images of 96 x 96, 10 classes; its unlabeled images are not "
        "used.",
        " ".join(
            f"stl10_binary/{name}.bin"
            for name in ("train_X", "train_y", "test_X", "test_y", "unlabeled_X")
        ),
        "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        lambda own: [("train", {**own, "split": "train"}), ("test", {"split": "test"})],
        {
            "folds": Own(
                Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9] | None,
                None,
                "The number of one of the ten official sets of 1,000 training images; null: all.",
            )
        },
    ),
    "USPS": Official(
        "USPS: 7,291 + 2,007 grey digits of 16 x 16 from envelopes, 10 classes.",
        "usps.bz2 usps.t.bz2",
        f"{_USPS}usps.bz2 {_USPS}usps.t.bz2",
        _train_or_not,
    ),
    "SEMEION": Official(
        "SEMEION: 1,593 handwritten digits of 16 x 16, black or white, 10 classes, without parts.",
        "semeion.data",
        "http://archive.ics.uci.edu/ml/machine-learning-databases/semeion/semeion.data",
        whole,
    ),
    "FER2013": Official(
        "FER2013: 28,709 + 7,178 grey faces of 48 x 48, 7 classes, from fer2013.csv or "
        "icml_face_data.csv.",
        "fer2013",
        "https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-"
        "recognition-challenge",
        TRAIN_TEST,
        fetched="never",
        place=None,
    ),
    "PCAM": Official(
        "PatchCamelyon: 262,144 + 32,768 + 32,768 colour patches of 96 x 96 (9 GB of memory), 2 "
        "classes.",
        _PCAM,
        "https://github.com/basveeling/pcam",
        ALL_THREE,
        needs="h5py",
        fetched="no",
        place=None,
    ),
}
IN_MEMORY = {name: one._replace(is_file_set=False) for name, one in IN_MEMORY.items()}
