"""Several processes train as one: the same samples, the same numbers, and an end that all share."""

import functools
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import Future

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch._C._distributed_c10d import HashStore

from datasets import DataError
from tests.conftest import exit_code_of, fork, train_together
from trainer.distributed import processes
from trainer.distributed.processes import rank as own_rank
from trainer.distributed.processes import world_size
from trainer.distributed.shares import share_of
from trainer.run.checkpoint import checkpoints, read_state
from trainer.run.disk import read_json
from trainer.run.folder import read_metrics

ODD = ("loader.batch_size=9", "loader.eval_batch_size=2")  # 40 = 4 x 9 + 4 images; 5 to judge


def only_run(tmp_path, runs="together"):
    (run,) = (tmp_path / runs / "small").iterdir()
    return run


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:12]


def traced(folder):
    """Have each process write down what it trains on: a line a step, with a digest an image."""

    def prepare(rank):
        step_module = importlib.import_module("trainer.loop.step")
        choose, lines = step_module.choose_micro_batches, folder / f"trace-{rank}.jsonl"

        def choose_micro_batches(*arguments):
            chosen, batch_size_at = choose(*arguments), arguments[-1]

            def micro_batches(step, images, labels):
                whole = batch_size_at(step) if batch_size_at else len(images)
                low, high = share_of(whole, own_rank(), world_size())
                seen = [digest(image) for image in images[: high - low]]
                with lines.open("a") as file:
                    file.write(json.dumps([seen, labels[: high - low].tolist()]) + "\n")
                return chosen(step, images, labels)

            return micro_batches

        setattr(step_module, "choose_micro_batches", choose_micro_batches)  # noqa: B010

    folder.mkdir()
    return prepare


def trace(folder):
    """What all processes together trained on: for each step, every image's digest and label."""
    files = [path.read_text().splitlines() for path in sorted(folder.iterdir())]
    steps = [[json.loads(line) for line in lines] for lines in zip(*files, strict=True)]
    return [[sum((share[i] for share in shares), []) for i in (0, 1)] for shares in steps]


def close(one, other, tolerance=1e-4):
    """Whether two runs tell the same numbers, line by line."""
    assert len(one) == len(other)
    for line, same in zip(one, other, strict=True):
        assert line.keys() == same.keys()
        for name, value in line.items():
            assert same[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


@pytest.fixture(scope="module")
def undisturbed(shared_config, tmp_path_factory):
    """The run of so many processes that nothing disturbs, and its trace: each is made once."""

    @functools.cache
    def made(count, *more):
        folder = tmp_path_factory.mktemp("undisturbed")
        argv = ["--config", str(shared_config), "--runs", str(folder / "together"), *more]
        prepare = traced(folder / "trace")
        assert train_together(count, argv, folder, prepare) == [0] * count
        return only_run(folder), trace(folder / "trace")

    return made


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_on_what_one_does_and_come_to_the_same(undisturbed, count):
    (alone, one), (shared, several) = undisturbed(1, *ODD), undisturbed(count, *ODD)
    assert one == several
    close(read_metrics(alone / "metrics.jsonl"), read_metrics(shared / "metrics.jsonl"))
    result, same = read_json(alone / "result.json"), read_json(shared / "result.json")
    close([result["test"]], [same["test"]])
    weights, others = torch.load(alone / "model.pt"), torch.load(shared / "model.pt")
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-4, atol=1e-5)


def test_each_cache_gives_any_number_of_processes_the_same_batches(undisturbed):
    """Transforms that prepare train and val otherwise, so the store has a pool of each."""
    crop = "{name: RandomCrop, size: 20, pad_if_needed: true}, {name: Resize, size: [32, 32]}"
    words = (*ODD, f"transforms.train=[{crop}]", "train.epochs=1", "log.show=[scalars]")
    traces = [
        undisturbed(count, *words, f"loader.cache={cache}")[1]
        for count, cache in ((1, "ram"), (2, "ram"), (1, "off"), (2, "off"), (2, "store"))
    ]
    assert all(trace == traces[0] for trace in traces)


@given(st.integers(1, 400), st.integers(1, 9))
def test_shares_of_a_batch_are_all_of_it_once_and_of_equal_size(count, processes):
    shares = [share_of(count, process, processes) for process in range(processes)]
    assert [row for low, high in shares for row in range(low, high)] == list(range(count))
    sizes = [high - low for low, high in shares]
    assert max(sizes) - min(sizes) <= 1


def at_step(number, rank, strike):
    """Have process ``rank`` be struck as its step ``number`` (from 1) begins."""

    def prepare(own):
        import trainer.distributed.micro_batches

        if own != rank:
            return
        before, steps = trainer.distributed.micro_batches.reseed, iter(range(1, 10**6))

        def reseed(*arguments):
            if next(steps) == number:
                strike()
            before(*arguments)

        trainer.distributed.micro_batches.reseed = reseed

    return prepare


