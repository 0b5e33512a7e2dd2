"""What reading .npz and .npy files promises: MedMNIST's layout, told conversions, refusals."""

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import DataError
from datasets.arrays import Arrays
from tests.test_datasets import check_contract

RANDOM = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, np.uint8)


def save(path, compressed=True, **arrays):
    """The path of an .npz file, as NumPy itself writes it."""
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return str(path)


@pytest.fixture
def npz(tmp_path):
    return tmp_path / "data.npz"


def medmnist(*shape, labels=1):
    """Arrays with the keys, shapes and types of MedMNIST's files."""
    arrays = {}
    for part, count in (("train", 12), ("val", 4), ("test", 6)):
        arrays[f"{part}_images"] = pixels(count, *shape)
        rows = np.arange(count * labels, dtype=np.uint8).reshape(count, labels)
        arrays[f"{part}_labels"] = rows % 3 if labels == 1 else rows * 7 % 5 % 2
    return arrays


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3)])
@pytest.mark.parametrize("compressed", [True, False])
def test_medmnist_files_are_read_as_they_are_with_their_official_parts(npz, shape, compressed):
    arrays = medmnist(*shape)
    data = Arrays(save(npz, compressed, **arrays))
    check_contract(data)
    assert data.parts == ("train",) * 12 + ("val",) * 4 + ("test",) * 6
    assert data.ids[:2] == ("train/00000", "train/00001") and data.ids[-1] == "test/00005"
    assert data.classes == ("0", "1", "2")
    images = np.concatenate([arrays[f"{part}_images"] for part in ("train", "val", "test")])
    labels = np.concatenate([arrays[f"{part}_labels"] for part in ("train", "val", "test")])
    assert data.labels == tuple(labels[:, 0].tolist())
    assert data.images.shape == (22, 3 if len(shape) == 3 else 1, 28, 28)
    for index, image in enumerate(images.reshape(22, 28, 28, -1)):
        assert np.array_equal(data.image(index).numpy(), image.transpose(2, 0, 1))
        expected = hashlib.sha256(image.transpose(2, 0, 1).tobytes()).hexdigest()
        assert data.digest(index) == expected
    assert "images are those of train_images, val_images, test_images" in data.note


@pytest.mark.parametrize(
    ("images", "labels"), [("x", "y"), ("X", "y"), ("images", "labels"), ("data", "target")]
)
@pytest.mark.parametrize("form", ["{}_train", "train_{}", "{}"])
def test_usual_names_are_found_and_told(npz, images, labels, form):
    keys = form.format(images), form.format(labels)
    data = Arrays(save(npz, **dict(zip(keys, (pixels(6, 4, 5), np.arange(6) % 2), strict=True))))
    assert set(data.parts) == {"train" if "train" in form else None}
    assert f"images are those of {keys[0]}, labels those of {keys[1]}" in data.note
    named = Arrays(str(npz), images_key=keys[0], labels_key=keys[1])
    assert torch.equal(named.images, data.images) and named.note == ""


def test_other_names_are_asked_for_with_the_keys_that_there_are(npz):
    arrays = {"pics": pixels(6, 4, 5), "kinds": np.arange(6) % 2, "noise": pixels(6)}
    path = save(npz, **arrays)
    with pytest.raises(DataError, match=r"images_key=KEY(.|\n)*pics: uint8 \(6, 4, 5\)"):
        Arrays(path)
    with pytest.raises(DataError, match="no array 'pix'"):
        Arrays(path, images_key="pix", labels_key="kinds")
    assert Arrays(path, images_key="pics", labels_key="kinds").labels == (0, 1) * 3
    save(npz, images=pixels(4, 2, 2), x=pixels(4, 2, 2), labels=np.arange(4))
    with pytest.raises(DataError, match="several may be: images, x"):
        Arrays(path)


