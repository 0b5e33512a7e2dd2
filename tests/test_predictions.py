"""The table predictions.csv: what the best weights answer for each image of val and test."""

import csv
import json
import math

import numpy
import pytest
import torch
from torch import nn

import trainer.loop.fit
from trainer.comparing.predictions import Answer, prediction_lines, read_predictions
from trainer.components import LOSSES, OF_SEVERAL_LABELS
from trainer.config.signatures import resolve
from trainer.loop.evaluate import each_loss
from trainer.process.errors import RunError


def table(run):
    with open(run / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_each_image_of_val_and_test_once_in_the_order_of_the_split(finished):
    run = finished()
    split = json.loads((run / "split.json").read_text())
    rows = [(row["part"], row["id"], row["sha256"]) for row in table(run)]
    assert rows == [(part, *pair) for part in ("val", "test") for pair in split[part].items()]


def test_where_names_decide_the_split_no_content_is_named_and_the_id_is_the_key(finished):
    run = finished("split.by=name")
    rows = table(run)
    assert {row["sha256"] for row in rows} == {""}
    assert read_predictions(run / "predictions.csv").keys == [row["id"] for row in rows]


def test_the_means_of_a_part_are_the_digits_of_result_json(finished):
    run = finished("loss.weight=[1.0, 0.37]")
    result = json.loads((run / "result.json").read_text())
    assert result["val"]["loss"] == result["best"]["val/loss"]
    for part in ("val", "test"):
        rows = [row for row in table(run) if row["part"] == part]
        losses = [float(row["loss"]) for row in rows]
        assert sum(losses) / len(rows) == numpy.mean(losses[::-1]) == result[part]["loss"]
        right = sum(row["true"] == row["predicted"] for row in rows)
        assert right / len(rows) == result[part]["accuracy"]


def test_a_row_tells_probabilities_of_all_classes_and_the_likeliest_one(finished):
    run = finished()
    for row in table(run):
        chances = {name[2:]: float(cell) for name, cell in row.items() if name.startswith("p:")}
        assert list(chances) == json.loads((run / "model.json").read_text())["classes"]
        assert sum(chances.values()) == pytest.approx(1, abs=1e-6)
        assert row["predicted"] == max(chances, key=chances.__getitem__)
        assert float(row["probability"]) == max(chances.values())
        expected = -math.log(max(chances[row["true"]], 1e-38))
        assert float(row["loss"]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_answers_of_an_earlier_end_are_gone_as_soon_as_a_run_goes_on(finished, train, monkeypatch):
    run = finished()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.loop.fit, "train_epochs", killed)
    with pytest.raises(KeyboardInterrupt):
        train("train.epochs=9", resume=run, file=run / "config.yaml")
    left = json.loads((run / "result.json").read_text()).keys()
    assert not (run / "predictions.csv").exists()
    assert not {"val", "test", "calibration", "novelty"} & left


def test_equal_seeds_give_an_equal_table_also_resumed_and_with_other_caches(train, finished):
    expected = (finished() / "predictions.csv").read_bytes()
    half = train("train.epochs=1")
    resumed = train("train.epochs=2", resume=half)
    uncached = train("loader.cache=off", "loader.workers=2")
    assert (resumed / "predictions.csv").read_bytes() == expected
    assert (uncached / "predictions.csv").read_bytes() == expected


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weight", [None, [0.3, 1.0, 2.5]])
def test_the_loss_of_each_image_is_the_loss_of_a_batch_of_it_alone(name, weight):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 3, generator=generator)
    labels = torch.randint(3, (50,), generator=generator)
    sets = torch.randint(2, (50, 3), generator=generator).float()
    loss = resolve(LOSSES, name)(weight=weight)
    for given in (labels, sets) if name in OF_SEVERAL_LABELS else (labels,):
        alone = [loss(logits[i : i + 1], given[i : i + 1]).item() for i in range(50)]
        each = each_loss(loss, logits, given)
        assert each.tolist() == pytest.approx(alone, rel=1e-5, abs=1e-9)
        assert each.mean().item() == pytest.approx(loss(logits, given).item(), rel=1e-5)
        assert sum(each.tolist()) == sum(reversed(each.tolist()))


def test_a_loss_from_elsewhere_needs_no_method_for_each_image():
    logits, labels = torch.randn(7, 3), torch.arange(7) % 3
    each = each_loss(nn.CrossEntropyLoss(), logits, labels)
    expected = nn.CrossEntropyLoss(reduction="none")(logits, labels)
    assert each.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_table_read_again_has_the_same_names_and_float32_numbers(tmp_path):
    hard = ['a,"b"', "line\nbreak", "=1+1", "p:x"]
    chances = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    answers = [
        Answer(
            f"{hard[i % 4]}/{i}.png", "ab" * 32, "val", hard[0], hard[i % 4], 0.5, None, row, hard
        )
        for i, row in enumerate(chances.tolist())
    ]
    file = tmp_path / "predictions.csv"
    more = ["set", "unknown", "a,b", ""]  # further columns are no classes
    file.write_text("\n".join(prediction_lines(hard, answers, more)) + "\n", encoding="utf-8")
    read = read_predictions(file)
    assert read.classes == tuple(hard)
    assert read.ids == [one.id for one in answers]
    assert read.predicted == [one.predicted for one in answers]
    assert torch.equal(torch.from_numpy(read.probabilities), chances)
    assert all(map(math.isnan, read.losses))
    assert len(read.of_part("val")) == 5 and not len(read.of_part("test"))


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "its columns are"),
        ("id,label\n1,2\n", "its columns are id,label"),
        ("id,sha256,part,true,predicted,probability,loss,p:a,p:b\nx,,val\n", "too few or many"),
        ("id,sha256,part,true,predicted,probability,loss,p:a,p:b\nx,,val,a,a,1,z,1,0\n", "'z'"),
        ('id,sha256,part,true,predicted,probability,loss,p:a,p:b\n"x', "unexpected end"),
    ],
)
def test_a_damaged_table_is_refused_with_the_reason(tmp_path, text, reason):
    file = tmp_path / "predictions.csv"
    file.write_text(text)
    with pytest.raises(RunError, match=reason):
        read_predictions(file)
    with pytest.raises(RunError, match="is missing"):
        read_predictions(tmp_path / "none.csv")
