"""Gives every argument of every component wrong and extreme values, and looks for bad ends.

    python -m tests.fuzz                      # all components and settings; hours on two cores
    python -m tests.fuzz --kind transform     # one kind
    python -m tests.fuzz --kind timm --every 20 --results fuzz.jsonl

Stage 1 checks the file of each case as a run does before it reads data. Stage 2 trains one epoch of
each file that the check accepts. A good end is a finished run, or a message with an exit code.
Exit code 70, a traceback, a signal, and a child that exceeds its time or its processes are bad.
``--results`` keeps each outcome in a file; the same command goes on where it was stopped.
"""

import argparse
import contextlib
import inspect
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import yaml
from PIL import Image
from torch import nn
from tqdm import tqdm

from models.arguments import BUILDER_ARGUMENTS
from models.external import RESERVED
from trainer import train
from trainer.build.prepare import require_good_components
from trainer.config import load_config
from trainer.config.components import (
    NESTING,
    SECTIONS,
    TABLES,
    component_key,
    full_schema,
    published,
)
from trainer.config.config import Config
from trainer.process.exits import Exit, exit_code_of
from transforms import MIXING, RANDOM

WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 0.5, 100_000, 1e30, float("nan"), "word", [], [0, -3], {"key": 1},
)  # fmt: skip
WRONG_LISTS: tuple[Any, ...] = (
    [1, 2], [-1, -1], [0, 0], [0.5] * 5, [100_000, 100_000], [1e30, 1e30], [[1]], ["word"], [None],
)  # fmt: skip
NEEDED: dict[str, Any] = {  # what a component requires, by argument
    "size": 32,
    "padding": 1,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "degrees": 10,
    "kernel_size": 3,
    "dtype": "float32",
    "transforms": [{"name": "RandomHorizontalFlip"}],
    "transformation_matrix": [[1.0, 0.0], [0.0, 1.0]],
    "mean_vector": [0.0, 0.0],
    "step_size": 1,
    "milestones": [1],
    "gamma": 0.9,
    "start": "1ep",
}
KINDS = (*TABLES, "settings", "torchvision", "timm")
GOOD_ENDS = (Exit.DONE, Exit.CONFIG, Exit.DATA, Exit.NON_FINITE, Exit.MEMORY)
SECONDS = {"check": 30, "epoch": 90}
MEMORY = 8 << 30  # bytes of data of a child
PROCESSES = 40  # of a child, with its workers
_OF_TRAINING = {**RANDOM, **MIXING, **dict.fromkeys(NESTING)}


class _Repeating(yaml.SafeDumper):
    """Writes a value again where YAML would refer to it, which a configuration must not do."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class Case(NamedTuple):
    """A file's content in which ``argument`` of ``component`` has a wrong or extreme value."""

    kind: str
    component: str
    argument: str
    value: Any
    content: dict[str, Any]

    @property
    def key(self) -> str:
        """One line that names the case."""
        return f"{self.kind} {self.component} {self.argument}={json.dumps(self.value)}"


def base(data: Path, size: int = 32) -> dict[str, Any]:
    """A file that trains on the pictures of ``data``."""
    resize = {"name": "Resize", "size": [size, size]}
    return {
        "name": "fuzz",
        "dataset": {"name": "ImageFolder", "root": str(data / "pictures")},
        "split": {"ratios": [2, 1, 1]},
        "transforms": {"train": [resize], "eval": [resize]},
        "loader": {"batch_size": 4, "workers": 0},
        "model": {"name": "MLP"},  # it takes every size
        "optimizer": {"name": "SGD", "lr": 0.01},
        "train": {"epochs": 1, "device": "cpu"},
    }


def cases(data: Path, kinds: Sequence[str]) -> Iterator[Case]:
    """Every case of ``kinds``, which are among KINDS."""
    for kind in kinds:
        if kind in TABLES:
            for name in TABLES[kind]:
                if not name.endswith("/"):  # a family: torchvision and timm are kinds of their own
                    yield from _of_component(data, kind, name)
        elif kind == "settings":
            yield from _of_settings(data)
        else:
            yield from _of_library(data, kind)


def _of_component(data: Path, kind: str, name: str) -> Iterator[Case]:
    schema = published()[component_key(kind, name)]
    for argument in schema["properties"]:
        if argument in ("name", "arguments"):
            continue
        for value in _values(schema["properties"][argument]):
            component: dict[str, Any] = {"name": name}
            also = ["root", "csv"] if name == "CSVImages" else []
            for required in [*schema["required"], *also]:
                if required != "name":
                    component[required] = _needed(data, name, required)
            component[argument] = value
            yield Case(kind, name, argument, value, _with_component(data, kind, component))


