"""Loading is measured on equal batches, in processes of their own, whose use is told exactly."""

import json
import os
import random
import time
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import DataError
from scripts import benchmark_children
from scripts.benchmark import main
from scripts.benchmark_children import Sample, Usage, family, proportional_size, run_python
from scripts.benchmark_photo_arms import (
    LIMITS,
    LOADERS,
    Pixels,
    drive,
    fastest_decoder,
    framework_batches,
)
from scripts.benchmark_photos import config_of_photos, link_photos, make_photos, run_arm
from scripts.benchmark_photos_report import (
    bytes_beyond_pixels,
    copies_held,
    photo_ratios,
    rank_rows,
    start_rows,
)
from scripts.benchmark_report import picture_of_photos, report
from scripts.benchmark_start import config_of_small, make_small, run_once
from trainer.process.errors import RunError

CPU = torch.device("cpu")
MACHINE = {"processor": "a", "torch": "2", "commit": "abc1234"}


def silent(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """72 JPEGs like photographs, of noise."""
    return make_photos(tmp_path_factory.mktemp("photos"), 72, "absent", silent)


def test_photographs_made_on_the_spot_are_jpegs_of_one_size_in_four_classes(photos):
    for part, count in (("train", 72), ("val", 8), ("test", 8)):
        files = sorted((photos / part).glob("*/*.jpg"))
        assert len(files) == count
        classes = [file.parent.name for file in files]
        assert {classes.count(f"class{k}") for k in range(4)} == {count // 4}
        for file in files:
            with Image.open(file) as image:
                assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")


def test_crops_of_given_photographs_are_as_large_and_repeatable(notes, tmp_path):
    one, two = (make_photos(tmp_path / name, 8, str(notes), silent) for name in "ab")
    files = sorted(path.relative_to(one) for path in one.glob("*/*/*"))
    assert len(files) == 8 + 16
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    with Image.open(one / files[0]) as image:
        assert image.size == (500, 375)


def test_own_photographs_are_linked_and_too_few_are_told(photos, tmp_path, capsys):
    linked = link_photos(photos / "train", tmp_path / "linked")
    for part, count in (("train", 72), ("val", 8), ("test", 8)):
        assert sum(file.is_file() for file in (linked / part).glob("*/*")) == count
    with pytest.raises(DataError, match="8 JPEGs in 4 class folders; expected"):
        link_photos(photos / "val", tmp_path / "few")
    absent = str(tmp_path / "absent")
    assert main(["--cases", "photos", "--photos", absent, "--out", str(tmp_path / "out")]) == 3
    assert absent in (told := capsys.readouterr().err) and told.count("\n") == 1


def test_a_step_looks_at_sixteen_pixels_of_each_channel():
    images = torch.rand(2, 3, 224, 224, requires_grad=True)
    Pixels(4, 3)(images).sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).sum().item() == 2 * 3 * 16


def task_of(photos, **values):
    task = {"root": str(photos), "epochs": 1, "batch_size": 8, "workers": 0, "device": "cpu"}
    return {**task, "model": True, "words": ["loader.cache=off", "loader.workers=0"], **values}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm's
def test_all_ways_of_loading_give_batches_of_one_shape_and_distribution(
    photos, tmp_path, monkeypatch
):
    seen: dict[str, list[torch.Tensor]] = {}
    for name in LOADERS:
        if name == "timm":
            pytest.importorskip("timm")
        torch.manual_seed(0)
        random.seed(0)  # of timm's crops
        seen[name] = [images for images, _ in LOADERS[name](task_of(photos))]

    def keep(task, batches):
        seen["framework"] = [images.clone() for images, _ in batches(0)]
        return []

    monkeypatch.setattr("scripts.benchmark_photo_arms.drive", keep)
    config = config_of_photos(photos, CPU, 1)
    config["loader"]["batch_size"] = 8
    config["model"]["name"] = "torchvision/squeezenet1_1"  # Pixels is known in another process
    file = tmp_path / "photos.yaml"
    file.write_text(json.dumps(config))
    framework_batches(task_of(photos), str(file))
    moments = {}
    for name, batches in seen.items():
        assert [tuple(images.shape) for images in batches] == [(8, 3, 224, 224)] * 9, name
        images = torch.cat(batches)
        assert images.dtype == torch.float32
        moments[name] = (images.mean().item(), images.std().item())
    for name, found in moments.items():
        assert found == pytest.approx(moments["tutorial"], abs=0.1), name


@pytest.mark.parametrize("model", [True, False])
def test_an_epoch_takes_every_batch_and_a_step_only_with_a_model(photos, monkeypatch, model):
    steps = []
    forward = Pixels.forward

    def counting(self, images):
        steps.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Pixels, "forward", counting)
    batches = [(torch.rand(8, 3, 224, 224), torch.zeros(8, dtype=torch.int64))] * 3
    epochs = drive(task_of(photos, epochs=2, model=model), lambda _: batches)
    assert len(epochs) == 2 and epochs[0]["ended"] < epochs[1]["ended"]
    assert steps == ([8] * 6 if model else [])