def test_a_folder_of_npy_files_and_two_npy_files_are_read_too(tmp_path):
    images, labels = pixels(6, 4, 5, 3), np.arange(6) % 2
    np.save(tmp_path / "x_train.npy", images)
    np.save(tmp_path / "y_train.npy", labels)
    folder = Arrays(str(tmp_path))
    files = Arrays(str(tmp_path / "x_train.npy"), str(tmp_path / "y_train.npy"))
    assert torch.equal(folder.images, files.images) and folder.labels == files.labels
    assert np.array_equal(folder.images.numpy(), images.transpose(0, 3, 1, 2))
    assert set(folder.parts) == {"train"} and set(files.parts) == {None}
    with pytest.raises(DataError, match=r"dataset.labels=FILE.npy"):
        Arrays(str(tmp_path / "x_train.npy"))


@pytest.mark.parametrize(("shape", "channels"), [((6, 3, 5, 3), "first"), ((6, 1, 4, 3), "last")])
def test_a_shape_with_two_meanings_is_asked_about(npz, shape, channels):
    images = pixels(*shape)
    path = save(npz, images=images, labels=np.arange(6) % 2)
    with pytest.raises(DataError, match="dataset.channels=first or dataset.channels=last"):
        Arrays(path)
    expected = images if channels == "first" else images.transpose(0, 3, 1, 2)
    assert np.array_equal(Arrays(path, channels=channels).images.numpy(), expected)


def test_channels_are_told_apart_by_the_shape(npz):
    for shape, moved in (((4, 3, 5, 6), False), ((4, 5, 6, 3), True), ((4, 5, 6, 1), True)):
        images = pixels(*shape)
        data = Arrays(save(npz, images=images, labels=np.arange(4)))
        expected = images.transpose(0, 3, 1, 2) if moved else images
        assert np.array_equal(data.images.numpy(), expected)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("form", ["npz", "npy"])
def test_an_uncompressed_array_is_mapped_and_never_written_to(tmp_path, form, order):
    images = np.asarray(pixels(3, 500, 400), order=order)
    paths = [tmp_path / "images.npy", tmp_path / "labels.npy"]
    if form == "npz":
        paths = [Path(save(tmp_path / "data.npz", False, images=images, labels=np.arange(3)))]
    else:
        np.save(paths[0], images)
        np.save(paths[1], np.arange(3))
    before = paths[0].read_bytes()
    data = Arrays(str(paths[0]), str(paths[1]) if form == "npy" else None)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(paths[0]) in maps.read_text()
    assert np.array_equal(data.images[:, 0].numpy(), images)
    data.images += 1
    assert paths[0].read_bytes() == before


# --- types of numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "uint32", ">i4", "int64", "float32", "float64"])
def test_whole_numbers_of_other_types_are_converted_and_told(npz, dtype):
    images = pixels(4, 5, 6) // 2
    images[0, 0, :2] = 0, 127
    data = Arrays(save(npz, images=images.astype(dtype), labels=np.arange(4)))
    assert np.array_equal(data.images[:, 0].numpy(), images)
    assert f"images of {np.dtype(dtype)}, from 0 to 127, are converted to uint8" in data.note


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_from_0_to_1_become_the_uint8_that_they_were_made_of(npz, dtype):
    images = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
    data = Arrays(save(npz, images=(images / 255).astype(dtype), labels=np.arange(2)))
    assert np.array_equal(data.images[:, 0].numpy(), images)
    assert "times 255" in data.note and "rounded" not in data.note
    Arrays(save(npz, images=RANDOM.random((2, 8, 8)), labels=np.arange(2)))
    assert "% of the values between two grey levels" in Arrays(str(npz)).note


