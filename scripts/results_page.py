"""Writes what was measured: the READMEs' tables, those of docs/results.md, headers of recipes.

All is a function of the recipes and of docs/results.json. Only rows of tables are written: their
heads, and the text around them, are the pages' own.
"""

import hashlib
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.process.console import duration
from trainer.process.errors import UsageError
from trainer.run.disk import write_file

MEASURED = Path("docs/results.json")
PAGE, CHINESE = Path("docs/results.md"), Path("docs/results.zh.md")
READMES = (Path("README.md"), Path("README.zh-CN.md"))
BUSY = 0.1  # of the processor for other programs: from here on, a training time gets a mark
OLDER = "measured with an older file"

Entry = dict[str, Any]  # of docs/results.json; {"reason": why} of a recipe that is not measured


@dataclass(frozen=True)
class Recipe:
    """A YAML of configs/ and its entry, which is empty if the recipe was never tried.

    ``digest`` is of the YAML's content: comments and layout don't change it.
    """

    path: Path
    content: Mapping[str, Any]
    digest: str
    entry: Entry

    @property
    def name(self) -> str:
        """The file's name, without its ending."""
        return self.path.stem

    @property
    def state(self) -> str:
        """What there is: "not measured: ...", "measured", or OLDER."""
        if "accuracy" not in self.entry:
            return f"not measured: {self.entry.get('reason', 'not yet')}"
        return "measured" if self.entry["digest"] == self.digest else OLDER


def read_measured() -> dict[str, Entry]:
    """The content of docs/results.json."""
    content: dict[str, Entry] = {}
    if MEASURED.exists():
        try:
            content = dict(json.loads(MEASURED.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{MEASURED} is damaged ({error}); git checkout restores it") from None
    return content


def all_recipes() -> list[Recipe]:
    """The recipes of configs/, by name."""
    measured, found = read_measured(), []
    for path in sorted(Path("configs").glob("*.yaml")):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            raise UsageError(f"{path} cannot be read as YAML: {error}") from None
        if isinstance(content, dict) and "sweep" in content:
            continue
        if not isinstance(content, dict) or not {"dataset", "model", "train"} <= content.keys():
            raise UsageError(f"{path} lacks dataset, model or train: it is no recipe; move it away")
        text = json.dumps(content, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        found.append(Recipe(path, content, digest, measured.get(path.stem, {})))
    return found


def write_all() -> None:
    """Write every text that is made from the results, each atomically."""
    for path, text in texts().items():
        if path.read_text(encoding="utf-8") != text:
            write_file(path, text)


def texts() -> dict[Path, str]:
    """The content of each file that holds results."""
    recipes = all_recipes()
    done = [recipe for recipe in recipes if "accuracy" in recipe.entry]
    made = {path: with_rows(path, [[readme_row(r) for r in done]]) for path in READMES}
    tables = [[result_row(r) for r in recipes], [how_row(r) for r in done]]
    made |= {page: with_rows(page, tables) for page in (PAGE, CHINESE) if page.exists()}
    return made | {recipe.path: with_header(recipe) for recipe in recipes}


def with_rows(path: Path, tables: Sequence[Sequence[Sequence[str]]]) -> str:
    """A page's text with new rows in its tables of recipes: those whose head begins with YAML."""
    left = iter(tables)

    def renewed(table: re.Match[str]) -> str:
        return table[1] + "".join(f"| {' | '.join(row)} |\n" for row in next(left))

    text = path.read_text(encoding="utf-8")
    return re.sub(r"(^\| YAML \|.*\n\|[-|]+\n)(?:\|.*\n)*", renewed, text, flags=re.MULTILINE)


def readme_row(recipe: Recipe) -> list[str]:
    """The cells of a measured recipe in the READMEs, without words of any language."""
    entry = recipe.entry
    accuracy = f"{accuracy_of(recipe)} ({len(entry['seeds'])})" + " \\*" * (recipe.state == OLDER)
    seconds = training_time(entry) + " †" * (entry["others"] is None or entry["others"] > BUSY)
    data = f"{entry['data']}: {images_of(entry)}"
    return [f"`{recipe.name}`", data, accuracy, seconds, entry["commit"]]


def result_row(recipe: Recipe) -> list[str]:
    """The cells of a recipe in the first table of docs/results.md."""
    entry = recipe.entry
    if "accuracy" not in entry:
        return [f"`{recipe.name}`", "", "", recipe.state, "", "", ""]
    pairs = zip(entry["seeds"], entry["accuracy"], strict=True)
    each = ", ".join(f"{seed}: {value:.4f}" for seed, value in pairs)
    accuracy = accuracy_of(recipe) + f" ({OLDER})" * (recipe.state == OLDER)
    cells = [f"`{recipe.name}`", entry["data"], images_of(entry), accuracy, each]
    red = mean_and_deviation(entry["recoloured"]) if "recoloured" in entry else ""
    return [*cells, red, training_time(entry)]


def how_row(recipe: Recipe) -> list[str]:
    """The cells of a measured recipe in the second table of docs/results.md."""
    entry = recipe.entry
    others = "unknown" if entry["others"] is None else f"{entry['others']:.0%}"
    machine = f"{entry['processor']}, {entry['cores']} cores, {entry['device']}"
    cells = [f"`{recipe.name}`", str(entry["epochs"]), machine, entry["precision"]]
    cells += [entry[key] for key in ("torch", "commit", "date")]
    return [*cells, others, f"`{entry['command']}`"]


def with_header(recipe: Recipe) -> str:
    """The recipe's text with what was measured in its header: ``# Measured: ...``."""
    entry = recipe.entry
    if "accuracy" in entry:
        seeds = f"seed{'s' * (len(entry['seeds']) > 1)} {', '.join(map(str, entry['seeds']))}"
        older = " with an older file" * (recipe.state == OLDER)
        accuracy = accuracy_of(recipe, "")
        header = (
            f"# Measured{older}: test accuracy {accuracy}, {seeds}, {entry['data']}\n"
            f"#   {training_time(entry)} of training, {entry['device']}, {entry['precision']}, "
            f"commit {entry['commit']}\n"
        )
    elif "reason" in entry:
        header = f"# Measured: not yet ({entry['reason']})\n"
    else:
        header = "# Measured: not yet\n"
    text = recipe.path.read_text(encoding="utf-8")
    return re.sub(r"^# Measured.*\n(?:#   .*\n)*", header, text, count=1, flags=re.MULTILINE)


def accuracy_of(recipe: Recipe, mark: str = "**") -> str:
    """The test accuracy, with the mean between marks."""
    mean, *spread = mean_and_deviation(recipe.entry["accuracy"]).split(" ", 1)
    return " ".join([f"{mark}{mean}{mark}", *spread])


def mean_and_deviation(values: Sequence[float]) -> str:
    """``0.8823 ± 0.0021``; without the deviation if there is one value."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def images_of(entry: Entry) -> str:
    """The images of train, val and test: ``139 + 10 + 11``."""
    return " + ".join(f"{count:,}" for count in entry["images"])


def training_time(entry: Entry) -> str:
    """The mean training time of a run: ``1m19s``."""
    return duration(statistics.fmean(entry["seconds"]))