def _values(schema: Any) -> tuple[Any, ...]:
    """Wrong and extreme values for an argument; lists too, where it may be a list."""
    return (*WRONG, *WRONG_LISTS) if '"array"' in json.dumps(schema) else WRONG


def _needed(data: Path, name: str, argument: str) -> Any:
    folder = {"Shards": "shards", "RMB": "rmb"}.get(name, "pictures")
    files = {"root": str(data / folder), "csv": str(data / "pictures.csv")}
    return files.get(argument) or NEEDED[argument]


def _with_component(data: Path, kind: str, component: dict[str, Any]) -> dict[str, Any]:
    content = base(data)
    if kind == "transform":
        sides = ("train",) if component["name"] in _OF_TRAINING else ("train", "eval")
        for side in sides:
            content["transforms"][side] = [*content["transforms"][side], component]
    elif kind == "metric":
        content["metrics"] = [component]
    else:
        content[kind] = component
    return content


def _of_settings(data: Path) -> Iterator[Case]:
    schema = full_schema(Config.model_json_schema(), published())
    for section, described in schema["properties"].items():
        reference = described.get("$ref") or next(
            (one["$ref"] for one in described.get("anyOf", ()) if "$ref" in one), ""
        )
        inner = schema["$defs"].get(reference.rpartition("/")[2], {})
        component = section in SECTIONS and section != "transforms"
        keys = [] if component else list(inner.get("properties", {}))
        for key in keys or [""]:
            for value in _values(inner["properties"][key] if key else described):
                content = base(data)
                if key:
                    content[section] = {**content.get(section, {}), key: value}
                else:
                    content[section] = value
                yield Case("settings", section, key, value, content)


def _of_library(data: Path, library: str) -> Iterator[Case]:
    for name, arguments, size in _torchvision_models() if library == "torchvision" else _timm():
        for argument in arguments:
            for value in WRONG:
                content = base(data, size)
                content["model"] = {"name": f"{library}/{name}", argument: value}
                yield Case(library, name, argument, value, content)


def _torchvision_models() -> Iterator[tuple[str, list[str], int]]:
    """(name, arguments, image size) of the first model of each class of torchvision."""
    import torchvision

    seen = set[type[nn.Module]]()
    for name in torchvision.models.list_models(module=torchvision.models):
        model = _without_memory(torchvision.models.get_model, name)
        if model is not None and type(model) not in seen:
            seen.add(type(model))
            known = [*inspect.signature(type(model)).parameters, *BUILDER_ARGUMENTS]
            yield name, [word for word in known if word not in RESERVED], 224


def smallest_of_each_module() -> dict[str, str]:
    """The model of fewest parameters of each module of timm; takes two minutes."""
    import timm

    found: dict[str, str] = {}
    for module in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=module):
            model = _without_memory(timm.create_model, name)
            if model is not None:
                sizes[name] = sum(parameter.numel() for parameter in model.parameters())
        if sizes:
            found[module] = min(sizes, key=sizes.__getitem__)
    return found


def _timm() -> Iterator[tuple[str, list[str], int]]:
    import timm

    for name in smallest_of_each_module().values():
        model = _without_memory(timm.create_model, name)
        size = timm.get_pretrained_cfg(name)
        known = inspect.signature(type(model)).parameters
        arguments = [word for word in known if word not in RESERVED | {"kwargs", "cfg"}]
        yield name, [*arguments, "drop_path_rate"], size.input_size[-1] if size else 224


def _without_memory(make: Callable[[str], nn.Module], name: str) -> nn.Module | None:
    with warnings.catch_warnings(action="ignore"), torch.device("meta"):
        try:
            return make(name)
        except (NotImplementedError, RuntimeError):  # it computes with its weights
            return None


def make_data(folder: Path) -> None:
    """Two classes of eight small pictures, as class folders, as a CSV file and as notes."""
    rows = ["path,label"]
    for label, name in enumerate(("1", "100")):
        for root in ("pictures", "rmb"):
            (folder / root / name).mkdir(parents=True)
        for number in range(8):
            colour = (200 * label, 20 * number, 90)
            for root in ("pictures", "rmb"):
                picture = Image.new("RGB", (40 + number, 36), colour)
                picture.save(folder / root / name / f"{number}.png")
            rows.append(f"{name}/{number}.png,{name}")
    (folder / "pictures.csv").write_text("\n".join(rows) + "\n")