def test_the_limits_decode_and_crop_each_photograph(photos):
    files = sorted(map(str, (photos / "train").glob("*/*")))
    decoder = fastest_decoder(files[:3])
    decoded = LIMITS["decode"](task_of(photos), decoder)(5)
    assert isinstance(decoded, torch.Tensor) and decoded.shape == (3, 375, 500)
    with Image.open(files[5]) as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if decoder == "OpenCV":  # its order is BGR
        expected = expected.flip(0)
    assert (decoded.float() - expected.float()).abs().mean() < 1
    for kind in ("decode and crop", "crop"):
        cropped = LIMITS[kind](task_of(photos), decoder)(5)
        assert isinstance(cropped, torch.Tensor) and cropped.shape == (3, 224, 224)


def test_an_arm_of_the_framework_is_its_own_command_and_a_refused_cache_is_skipped(
    photos, tmp_path
):
    said: list[str] = []
    row = run_arm("framework, ram", True, photos, 2, CPU, tmp_path, said.append)
    assert row is not None and not said
    assert row["images_per_second"] > 0 and row["first_epoch"] > 0
    if Path("/proc/self/smaps_rollup").exists():
        assert row["peak_bytes"] > 72 * 500 * 375 * 3 and row["cpu_seconds_an_image"] > 0
    assert run_arm("framework, nowhere", True, photos, 2, CPU, tmp_path, said.append) is None
    assert len(said) == 1 and "loader.cache=nowhere" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_the_first_step_of_a_start_is_told_by_the_run(tmp_path):
    small = make_small(tmp_path / "small", 200, silent)
    count = len(list(small.glob("*/*/*.jpg")))
    assert count == 10 * (19 + 2 + 2)
    assert len({file.read_bytes() for file in small.rglob("*.jpg")}) == count
    config = tmp_path / "small.yaml"
    config.write_text(json.dumps(config_of_small(small, CPU)))
    before = time.time()
    found = run_once([], [str(config)], tmp_path / "store", tmp_path)
    assert found is not None and 0 < found["seconds"] < time.time() - before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "small.yaml", "store"]


# --- what processes use ---------------------------------------------------------------------------


def fake_process(processes: Path, pid: int, parent: int, ticks: str, pss: int | None) -> None:
    (processes / str(pid)).mkdir(parents=True)
    stat = f"{pid} (a (b) c) S {parent} 1 1 0 -1 0 0 0 0 0 {ticks} 20 0 1"
    (processes / str(pid) / "stat").write_text(stat)
    if pss is not None:
        rollup = f"0-1 ---p 00:00 0 [rollup]\nRss: 999 kB\nPss: {pss} kB\nPss_Anon: 5 kB\n"
        (processes / str(pid) / "smaps_rollup").write_text(rollup)


def test_memory_and_cpu_are_those_of_the_process_and_all_below_it(tmp_path):
    fake_process(tmp_path, 10, 1, "100 50 30 20", 100)
    fake_process(tmp_path, 11, 10, "10 0 0 0", 20)
    fake_process(tmp_path, 12, 11, "0 1 0 0", 3)
    fake_process(tmp_path, 13, 1, "7 7 7 7", 1000)  # of someone else
    ticks = os.sysconf("SC_CLK_TCK")
    found = family(10, tmp_path)
    assert found == {10: 200 / ticks, 11: 10 / ticks, 12: 1 / ticks}
    assert proportional_size(found, tmp_path) == 123 * 1024
    assert proportional_size([99], tmp_path) is None
    assert family(99, tmp_path) == {}


