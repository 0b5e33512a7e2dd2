"""Notes: what a YAML may say but hardly means is told once, at its line; usual YAMLs are silent."""

import json
from pathlib import Path

import pytest

from trainer import evaluate
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.config.notes import as_lines, notes_on_config
from trainer.process.errors import ConfigError

SHIPPED = sorted(Path("configs").glob("*.yaml"))
IMAGENET = "{name: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
OTHER = "val, test and predictions get other images than training; write "
YAML = """\
dataset: {name: RMB, root: absent}
transforms:
  train:
    - {name: Resize, size: [32, 32]}
    - {name: Normalize, mean: [0.5], std: [0.25]}
  eval:
    - {name: Resize, size: [32, 32]}
    - {name: Normalize, mean: [0.5], std: [0.25]}
model: LeNet
optimizer: {name: SGD, lr: 0.01, momentum: 0.9}
train: {epochs: 10}
"""


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """The notes on YAML with some overrides, by the file alone."""
    monkeypatch.chdir(tmp_path)
    Path("exp.yaml").write_text(YAML)

    def noted(*overrides):
        config = load_config("exp.yaml", overrides)
        return as_lines(config, notes_on_config(config))

    return noted


@pytest.fixture
def told(config_file, capsys):
    """The notes on a run of the small configuration: what is printed at its start."""

    def told(*overrides):
        capsys.readouterr()
        job = prepare(load_config(config_file, overrides), print)
        lines = [line.split("note    ", 1)[1] for line in capsys.readouterr().out.splitlines()
                 if line.startswith("note    ")]  # fmt: skip
        assert all(any(line.endswith(note) for line in lines) for note in job.notes)
        return job.notes

    return told


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_yaml_has_no_note(path):
    config = load_config(path)
    assert as_lines(config, notes_on_config(config)) == []


CENTER = f"{{name: Resize, size: 256}}, {{name: CenterCrop, size: 224}}, {IMAGENET}"
RECIPES = [  # (train, eval) of torchvision's references and of usual tutorials
    (f"{{name: RandomResizedCrop, size: 224}}, RandomHorizontalFlip, {IMAGENET}", CENTER),
    (f"{{name: RandomResizedCrop, size: 176}}, {{name: TrivialAugmentWide}}, {IMAGENET}, "
     "{name: RandomErasing, p: 0.1}", CENTER.replace("256", "232")),
    (f"{{name: Resize, size: 256}}, {{name: RandomCrop, size: 224}}, {IMAGENET}", CENTER),
    ("{name: Resize, size: [36, 36]}, {name: RandomCrop, size: 32}", "{name: Resize, size: 32}"),
    ("{name: Pad, padding: 4}, {name: RandomCrop, size: 32}", ""),
    ("{name: RandomCrop, size: 32, padding: 4}", "{name: Pad, padding: 2}"),
    ("{name: RandomChoice, transforms: [{name: Resize, size: [32, 32]}, "
     "{name: RandomResizedCrop, size: [32, 32]}]}", "{name: Resize, size: [32, 32]}"),
    ("ToTensor, {name: Normalize, mean: [0.5], std: [0.5]}",
     "{name: ToDtype, dtype: float32, scale: true}, "
     "{name: Normalize, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], inplace: true}"),
    ("{name: Resize, size: [32, 32]}", "{name: Resize, size: [32, 32], interpolation: bilinear}"),
    ("{name: CenterCrop, size: 224}", "{name: CenterCrop, size: [224, 224]}"),
    (f"{{name: Resize, size: 256}}, {{name: RandomCrop, size: 224}}, {IMAGENET}",
     f"{{name: Resize, size: 256}}, {{name: TenCrop, size: 224}}, {IMAGENET}"),
    ("Grayscale, {name: ColorJitter, brightness: 0.5}, RandomHorizontalFlip", "Grayscale"),
]  # fmt: skip


