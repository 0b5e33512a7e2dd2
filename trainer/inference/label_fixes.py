"""Labels that are likely wrong, as a table to tick, and the ticks as a file of fixes."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets import DataError
from datasets.csv_table import Table
from datasets.files import user_path
from datasets.fixes import LEAVE_OUT, rows_of_fixes
from datasets.split import PARTS
from datasets.words import counted
from trainer.comparing.predictions import SEPARATOR
from trainer.config import Config, load_config
from trainer.config.settings import SplitSettings
from trainer.process.errors import RunError, UsageError
from trainer.process.words import suggestion, visible
from trainer.run.disk import MAX_SPLIT, read_json, sha256_of, write_file
from trainer.run.resume import config_for_use

CANDIDATES = "candidates.csv"
SHOWN_FAULTS = 10
NOT_TICKED = {"", "0", "no", "false", "n", "-"}
FIX_COLUMNS = ("sha256", "label")  # that each file of fixes has
OF_PEOPLE = ("id", "note")  # columns that are added, for people
CANDIDATE_COLUMNS = (
    *("tick", "label", "given", "likely", "score", "p_given", "p_likely", "part", "id", "sha256"),
)


@dataclass(frozen=True)
class FoldRuns:
    """The runs of a sweep's trial, one for each fold, and what they have in common.

    config and split: those of the first one. overrides: what the command line changes in each.
    base_split: that of the experiment, without the sweep's folds. held_out: the part that a fold's
    model did not see, and that no other fold holds: "test", or "val" where the data has a test set.
    fold_of: the fold that holds a sample out, by its id. digest_of: SHA-256 by id, of all samples.
    several: whether an image may have several labels.
    """

    sweep: Path
    trial: int
    runs: dict[int, Path]
    config: Config
    overrides: tuple[str, ...]
    base_split: SplitSettings
    split: dict[str, Any]
    held_out: str
    fold_of: dict[str, int]
    digest_of: dict[str, str]
    classes: tuple[str, ...]
    several: bool


class Candidate(NamedTuple):
    """A label that is likely wrong. score: how likely it is right, from 0 to 1.

    given, likely: class names, with ";" between several. chances: the model's probability of each;
    None where an image may have several. part: of the experiment without folds. fold: whose model
    judged; None for the mean of all. likeliest: classes and their probabilities, the largest first.
    """

    digest: str
    id: str
    part: str
    fold: int | None
    given: str
    likely: str
    score: float
    chances: tuple[float, float] | None
    likeliest: tuple[tuple[str, float], ...]


def find_fold_runs(text: str, trial: int | None, overrides: Sequence[str]) -> FoldRuns:
    """The runs of a sweep's trial, by default of its best one.

    Raises UsageError for what is no sweep over folds, RunError if one of its runs is missing, not
    done or damaged, DataError if the split goes by names.
    """
    folder = Path(text)
    if not (folder / "plan.json").is_file():
        raise UsageError(
            f"{text} is no sweep's folder. Labels are judged by models that did not see them: make "
            "some by python -m trainer.sweep --config FILE, with 'folds: 5' in its section sweep."
        )
    number, runs = _runs_of_folds(folder, trial)
    splits = {fold: read_json(run / "split.json", MAX_SPLIT) for fold, run in runs.items()}
    first = min(runs)
    card = read_json(runs[first] / "model.json")
    try:
        tests = [{*split["test"]} for split in splits.values()]
        held_out = "val" if len(tests) > 1 and tests[0] == tests[1] else "test"
        fold_of = {name: fold for fold, split in splits.items() for name in split[held_out]}
        digest_of = {k: v for part in PARTS for k, v in splits[first][part].items()}
        classes, several = tuple(card["classes"]), card.get("thresholds") is not None
    except (LookupError, TypeError):
        raise RunError(f"a run of {text} is damaged: its split.json or model.json.") from None
    if any(digest.endswith(" bytes") for digest in digest_of.values()):
        raise DataError(f"{text} is split by name (split.by), and fixes need the files' content.")
    if LEAVE_OUT in classes:
        raise DataError(f"a class has the name {LEAVE_OUT!r}, which fixes need; rename it.")
    config = config_for_use(runs[first], overrides)
    return FoldRuns(
        folder,
        number,
        runs,
        config,
        tuple(overrides),
        load_config(folder / "base.yaml").split,
        splits[first],
        held_out,
        fold_of,
        digest_of,
        classes,
        several,
    )


def _runs_of_folds(folder: Path, trial: int | None) -> tuple[int, dict[int, Path]]:
    """The number of a trial, and its runs of the first seed by their folds, in order."""
    number, ends = _ends_of(folder, trial)
    runs: dict[int, Path] = {}
    for end in ends:
        if end["fold"] is None:
            raise UsageError(
                f"{folder} is a sweep without folds, so each model has seen most of the labels. "
                "Write 'folds: 5' in its section sweep, under another name."
            )
        run = folder / str(end["run"])
        if end["status"] != "done" or not run.is_dir():
            what = "lies elsewhere" if end["status"] == "done" else f"is {end['status']}"
            raise RunError(f"{run} {what}, and every fold is needed; run the sweep again.")
        if end["seed"] == ends[0]["seed"]:
            runs[end["fold"]] = run
    return number, dict(sorted(runs.items()))


def _ends_of(folder: Path, wanted: int | None) -> tuple[int, list[dict[str, Any]]]:
    """The number of a trial, and its runs as sweep.json has them."""
    results = read_json(folder / "sweep.json")
    try:
        number = results["best"] if wanted is None else wanted
        if number is None:
            raise RunError(f"no trial of {folder} is done yet.")
        found = [trial["runs"] for trial in results["trials"] if trial["trial"] == number]
        if not found or not found[0]:
            raise UsageError(f"--trial {number}: {folder} has no such trial with runs.")
        ends = [{key: end[key] for key in ("seed", "fold", "status", "run")} for end in found[0]]
    except (LookupError, TypeError):
        raise RunError(f"{folder / 'sweep.json'} is damaged; run the sweep again.") from None
    return int(number), ends


def old_fixes(folds: FoldRuns) -> list[dict[str, str]]:
    """The rows of the fixes that the runs were trained with. Raises DataError if they changed."""
    file = folds.config.dataset.trainer_arguments.get("fixes")
    if file is None:
        return []
    path = user_path(file, "dataset.fixes")
    if not path.is_file() or sha256_of(path) != folds.split.get("fixes"):
        what = "has changed since the sweep" if path.is_file() else "is not there"
        raise DataError(
            f"dataset.fixes: {path} {what}, and the new file holds its rows too. Bring it back, or "
            "name its place: dataset.fixes=..."
        )
    return rows_of_fixes(path)


def header_of_fixes(old: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns of a new file of fixes, which holds ``old`` rows too."""
    return list(
        dict.fromkeys([*FIX_COLUMNS, *(name for row in old[:1] for name in row), *OF_PEOPLE])
    )