def test_false_and_true_become_black_and_white(npz):
    images = pixels(2, 4, 4) > 127
    data = Arrays(save(npz, images=images, labels=np.arange(2)))
    assert np.array_equal(data.images[:, 0].numpy(), images * 255) and "bool" in data.note


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pixels(4, 5, 6).astype("uint16"), "16 bits a channel"),
        (pixels(4, 5, 6).astype("int64") + 1, "from .* to 256; expected uint8"),
        (pixels(4, 5, 6) - 128.0, "before any normalisation"),
        (np.full((4, 5, 6), np.nan), "from nan to nan"),
        (np.full((4, 5, 6), np.inf), "from inf to inf"),
        (np.full((4, 5, 6), "a"), "expected the numbers of images"),
        (np.full((4, 5, 6), 1j), "complex numbers"),
        (pixels(4, 30), "reshape"),
        (pixels(4, 5, 6, 2), r"\(4, 5, 6, 2\) are no images"),
        (pixels(4, 5, 6, 4), r"\(4, 5, 6, 4\) are no images"),
        (pixels(4, 1, 5, 6, 3), "are no images"),
        (pixels(4, 0, 6), "no pixels"),
    ],
)
def test_what_is_no_image_is_refused_with_what_was_expected(npz, images, message):
    path = save(npz, images=images, labels=np.arange(4))
    with pytest.raises(DataError, match=message) as caught:
        Arrays(path)
    assert f"{path}: images" in str(caught.value)


# --- labels ---------------------------------------------------------------------------------------


def test_texts_are_class_names_in_natural_order(npz):
    for labels in (np.array(["c10", "c9", "été", "c9"]), np.array(["c10", "c9", "x", "c9"], "S")):
        data = Arrays(save(npz, images=pixels(4, 2, 2), labels=labels))
        names = [str(text) if labels.dtype.kind == "U" else text.decode() for text in labels]
        assert [data.classes[label] for label in data.labels] == names
        assert data.classes[:2] == ("c9", "c10")
    ordered = Arrays(str(npz), classes=["x", "c10", "c9"])
    assert ordered.classes == ("x", "c10", "c9") and ordered.labels == (1, 2, 0, 2)


def test_one_hot_rows_are_class_numbers_unless_several_says_otherwise(npz):
    rows = np.eye(3)[[0, 2, 1, 1]]
    data = Arrays(save(npz, images=pixels(4, 2, 2), labels=rows))
    assert data.labels == (0, 2, 1, 1) and "single 1 in each row" in data.note
    data = Arrays(str(npz), several=True, classes=["a", "b", "c"])
    assert torch.equal(torch.tensor(data.labels), torch.tensor(rows, dtype=torch.float32))
    assert data.classes == ("a", "b", "c")


def test_rows_of_0_and_1_are_several_labels_and_equal_ones_share_memory(npz):
    arrays = medmnist(28, 28, labels=14)  # as ChestMNIST has them
    data = Arrays(save(npz, **arrays))
    rows = np.concatenate([arrays[f"{part}_labels"] for part in ("train", "val", "test")])
    labels = torch.tensor(data.labels)
    assert labels.dtype == torch.float32 and np.array_equal(labels.numpy(), rows)
    assert len(data.classes) == 14
    assert len({id(row) for row in data.labels}) == len({*data.labels})


def test_names_of_classes_are_given_by_number_and_those_without_image_are_told(npz):
    path = save(npz, images=pixels(4, 2, 2), labels=np.array([3, 1, 3, 1]))
    data = Arrays(path, classes=["a", "b", "c", "d"])
    assert data.classes == ("b", "d") and data.labels == (1, 0, 1, 0)
    assert "2 class names of 4 without any image: left out ('a', 'c')" in data.note
    for wrong in ([], ["a"], ["a", "b", "a", "c"]):
        with pytest.raises(ValueError, match="at least two names that differ"):
            Arrays(path, classes=wrong)
    with pytest.raises(DataError, match=r"labels\[0\]: the label is 3 .and 1 more.*from 0 to 2"):
        Arrays(path, classes=["a", "b", "c"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, np.nan, 1]), r"labels\[2\]: the label is nan"),
        (np.array([0, 1, 0.5, np.inf]), r"labels\[2\]: the label is 0.5 \(2 such"),
        (np.array([0, -1, 1, -1]), r"labels\[1\]: the label is -1 \(and 1 more"),
        (np.array([0, 1, 2, 2**63], np.uint64), r"labels\[3\]: the label is 9223372036854775808"),
        (np.array([[0, 1], [1, 2], [0, 0], [1, 1]]), r"labels\[1\]: \[1, 2\] .1 such.*0 and 1"),
        (np.array([[0, 1], [1, np.nan], [0, 0], [1, 1]]), r"labels\[1\]"),
        (np.array(["a", "b", "", "a"]), r"labels\[2\]: the label is ''"),
        (np.array(["a", "b", "NaN", "a"]), r"labels\[2\]: the label is 'NaN'; it usually means"),
        (np.array(["a", "b", "x" * 300, "a"]), r"labels\[2\].*at most 255"),
        (np.array(["cat", "Cat", "dog", "dog"]), "differ only in case"),
        (np.array([b"a", b"b", b"\xff", b"a"]), "not UTF-8"),
        (np.array([0, 1, 0]), r"labels: int64 \(3,\); expected as many labels as images"),
        (np.zeros((4, 2, 2)), r"expected \(N,\), \(N, 1\) or \(N, K\)"),
        (np.array(0), "expected as many labels"),
    ],
)
def test_a_wrong_label_is_located(npz, labels, message):
    path = save(npz, images=pixels(4, 2, 2), labels=labels)
    with pytest.raises(DataError, match=message) as caught:
        Arrays(path)
    assert path in str(caught.value) and len(str(caught.value)) < 700