@pytest.mark.parametrize(("train", "evaluation"), RECIPES)
def test_what_recipes_do_in_train_alone_has_no_note(noted, train, evaluation):
    assert noted(f"transforms.train=[{train}]", f"transforms.eval=[{evaluation}]") == []


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (
            ["transforms.eval=[{name: Resize, size: [32, 32]}]"],
            "exp.yaml:5: transforms.train.1: Normalize is not in transforms.eval: "
            f"{OTHER}it in both lists or in none",
        ),
        (
            ["transforms.train=[{name: Resize, size: [32, 32]}]"],
            "exp.yaml:8: transforms.eval.1: Normalize is not in transforms.train: "
            f"{OTHER}it in both lists or in none",
        ),
        (
            ["transforms.eval.1.std=[0.5]"],
            "exp.yaml:8: transforms.eval.1: Normalize is another one than in transforms.train: "
            f"{OTHER}the same in both lists",
        ),
        (
            ["transforms.eval.0.interpolation=bicubic"],
            "exp.yaml:7: transforms.eval.0: Resize is another one than in transforms.train: "
            f"{OTHER}the same in both lists",
        ),
        (
            ["transforms.train.1.mean=[127.5]", "transforms.eval.1.mean=[127.5]"],
            "exp.yaml:5: transforms.train.1: is for pixels of 0 to 255, and here they are 0 to 1; "
            "divide mean and std by 255, as in mean: [0.5]",
        ),
        (
            ["transforms.train.0={name: RandomCrop, size: 32}"],
            "exp.yaml:7: transforms.eval.0: Resize is not in transforms.train: "
            f"{OTHER}it in both lists or in none",
        ),
    ],
)
def test_a_fixed_transform_that_differs_between_train_and_eval_is_told(noted, overrides, note):
    assert noted(*overrides)[0] == note


FIXED_ONE = [
    *("{name: CenterCrop, size: 9}", "{name: Pad, padding: 1}", "Grayscale"),
    *("{name: Letterbox, size: 9}", "{name: Resize, size: 9}"),
    "{name: LinearTransformation, transformation_matrix: a.pt, mean_vector: b.pt}",
]


@pytest.mark.parametrize("transform", FIXED_ONE)
@pytest.mark.parametrize("side", ["train", "eval"])
def test_every_fixed_transform_in_one_list_alone_is_told(noted, transform, side):
    other = "eval" if side == "train" else "train"
    (note,) = noted(f"transforms.{side}=[{transform}]", f"transforms.{other}=[]")
    assert f"is not in transforms.{other}: " in note


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("{name: Normalize, mean: [0.5], std: [0.5]}, {name: Resize, size: [9, 9]}",
         "Normalize before Resize makes it resize 32-bit floats in place of 8-bit pixels, which "
         "takes more time; put it after Resize"),
        ("RandomErasing, {name: Letterbox, size: 9}",
         "RandomErasing before Letterbox makes it resize 32-bit floats in place of 8-bit pixels, "
         "which takes more time; put it after Letterbox"),
        ("{name: Normalize, mean: [0.5], std: [0.5]}, {name: ColorJitter, hue: 0.1}",
         "ColorJitter takes pixels of 0 to 1 and cuts off all others; put it before Normalize"),
        ("ColorJitter", "ColorJitter changes no image with these arguments; remove it"),
        ("{name: RandomHorizontalFlip, p: 0}",
         "RandomHorizontalFlip changes no image with these arguments; remove it"),
        ("{name: RandomApply, transforms: [{name: RandomRotation, degrees: 0}]}",
         "RandomRotation changes no image with these arguments; remove it"),
        ("{name: RandomVerticalFlip, p: 1}",
         "RandomVerticalFlip with p 1 changes every training image, and none in evaluation; "
         "write p: 0.5"),
    ],
)  # fmt: skip
def test_a_transform_in_a_wrong_place_or_without_effect_is_told(noted, train, message):
    found = noted(f"transforms.train=[{train}]", "transforms.eval=[]")
    assert message in [note.split(": ", 2)[2] for note in found]