def send(number):
    return lambda: os.kill(os.getpid(), number)


def equal_runs(one, other):
    for name in ("metrics.jsonl", "model.pt", "predictions.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("count", [2, 4])
def test_a_split_is_judged_exactly_as_by_one_process(undisturbed, count):
    """Weights that do not move, and 5 images in batches of 2: some processes have fewer."""
    still = (*ODD, "optimizer.lr=1e-30", "train.epochs=1")
    (alone, _), (shared, _) = undisturbed(1, *still), undisturbed(count, *still)
    judged, same = (
        {k: v for k, v in read_metrics(run / "metrics.jsonl")[-1].items() if k.startswith("val/")}
        for run in (alone, shared)
    )
    assert same == judged
    assert read_json(shared / "result.json")["test"] == read_json(alone / "result.json")["test"]
    tables = [(run / "predictions.csv").read_bytes() for run in (alone, shared)]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_process_saves_and_stops_all(together, undisturbed, tmp_path, rank):
    codes = together(2, prepare=at_step(3, rank, send(signal.SIGTERM)))
    assert codes == [75, 75]
    run = only_run(tmp_path)
    assert read_json(run / "result.json")["status"] == "stopped"
    saved = read_state(checkpoints(run)[-1])["counters"]["step"]
    assert saved in (3, 4)  # the others hear of it in their next step
    assert together(2, resume=run) == [0, 0]
    equal_runs(run, undisturbed(2)[0])


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_left_of_a_run_whose_process_is_killed_goes_on_to_the_same_bits(
    together, undisturbed, tmp_path, rank
):
    often = "checkpoint.every=2st"
    codes = together(2, often, prepare=at_step(8, rank, send(signal.SIGKILL)))
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 6
    said = (tmp_path / f"rank-{1 - rank}.txt").read_text()
    assert "Traceback" not in said
    assert ("one was killed" in said) == (rank == 1)  # rank 0 speaks
    run = only_run(tmp_path)
    assert together(2, resume=run) == [0, 0]
    equal_runs(run, undisturbed(2, often)[0])


@pytest.mark.parametrize("count", [1, 4])
def test_a_checkpoint_of_two_processes_goes_on_at_another_number_on_the_same_samples(
    together, undisturbed, tmp_path, count
):
    whole, steps = undisturbed(2, *ODD)
    assert together(2, *ODD, prepare=at_step(4, 1, send(signal.SIGTERM))) == [75, 75]
    run, rest = only_run(tmp_path), tmp_path / "trace-rest"
    done = read_state(checkpoints(run)[-1])["counters"]["step"]
    assert together(count, resume=run, prepare=traced(rest)) == [0] * count
    assert trace(rest) == steps[done:]
    close(read_metrics(run / "metrics.jsonl"), read_metrics(whole / "metrics.jsonl"))


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_process_fails_with_is_told_first_and_ends_all_with_6(together, tmp_path, rank):
    def strike():
        raise DataError("note-7.jpg is gone.")

    assert together(2, prepare=at_step(3, rank, strike)) == [6, 6]
    own, other = ((tmp_path / f"rank-{r}.txt").read_text() for r in (rank, 1 - rank))
    assert f"rank {rank} failed: note-7.jpg is gone." in own and "Traceback" not in own + other
    assert "to go on, once it is repaired:" in own
    if rank == 1:  # rank 0 speaks, and keeps it
        assert "the other processes ended: rank 1 failed: note-7.jpg is gone." in other
    assert "note-7.jpg is gone." in read_json(only_run(tmp_path) / "result.json")["reason"]


def test_a_fault_of_one_process_alone_comes_with_its_traceback(together, tmp_path):
    fault = at_step(2, 1, lambda: read_json(None))  # type: ignore[arg-type]
    assert together(2, prepare=fault) == [6, 6]
    assert "Traceback" in (tmp_path / "rank-1.txt").read_text()


@pytest.mark.parametrize(
    ("override", "code", "told"),
    [
        ("optimizer.lrr=1", 2, "unknown key 'lrr'"),
        ("optimizer.lr=-1", 2, "expected a number of at least 0, got -1"),
        ("dataset.root=nowhere", 3, "nowhere"),
        ("optimizer.lr=1e30", 4, "train.skip_non_finite"),
    ],
)
def test_what_all_fail_with_is_told_once_with_its_own_code(
    together, tmp_path, override, code, told
):
    assert together(2, override) == [code, code]
    assert told in (tmp_path / "rank-0.txt").read_text()
    said = (tmp_path / "rank-1.txt").read_text()
    assert told not in said and "Traceback" not in said


def test_a_batch_of_fewer_images_than_processes_counts_each_once(undisturbed):
    """The last batch has one image of 40: of three processes, two have none."""
    last = ("loader.batch_size=13", "train.epochs=1", "log.every=1st")
    (alone, _), (shared, _) = undisturbed(1, *last), undisturbed(3, *last)
    close(read_metrics(alone / "metrics.jsonl"), read_metrics(shared / "metrics.jsonl"), 1e-5)


def test_parts_of_shares_and_mixed_samples_add_up_to_the_whole_batch(undisturbed):
    crop = "{name: RandomCrop, size: 32, padding: 4}, {name: Normalize, mean: [0.5], std: [0.2]}"
    mixed = (
        *("train.accumulate=2", "loader.cache=off"),
        f"transforms.train=[{{name: Resize, size: [32, 32]}}, {crop}, MixUp]",
    )
    (one, steps), (other, same) = undisturbed(1, *ODD, *mixed), undisturbed(3, *ODD, *mixed)
    assert steps == same
    close(read_metrics(one / "metrics.jsonl"), read_metrics(other / "metrics.jsonl"))


def test_a_rank_of_a_restart_finds_nothing_that_the_start_before_it_left(monkeypatch):
    """torchrun keeps its store; in it a rank that comes first would read a dead one's address."""
    store, found = HashStore(), []
    monkeypatch.setattr(processes._Ways, "store", None)

    def who():
        start, rank = threading.current_thread().name.split()
        return start, int(rank)

    def connect(backend, store, rank, world_size):
        start, _ = who()
        if rank == 0:
            time.sleep(0.1)  # rank 1 looks before rank 0 writes
            store.set("address", start)
        found.append((start, rank, store.get("address").decode()))

    monkeypatch.setattr(dist, "init_process_group", connect)

    def rendezvous(_):
        yield store, who()[1], 2

    monkeypatch.setattr(processes, "rendezvous", rendezvous)
    for start in ("first", "second"):
        meetings: list[Future[None]] = [Future(), Future()]
        for rank in (1, 0):
            arguments, name = (False, meetings[rank]), f"{start} {rank}"
            thread = threading.Thread(target=processes.meet, args=arguments, name=name, daemon=True)
            thread.start()
            time.sleep(0.1)
        for meeting in meetings:
            meeting.result(timeout=30)
    assert sorted(found) == [(start, n, start) for start in ("first", "second") for n in (0, 1)]


def kill_twice():
    """Have rank 1 be killed in torchrun's first start, and rank 0 in its second."""
    import trainer.distributed.micro_batches

    struck = {"0": ("1", 5), "1": ("0", 4)}
    rank, number = struck.get(os.environ["TORCHELASTIC_RESTART_COUNT"], ("", 0))
    before, steps = trainer.distributed.micro_batches.reseed, iter(range(1, 10**6))

    def reseed(*arguments):
        if os.environ["RANK"] == rank and next(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        before(*arguments)

    trainer.distributed.micro_batches.reseed = reseed


def command_killed_twice(argv):
    """The command in a process of torchrun's."""
    from trainer.train import main

    torch.set_num_threads(1)
    kill_twice()
    if code := main(argv):
        os._exit(code)


def torchrun_of_forks(argv):
    """What torchrun does, with forks of this process as its own: none imports PyTorch again."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    warnings.simplefilter("ignore")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="forks",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=2,
        start_method="fork",
    )
    elastic_launch(config, command_killed_twice)(argv)
    return 0


@pytest.fixture(params=["forks", pytest.param("command", marks=pytest.mark.slow)])
def torchrun(request, tmp_path):
    """Start the command, killed twice, by torchrun; the exit code, and all that was said."""

    def forks(argv):
        output = tmp_path / "torchrun.txt"
        code = exit_code_of(fork(output, functools.partial(torchrun_of_forks, argv)), 200)
        return code, output.read_text()

    def command(argv):
        script = tmp_path / "killed_twice.py"
        script.write_text(
            "import sys\nfrom tests.test_distributed import kill_twice\n"
            "from trainer.train import main\nkill_twice()\nsys.exit(main())\n"
        )
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        torchrun += ["--max-restarts", "2", "--nproc-per-node", "2", str(script), *argv]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
        done = subprocess.run(
            torchrun, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True, timeout=200
        )
        return done.returncode, done.stdout

    return {"forks": forks, "command": command}[request.param]


def test_torchrun_starts_killed_processes_again_and_they_come_to_the_same_bits(
    torchrun, undisturbed, config_file, tmp_path
):
    often, runs = "checkpoint.every=2st", str(tmp_path / "torchrun")
    code, told = torchrun(["--config", str(config_file), "--runs", runs, often])
    assert code == 0, told[-3000:]
    assert told.count("exitcode: -9") == 2
    assert told.count("torchrun started its processes again") == 2
    equal_runs(only_run(tmp_path, "torchrun"), undisturbed(2, often)[0])