def test_splits_of_other_sizes_or_types_are_refused(npz):
    arrays = medmnist(8, 8)
    for images in (pixels(6, 8, 9), pixels(6, 8, 8).astype(int)):
        path = save(npz, **arrays | {"test_images": images})
        with pytest.raises(DataError, match="test_images: images .*expected the same in all"):
            Arrays(path)


def test_images_without_labels_are_left_out_and_told(npz):
    arrays = medmnist(8, 8)
    del arrays["test_labels"]
    data = Arrays(save(npz, **arrays))
    assert set(data.parts) == {"train", "val"} and "left out" in data.note
    assert "test_images" in data.note.splitlines()[-1]


def test_arrays_that_are_neither_images_nor_labels_are_counted_and_named(npz):
    arrays = medmnist(8, 8)
    assert len(Arrays(save(npz, **arrays)).note.splitlines()) == 1  # all are used
    data = Arrays(save(npz, **arrays, about=np.arange(3)))
    told = "1 array is read as neither images nor labels: about"
    assert data.note.splitlines()[-1] == f"{npz}: {told}"
    del arrays["test_labels"]  # test_images has a note of its own
    save(npz, **arrays, **{f"k{number}": np.arange(3) for number in range(7)})
    data = Arrays(str(npz), images_key="images", labels_key="labels")
    told = "7 arrays are read as neither images nor labels: k0, k1, k2, k3, k4 and 2 more"
    assert "test_images" in data.note.splitlines()[0]
    assert data.note.splitlines()[1:] == [f"{npz}: {told}"]


def test_a_column_is_a_further_array_in_the_order_of_the_ids(npz):
    arrays = medmnist(8, 8)
    patients = {f"{p}_patient": np.char.add(p, np.arange(n).astype(str)) for p, n in
                (("train", 12), ("val", 4), ("test", 6))}  # fmt: skip
    data = Arrays(save(npz, **arrays, **patients, about=np.arange(3)))
    assert data.column("patient") == [*np.concatenate([*patients.values()])]
    assert data.column("labels") == [str(label) for label in data.labels]
    with pytest.raises(DataError, match="no array 'about'.*there: labels, patient"):
        data.column("about")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_in_a_column_is_no_text_and_whole_floats_are_whole_numbers(npz, dtype):
    patient = np.array([3, np.nan, 2.5, 3], dtype)
    data = Arrays(save(npz, images=pixels(4, 2, 2), labels=np.arange(4), patient=patient))
    assert data.column("patient") == ["3", "", "2.5", "3"]


@pytest.mark.parametrize("form", ["{}", "{}_train"])
def test_a_column_with_the_word_of_a_part_in_its_name_is_found_by_its_whole_name(npz, form):
    arrays = {form.format("x"): pixels(4, 2, 2), form.format("y"): np.arange(4)}
    data = Arrays(save(npz, **arrays, blood_test=np.array(["a", "b", "b", "a"])))
    assert data.column("blood_test") == ["a", "b", "b", "a"]