@pytest.mark.parametrize("flip", ["RandomHorizontalFlip", "RandomVerticalFlip", "AlternatingFlip"])
def test_a_flip_before_a_resize_that_may_enlarge_is_not_told(noted, flip):
    resize = "{name: Resize, size: [224, 224]}"
    assert noted(f"transforms.train=[{flip}, {resize}]", f"transforms.eval=[{resize}]") == []


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (["optimizer.lr=100"],
         "optimizer.lr: 100 is far above what SGD usually takes (0.001 to 1); "
         "python -m trainer.find_lr suggests one"),
        (["optimizer={name: AdamW, lr: 1}"],
         "optimizer.lr: 1 is far above what AdamW usually takes (0.00001 to 0.01); "
         "python -m trainer.find_lr suggests one"),
        (["optimizer.lr=0"], "optimizer.lr: 0 changes no weight: nothing is learned"),
        (["optimizer.weight_decay=200"],
         "optimizer.weight_decay: 200 at a learning rate of 0.01 removes the weights in one step"),
        (["optimizer.momentum=1"],
         "optimizer.momentum: 1 never fades: steps only grow; write 0.9"),
        (["optimizer.maximize=true"],
         "optimizer.maximize: true makes the loss larger, not smaller"),
        (["optimizer.no_decay=true"],
         "optimizer.no_decay: has no effect without a weight_decay"),
        (["scheduler={name: OneCycleLR, max_lr: 0.1}"],
         "optimizer.lr: plays no part: scheduler.max_lr sets the learning rate"),
        (["loss.weight=balanced", "loader.sampling=balanced"],
         "loss.weight: balanced, and loader.sampling balanced too: each makes up for rare "
         "classes; keep one of the two"),
        (["loss.label_smoothing=1"],
         "loss.label_smoothing: 1 leaves nothing of the labels; write 0.1"),
        (["optimizer={name: AdamW, lr: 0.01, weight_decay: 100}"],
         "optimizer.weight_decay: 100 at a learning rate of 0.01 removes the weights in one step"),
        (["optimizer.groups=[{match: a, lr: 0}]"],
         "optimizer.groups.0.lr: 0 changes no weight of those that have this rate"),
        (["optimizer.groups=[{match: a, lr: 0.1}]", "optimizer.lr=0"],
         "optimizer.lr: 0 changes no weight of those that have this rate"),
        (["early_stop.patience=9"],
         "early_stop.patience: 9 can't stop the run's 10 epochs early"),
        (["early_stop={patience: 2, min_delta: 1}"],
         "early_stop.min_delta: 1 is more than val/accuracy can improve; write 0.001"),
        (["checkpoint.every=11ep"],
         "checkpoint.every: 11ep is after the run's 10 epochs: a killed run begins anew"),
        (["scheduler=ReduceLROnPlateau"],
         "scheduler.patience: 10 can't lower the rate within the run's 10 epochs"),
        (["scheduler={name: MultiStepLR, milestones: [5, 30, 60]}"],
         "scheduler.milestones: 30 and 60 lie after the run's 10 epochs"),
        (["optimizer.groups=[{match: a, until: 10ep}]"],
         "optimizer.groups.0.until: 10ep is not before the end of the run's 10 epochs: "
         "it has no effect"),
        (["optimizer.momentum=0.5", "scheduler=OneCycleLR"],
         "optimizer.momentum: 0.5 plays no part: scheduler OneCycleLR sets 0.95 to 0.85; "
         "write cycle_momentum: false to keep it"),
        (["optimizer.groups=[{match: a, momentum: 0.6}]",
          "scheduler={name: OneCycleLR, base_momentum: 0.7}"],
         "optimizer.groups.0.momentum: 0.6 plays no part: scheduler OneCycleLR sets 0.95 to 0.7; "
         "write cycle_momentum: false to keep it"),
        (["optimizer.groups=[{match: a, momentum: 1}]"],
         "optimizer.groups.0.momentum: 1 never fades: steps only grow; write 0.9"),
        (["optimizer={name: Muon, rest: SGD, betas: [0.9, 0.99]}"],
         "optimizer.betas: has no effect: they are AdamW's, and rest is SGD"),
    ],
)  # fmt: skip
def test_a_setting_without_effect_or_of_absurd_size_is_told(noted, overrides, note):
    (found,) = noted(*overrides)
    assert found.split(": ", 1)[1] == note


