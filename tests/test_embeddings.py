"""``predict --embeddings``: what the last layer gets, so that it gives the answers."""

import numpy as np
import pytest
import torch

from tests.test_predict import mirrored, run  # noqa: F401
from trainer.build.trained import load_trained
from trainer.predict import main


@pytest.fixture
def written(tmp_path, notes):
    def predict(run, *more):  # noqa: F811
        file = tmp_path / "all.npz"
        assert main([str(run), str(notes), "--embeddings", str(file), *more]) == 0
        with np.load(file) as arrays:  # without allow_pickle
            return dict(arrays)

    return predict


def through_last_layer(run, embeddings):  # noqa: F811
    trained = load_trained(run)
    last = [layer for layer in trained.model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    with torch.no_grad():
        return last(torch.from_numpy(embeddings)).softmax(dim=1).numpy()


def test_the_last_layer_makes_the_probabilities_of_the_embeddings(run, written, notes):  # noqa: F811
    arrays = written(run)
    assert arrays["embeddings"].shape == (50, 84) and arrays["embeddings"].dtype == np.float32
    assert sorted(arrays["paths"]) == sorted(map(str, notes.rglob("*.jpg")))
    assert arrays["classes"].tolist() == ["1", "100"]
    made = through_last_layer(run, arrays["embeddings"])
    np.testing.assert_allclose(made, arrays["probabilities"], rtol=0, atol=1e-6)


def test_of_mirror_images_it_is_the_mean(run, written):  # noqa: F811
    plain, both = written(run), written(run, "--tta", "flip")
    assert not np.array_equal(plain["embeddings"], both["embeddings"])
    made = through_last_layer(run, both["embeddings"])  # the mean of logits: the layer is linear
    np.testing.assert_allclose(made, both["probabilities"], rtol=0, atol=1e-6)


def test_several_runs_have_none(run, mirrored, notes, tmp_path, capsys):  # noqa: F811
    file = tmp_path / "all.npz"
    arguments = [str(run), str(mirrored), str(notes), "--embeddings", str(file)]
    assert main(arguments) == 2
    assert "--embeddings are of one model" in capsys.readouterr().err
    assert not file.exists()


def test_a_file_without_an_answer_has_no_row(run, notes, tmp_path, capsys):  # noqa: F811
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    file = tmp_path / "none.npz"
    assert main([str(run), str(broken), "--embeddings", str(file)]) == 3
    with np.load(file) as arrays:
        assert len(arrays["embeddings"]) == len(arrays["paths"]) == 0


def test_what_is_unknown_is_the_same_with_embeddings(finished, written, notes, tmp_path, capsys):
    run = finished("split.ratios=[3,5,2]")  # noqa: F811
    reject = ["--reject", "0.8", "--json"]
    capsys.readouterr()
    assert main([str(run), str(notes), *reject]) == 0
    alone = capsys.readouterr().out
    arrays = written(run, *reject)
    assert capsys.readouterr().out == alone
    made = through_last_layer(run, arrays["embeddings"])
    np.testing.assert_allclose(made, arrays["probabilities"], rtol=0, atol=1e-6)