def note_of_fix(given: str) -> str:
    """The note on a new row, for people."""
    return f"was {given}"


def candidate_lines(candidates: Iterable[Candidate]) -> str:
    """The content of candidates.csv: a row for each, none of them ticked."""
    rows = [
        ["", one.likely, one.given, one.likely, f"{one.score:.6f}"]
        + (["", ""] if one.chances is None else [f"{chance:.6f}" for chance in one.chances])
        + [one.part, one.id, one.digest]
        for one in candidates
    ]
    return "".join(csv_line(row) for row in [CANDIDATE_COLUMNS, *rows])


def csv_line(cells: Iterable[object]) -> str:
    """A row of a CSV file, with its line end."""
    text = io.StringIO()
    csv.writer(text).writerow(cells)  # it quotes \r and \n, its own line end
    return text.getvalue().removesuffix("\r\n") + "\n"


def require_unticked(file: Path) -> None:
    """Raise UsageError if a candidates.csv has ticks, which a new one would replace."""
    if file.is_file() and (ticked := sum(is_ticked(row) for _, row in _rows(file))):
        raise UsageError(
            f"{visible(str(file))} has {counted(ticked, 'tick')}; apply them (--apply), or move "
            "the file."
        )


def is_ticked(row: Mapping[str, str]) -> bool:
    """Whether a person ticked a row: anything but nothing, 0, no, false, n and -."""
    return row["tick"].casefold() not in NOT_TICKED


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """The line and the text by column of each row of a candidates.csv. Raises DataError."""
    table = Table(file, CANDIDATE_COLUMNS)
    names = [name.casefold() for name in table.header]
    needed = ("tick", "label", "given", "part", "id", "sha256")
    if any(names.count(name) != 1 for name in needed):
        raise DataError(
            f"{file}:{table.above + 1}: expected the columns {', '.join(needed)}, each once, as "
            "python -m trainer.clean SWEEP writes them."
        )
    rows = table.rows()
    next(rows, None)
    return [
        (table.line, dict(zip(names, [*row, *[""] * len(names)], strict=False)))
        for row in rows
        if any(row)
    ]