@pytest.mark.parametrize(
    "override",
    ["early_stop.patience=8", "checkpoint.every=10ep", "scheduler={name: OneCycleLR}",
     "scheduler={name: ReduceLROnPlateau, patience: 7}", "optimizer.lr=1", "optimizer=Adadelta",
     "optimizer={name: SGD, lr: 0.1, weight_decay: 0.1, no_decay: true}",
     "optimizer={name: Adam, lr: 0.01, weight_decay: 1000}",
     "optimizer.groups=[{match: a, until: 9ep}]",
     "scheduler={name: MultiStepLR, milestones: [5, 9]}", "loss.label_smoothing=0.9"],
)  # fmt: skip
def test_a_setting_that_still_has_an_effect_is_not_told(noted, override):
    assert noted(override) == []


def test_mirrored_views_beside_mirrored_crops_are_told(noted):
    notes = noted("evaluation.tta=flip", "transforms.eval=[{name: TenCrop, size: 28}]")
    assert (
        "evaluation.tta: flip mirrors what TenCrop in transforms.eval mirrors already: twice the "
        "time for the same; write FiveCrop"
    ) in " ".join(notes)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["average={name: EMA, every: 10ep}"],
         ["average.every: 10ep is after the run's {steps} steps: the average is never updated, "
          "and the trained weights are evaluated and saved"]),
        (["average={name: EMA, every: 1ep}"], []),
        (["average={name: Lookahead, steps: 900}"],
         ["average.steps: 900 is after the run's {steps} steps: the average is never updated, "
          "and the trained weights are evaluated and saved"]),
        (["optimizer.groups=[{match: '*.bias', until: 900st}]"],
         ["optimizer.groups.0.until: 900st is not before the end of the run's {steps} steps: "
          "it has no effect"]),
        (["train.sizes={0ep: [24, 32]}", "model={name: CompactResNet, widths: [2]}"],
         ["train.sizes.0ep: 24 x 32 stretches images of 32 x 32, in training only; "
          "write [24, 24]"]),
        (["log.every=900st"],
         ["log.every: 900st is after the run's {steps} steps: only epochs are logged"]),
        (["checkpoint.every=900st"],
         ["checkpoint.every: 900st is after the run's {steps} steps: a killed run begins anew"]),
        (["scheduler={name: StepLR, step_size: 2}"],
         ["scheduler: StepLR changes no rate in the run's 2 epochs"]),
        (["scheduler={name: StepLR, step_size: 1}"], []),
        (["scheduler={name: ExponentialLR, gamma: 1}"],
         ["scheduler: ExponentialLR changes no rate in the run's 2 epochs"]),
        (["scheduler={name: StepLR, step_size: 1, warmup: 1ep}"],
         ["scheduler: StepLR changes no rate in the run's 1 epoch after the warm-up"]),
        (["scheduler={name: CosineAnnealingLR, warmup: 1ep}", "train.epochs=3"], []),
        (["scheduler={name: PolynomialLR, warmup: 1ep}", "train.epochs=3"], []),
        (["scheduler={name: CosineAnnealingLR, T_max: 2, warmup: 1ep}", "train.epochs=3"],
         ["scheduler.warmup: CosineAnnealingLR begins after the warm-up: its epoch 1 is epoch 2 of "
          "the run"]),
        (["scheduler={name: LinearLR, warmup: 1ep}", "train.epochs=3"],
         ["scheduler.warmup: LinearLR begins after the warm-up: its epoch 1 is epoch 2 of the "
          "run"]),
        (["scheduler={name: CosineAnnealingLR, warmup: 2ep}"],
         ["scheduler.warmup: fills the run: CosineAnnealingLR is not used"]),
        (["loader.batch_size=900", "train.accumulate=900"],
         ["loader.batch_size: is more than the {images} training images: an epoch is one step",
          "train.accumulate: can cut a batch of {images} into {images} parts at most"]),
        (["metrics=[accuracy, top_k]"],
         ["metrics.1: top_k is always 1 with 2 classes; write k: 1"]),
        (["metrics=[accuracy, macro_f1]"],
         ["metrics: each class counts alike in macro_f1, with fewer than 5 images of "
          "'1' (3) and '100' (2) in val and '1' (3) and '100' (2) in test: one image can move it "
          "far"]),
        (["split.pool=true"],
         ["split.pool: has no effect: the dataset has no official test set"]),
        (["train.sync_batch_norm=true"],
         ["train.sync_batch_norm: has no effect: the model has no batch norm"]),
    ],
)  # fmt: skip
def test_what_has_no_effect_in_this_run_is_told(told, config_file, overrides, expected):
    overrides = ["metrics=[accuracy]", "train.epochs=2", *overrides]
    found = told("scheduler=null", *overrides)
    job = prepare(load_config(config_file, overrides), lambda line: None)
    images, steps = len(job.data.subsets["train"]), 2 * len(job.train_loader)
    assert found == [note.format(images=images, steps=steps) for note in expected]