def test_use_between_moments_is_that_of_the_samples():
    usage = Usage([Sample(1, 10, 0.0), Sample(2, 50, 4.0), Sample(3, 20, 5.0), Sample(4, 30, 6.0)])
    assert usage.peak() == 50
    assert usage.cpu_between(1.5, 3.5) == 5.5 - 2.0
    assert usage.cpu_between(3, 99) == 1.0
    unknown = Usage([Sample(1, None, 0.0), Sample(2, None, 1.0)])
    assert unknown.peak() is None
    assert Usage().cpu_between(0, 1) is None


def test_a_process_is_measured_and_its_output_kept(tmp_path):
    program = "import os, time; held = bytes(2**26); print(os.environ['TRAINER_STORE'])"
    ran = run_python(["-c", f"{program}; time.sleep(1); raise SystemExit(3)"], tmp_path, Path("s"))
    assert (ran.code, ran.said.strip()) == (3, "s")
    with pytest.raises(RunError, match="exit code 3\ns"):
        ran.require_done()


def test_an_interruption_ends_the_process_too(tmp_path, monkeypatch):
    pids: list[int] = []

    @contextmanager
    def interrupted(pid, usage):
        pids.append(pid)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(benchmark_children, "watched", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_python(["-c", "import time; time.sleep(60)"], tmp_path, tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


# --- tables ---------------------------------------------------------------------------------------


def row(block, speed, first=10.0, peak: int | None = 2**20):
    return {
        "block": block,
        "images_per_second": speed,
        "first_epoch": first,
        "seconds_to_the_end_of_epoch_1": 1.5,
        "cpu_seconds_an_image": 0.002 if peak else None,
        "peak_bytes": peak,
    }


def test_ratios_are_taken_within_a_block_and_unknown_memory_is_told():
    arms = {
        "tutorial": [row(0, 100.0), row(1, 10.0)],
        "decode, PIL": [row(0, 90.0), row(1, 9.0)],
        "framework, ram": [row(0, 300.0), row(1, 20.0, peak=None)],
    }
    assert photo_ratios(arms)["framework, ram"] == [3.0, 2.0]
    found = {"photographs": 72, "bytes": 84_000, "with a step": arms, "batches only": arms}
    results = {"machine": MACHINE, "photos": found}
    lines = [line for line in report(results).splitlines() if line.startswith("| ")]
    names = [line.split(" |")[0].strip("| ") for line in lines[2:5]]
    assert names == ["decode, PIL", "framework, ram", "tutorial"]
    assert "| 2.50 " in lines[3] and "| 2.00 to 3.00 " in lines[3] and "| 2.00  " in lines[3]
    root = ElementTree.fromstring(picture_of_photos(results))
    widths = [float(bar.attrib["width"]) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths == [400.0, 160.0, 144.0]
    line = next(root.iter("{http://www.w3.org/2000/svg}line"))
    assert float(line.attrib["x1"]) == 190 + 160


def began(seconds: float, peak: int | None) -> dict[str, float | None]:
    return {"seconds": seconds, "peak_bytes": peak}


def test_memory_beyond_pixels_and_copies_of_them_are_differences_to_a_few_pictures():
    start = {"data": "d", "cache": "auto", "files": 100, "more_pixels": 5000}
    start |= {"few": [began(2.0, 1000)] * 2, "all": [began(5.0, 16_000), began(2.5, None)]}
    assert bytes_beyond_pixels(start, 0) == 100.0
    first, second = start_rows([start])
    assert first == ["d", "auto", "first", "5.00", "2.00", "3.00", "100"]
    assert second[5:] == ["0.50", "unknown"]
    ranks = {"ranks": 4, "cache": "ram", "pixels, few": 100, "pixels, all": 1100}
    ranks |= {"few": began(2.0, 500), "all": began(3.0, 4500)}
    assert copies_held(ranks) == 4.0
    assert rank_rows([ranks])[0][-1] == "4.00"