def test_two_arrays_that_mean_the_same_are_refused(npz):
    arrays = medmnist(8, 8) | {"images_train": pixels(12, 8, 8)}
    with pytest.raises(DataError, match="'train_images' and 'images_train' both mean images of tr"):
        Arrays(save(npz, **arrays))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.array(["a", "é", "a"]), np.array([b"a", b"\xc3\xa9", b"a"])),
        (np.array([0, 1, 0]), np.array(["0", "1", "0"])),
        (np.array([b"a", b"b", b"a"]), np.array([0, 1, 0])),
    ],
)
def test_parts_with_other_kinds_of_labels_are_refused(npz, first, second):
    arrays = {"x_train": pixels(3, 2, 2), "x_test": pixels(3, 2, 2)}
    path = save(npz, **arrays, y_train=first, y_test=second)
    with pytest.raises(DataError, match="y_test: labels .*y_train are .*same kind") as caught:
        Arrays(path)
    assert path in str(caught.value)


def test_several_needs_rows_and_classes_need_a_label(npz):
    path = save(npz, images=pixels(4, 2, 2), labels=np.arange(4))
    with pytest.raises(DataError, match=r"labels: labels \(4,\); dataset.several=true needs rows"):
        Arrays(path, several=True)
    for rows in (np.empty((4, 0)), np.zeros((4, 3))):
        with pytest.raises(DataError, match="data.npz: no image has a label"):
            Arrays(save(npz, images=pixels(4, 2, 2), labels=rows))


def test_many_different_sets_of_labels_are_refused_before_they_take_the_memory(npz, monkeypatch):
    rows = np.array([[0, 1, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1]])
    path = save(npz, images=pixels(4, 2, 2), labels=rows)
    monkeypatch.setattr("datasets.labels.MAX_SHARES", 9)
    assert len({*Arrays(path).labels}) == 3
    monkeypatch.setattr("datasets.labels.MAX_SHARES", 8)
    with pytest.raises(DataError, match="3 labels in over 2 different sets take too much memory"):
        Arrays(path)


def test_ten_thousands_of_names_are_matched_at_once(npz):
    count = 20_000
    path = save(npz, images=pixels(count, 1, 1), labels=np.arange(count))
    began = time.process_time()
    data = Arrays(path, classes=[*map(str, range(count + 1))])
    assert len(data.classes) == count and time.process_time() - began < 2
    path = save(npz, images=pixels(count, 1, 1), labels=np.arange(count).astype(str))
    began = time.process_time()
    assert len(Arrays(path, classes=[*map(str, range(count + 1))]).classes) == count
    assert time.process_time() - began < 2


# --- training -------------------------------------------------------------------------------------


def test_training_on_arrays_gives_the_bits_of_the_same_images_in_idx_files(
    fashion_root, npz, train
):
    """Fashion-MNIST's reader is the reference: same images, same splits, same weights."""
    from datasets.fashion_mnist import FashionMNIST

    same = FashionMNIST(str(fashion_root))
    images, labels = same.images[:, 0].numpy(), np.array(same.labels, np.uint8)
    arrays = {"train_images": images[:120], "test_images": images[120:]}
    arrays |= {"train_labels": labels[:120], "test_labels": labels[120:]}
    path = save(npz, **arrays)
    transforms = "[{name: Resize, size: 32}, {name: Normalize, mean: [0.5], std: [0.25]}]"
    runs = [
        train(f"dataset={dataset}", f"transforms={{train: {transforms}, eval: {transforms}}}",
              "train.epochs=1")
        for dataset in (f"{{name: FashionMNIST, root: {fashion_root}}}",
                        f"{{name: Arrays, root: {path}}}")
    ]  # fmt: skip
    assert (runs[0] / "split.json").read_bytes() == (runs[1] / "split.json").read_bytes()
    weights = [torch.load(run / "model.pt", weights_only=True) for run in runs]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