def test_an_average_that_is_never_updated_is_not_introduced(start, tmp_path, capfd):
    assert start("average={name: EMA, every: 10ep}", "train.epochs=1") == 0
    printed = capfd.readouterr().out
    assert (
        "the average is never updated" in printed and "whose weights are evaluated" not in printed
    )
    (result,) = tmp_path.glob("runs/*/*/result.json")
    notes = json.loads(result.read_text())["notes"]
    assert any("average.every" in note for note in notes)


def test_prediction_and_evaluation_tell_that_training_saw_other_images(finished, capsys):
    from trainer.build.trained import load_trained

    run = finished("train.epochs=1", "transforms.train.2.mean=[0.4, 0.4, 0.4]")
    capsys.readouterr()
    for use in (lambda: load_trained(run), lambda: evaluate.main([str(run), "--json"])):
        use()
        (told,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("note    ")]
        assert "Normalize is another one than in transforms.train: val, test and predictio" in told
    load_trained(finished("train.epochs=1"))
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("transform", "key", "count"),
    [
        ("{name: Pad, padding: 1, fill: [0, 0]}", "fill", 2),
        ("{name: Letterbox, size: 32, fill: [0, 0]}", "fill", 2),
        ("{name: RandomCrop, size: 32, padding: 1, fill: [0, 0]}", "fill", 2),
        ("{name: RandomRotation, degrees: 9, fill: [0, 0]}", "fill", 2),
        ("{name: AutoAugment, fill: [0, 0, 0, 0]}", "fill", 4),
        ("{name: RandomErasing, value: [0, 0]}", "value", 2),
        ("{name: RandomApply, transforms: [{name: RandAugment, fill: [0, 0]}]}", "fill", 2),
    ],
)
def test_a_fill_of_the_wrong_length_is_refused_before_training(config_file, transform, key, count):
    with pytest.raises(ConfigError) as told:
        prepare(load_config(config_file, [f"transforms.train.1={transform}"]), lambda line: None)
    (fault,) = told.value.faults
    assert fault.path.startswith("transforms.train.1") and fault.path.endswith(key)
    message = f"has {count} numbers, and the images 3 channels; give one for all"
    assert fault.message == message


@pytest.mark.parametrize("key", ["train.threads", "loader.workers"])
@pytest.mark.parametrize(("count", "message"), [(1025, "to 1,024"), (1024, "at most ")])
def test_more_threads_or_workers_than_a_machine_can_hold_are_refused(
    config_file, monkeypatch, key, count, message
):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(ConfigError, match=message):
        prepare(load_config(config_file, [f"{key}={count}"]), lambda line: None)


def test_a_mean_that_is_one_number_is_left_to_the_check_of_arguments(noted):
    noted("transforms.train.0={name: Normalize, mean: 0.5, std: 0.2}")