def apply_ticks(folds: FoldRuns, file: Path, out: Path, with_test: bool) -> list[str]:
    """Write the ticked rows of a candidates.csv as a file of fixes; return what is done, and notes.

    The file holds the rows of the fixes that the sweep used too. Rows of test are left out without
    ``with_test``. Raises UsageError if ``out`` exists, DataError with all faults of the table.
    """
    if out.exists():
        raise UsageError(
            f"--out {out} exists, and is not overwritten; name another file. It will hold the "
            "fixes that the sweep used too."
        )
    new: dict[str, dict[str, str]] = {}
    known = {*folds.digest_of.values()}
    faults, told = [], Counter[str]()
    for line, row in _rows(file):
        if not is_ticked(row):
            continue
        told["ticked"] += 1
        if row["part"] == "test" and not with_test:
            told["test"] += 1
            continue
        digest, label = row["sha256"].lower(), row["label"]
        fault = _fault_of(folds, label)
        if digest not in known:
            fault = f"{digest[:70]!r} is the SHA-256 of no image of the sweep"
        if not fault and new.get(digest, {"label": label})["label"] != label:
            fault = "contradicts another tick on the same content"
        if fault:
            faults.append(f"{file}:{line}: {fault}")
        elif label == row["given"]:
            told["same"] += 1
        else:
            note = note_of_fix(row["given"])
            new[digest] = {"sha256": digest, "label": label, "id": row["id"], "note": note}
    if faults:
        more = [f"... and {len(faults) - SHOWN_FAULTS:,} more"] * (len(faults) > SHOWN_FAULTS)
        raise DataError("\n".join([*faults[:SHOWN_FAULTS], *more]))
    lines = _tick_notes(told)
    if not new:
        nothing = "no row is ticked with a new label: put an x in the column tick"
        raise DataError("\n".join([f"{file}: {nothing}; nothing is written.", *lines]))
    content, kept, replaced = merged(old_fixes(folds), new)
    write_file(out, content)
    left_out = sum(row["label"] == LEAVE_OUT for row in new.values())
    done = f"{counted(len(new) - left_out, 'new label')}, {counted(left_out, 'image')} left out"
    done += f", {counted(kept, 'row')} kept of the fixes before" * bool(kept or replaced)
    return [f"{out}: {done}", *lines, *replaced]


def _tick_notes(told: Mapping[str, int]) -> list[str]:
    lines = []
    if number := told["test"]:
        lines.append(f"{counted(number, 'tick')} of test images left out; --test takes them")
    if number := told["same"]:
        lines.append(f"{counted(number, 'tick')} with the label that was given: no change")
    return lines


def _fault_of(folds: FoldRuns, label: str) -> str:
    """What is wrong with the label of a ticked row; "" if nothing is."""
    if not label:
        none = f", or '{SEPARATOR}' for none" if folds.several else ""
        return f"the label is empty; expected a class{none}, or {LEAVE_OUT!r}"
    if label == LEAVE_OUT:
        return ""
    names = [name.strip() for name in label.split(SEPARATOR)] if folds.several else [label]
    wrong = [name for name in names if name and name not in folds.classes]
    return f"{wrong[0]!r} is no class{suggestion(wrong[0], folds.classes)}" if wrong else ""


def merged(
    old: Sequence[Mapping[str, str]], new: Mapping[str, Mapping[str, str]]
) -> tuple[str, int, list[str]]:
    """The content of a file of fixes with ``old`` rows and ``new`` ones, by their digests.

    A new row takes the place of an old one of the same content. Also returns how many old rows are
    kept, and a line for each that was replaced.
    """
    header = header_of_fixes(old)
    kept = [row for row in old if row["sha256"] not in new]
    replaced = [
        f"{new[row['sha256']]['id']}: the fixes before said {row['label']!r}, the tick "
        f"{new[row['sha256']]['label']!r}: the tick counts"
        for row in old
        if row["sha256"] in new
    ]
    rows = [[row.get(name, "") for name in header] for row in [*kept, *new.values()]]
    return "".join(csv_line(row) for row in [header, *rows]), len(kept), replaced