def check(file: Path) -> int:
    """The exit code of the check before data is read."""
    return exit_code_of(lambda: require_good_components(load_config(file)))


def epoch(file: Path) -> int:
    """The exit code of a run of one epoch."""
    runs = str(file.parent / "runs")
    return train.main(["--config", str(file), "--runs", runs, "train.epochs=1"])


def outcome(work: Callable[[Path], int], case: Case, folder: Path) -> tuple[str, str]:
    """How a child ends that does ``work`` on a case: "exit 2", "signal 11"..., and its output."""
    folder.mkdir()
    file, output = folder / "fuzz.yaml", folder / "output.txt"
    file.write_text(yaml.dump(case.content, Dumper=_Repeating))
    child = os.fork()
    if child == 0:
        os._exit(_in_child(work, file, output))
    status, reason = _wait(child, SECONDS[work.__name__])
    said = output.read_text(errors="replace") if output.exists() else ""
    if reason is None and os.WIFSIGNALED(status):
        reason = f"signal {os.WTERMSIG(status)}"
    elif reason is None and "Traceback (most recent" in said:
        reason = "traceback"
    return reason or f"exit {os.WEXITSTATUS(status)}", said


def _in_child(work: Callable[[Path], int], file: Path, output: Path) -> int:
    os.setsid()
    os.chdir(file.parent)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    torch.set_num_threads(1)
    code = 1
    try:
        code = work(file)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _wait(child: int, seconds: float) -> tuple[int, str | None]:
    """The wait status of a child, and why it was killed; its processes end with it."""
    until, reason = time.monotonic() + seconds, None
    pidfd = os.pidfd_open(child)
    while reason is None and not select.select([pidfd], [], [], 0.25)[0]:
        if time.monotonic() > until:
            reason = f"hung for {seconds} s"
        elif _processes_of(child) > PROCESSES:
            reason = f"more than {PROCESSES} processes"
    os.close(pidfd)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1], reason


def _processes_of(session: int) -> int:
    found = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found += int(status.read_text().rpartition(")")[2].split()[3]) == session
    return found


def run(kinds: Sequence[str], every: int, results: Path | None) -> list[str]:
    """The bad ends; prints a table of all ends."""
    known: dict[str, list[str]] = {}
    if results is not None and results.exists():
        known = dict(json.loads(line) for line in results.read_text().splitlines())
    bad = []
    with TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        make_data(folder)
        record = stack.enter_context(open(results or os.devnull, "a", buffering=1))
        plain = Case("plain", "", "", None, base(folder))
        if (found := try_case(plain, folder / "plain"))[1] != "exit 0":
            raise SystemExit(f"the file without a wrong value fails: {found}")
        chosen = list(cases(folder, kinds))
        chosen = random.Random(0).sample(chosen, len(chosen) // every)
        for number, case in enumerate(tqdm(chosen, unit="case", mininterval=5)):
            if case.key not in known:
                known[case.key] = try_case(case, folder / str(number))
                record.write(json.dumps([case.key, known[case.key]]) + "\n")
        ends = {case.key: known[case.key] for case in chosen}
    for kind in kinds:
        of_kind = [found for key, found in ends.items() if key.startswith(f"{kind} ")]
        counts = Counter(f"{stage} {end}" for stage, end, _ in of_kind)
        print(f"{kind}: {len(of_kind)} cases; {dict(sorted(counts.items()))}")
    good = {f"exit {int(code)}" for code in GOOD_ENDS}
    for key, (stage, end, said) in ends.items():
        if end not in good:
            bad.append(f"{key}: {stage}: {end}\n{said}")
    return bad


def try_case(case: Case, folder: Path) -> list[str]:
    """The last stage, its end, and the last lines of what the child said."""
    for work in (check, epoch):
        end, said = outcome(work, case, folder.with_suffix(f".{work.__name__}"))
        if end != "exit 0":
            break
    shutil.rmtree(folder.with_suffix(".check"), ignore_errors=True)
    shutil.rmtree(folder.with_suffix(".epoch"), ignore_errors=True)
    return [work.__name__, end, "\n".join(said.splitlines()[-8:])]


def main(argv: Sequence[str] | None = None) -> int:
    """Try the cases that the command line chooses; exit code 1 if any of them ends badly."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--every", type=int, default=1, help="try one of N cases, chosen at random")
    parser.add_argument("--results", type=Path, help="keep the outcomes here, and go on from them")
    arguments = parser.parse_args(argv)
    bad = run(arguments.kind, arguments.every, arguments.results)
    print(*bad, f"{len(bad)} bad ends", sep="\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
