"""The READMEs tell the truth: their commands run, their file trains, and the two say the same."""

import re
import signal
from pathlib import Path

import pytest
import yaml

from tests.test_translations import english_links
from trainer.components import LOSSES, METRICS, SCHEDULERS
from trainer.evaluate import main as evaluate
from trainer.process.exits import Exit
from trainer.train import main as train
from transforms import TRANSFORMS

README = Path("README.md").read_text(encoding="utf-8")
CHINESE = Path("README.zh-CN.md").read_text(encoding="utf-8")


def blocks(text: str, language: str = r"\w*") -> list[str]:
    """What stands between the fences of a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in fenced if re.fullmatch(language, name)]


def rows(text: str) -> list[list[str]]:
    """The cells of each line of each table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_two_commands_are_there_word_for_word_for_ci():
    commands = re.findall(r"^python -m pip install .* && .*$", README, re.MULTILINE)
    assert [command.split(" && ")[1] for command in commands] == [
        "python -m trainer.train --config configs/lenet_rmb.yaml",
        "python -m pytest -n 2",
    ]


def test_the_yaml_of_the_readme_trains_and_its_run_can_be_evaluated_and_resumed(
    notes, tmp_path, capsys
):
    (example,) = blocks(README, "yaml")
    file = tmp_path / "example.yaml"
    file.write_text(example)
    small = [f"dataset.root={notes}", "train.epochs=1", "train.device=cpu"]
    runs = ["--runs", str(tmp_path / "runs")]
    assert train(["--config", str(file), *small, *runs]) == 0
    run = next((tmp_path / "runs" / "example").iterdir())
    assert "python -m trainer.evaluate " + str(run) in capsys.readouterr().out
    assert evaluate([str(run)]) == 0
    assert evaluate([str(run), "--split", "val"]) == 0
    assert train(["--resume", str(run), "train.epochs=2"]) == 0
    assert train(["--resume", "--config", str(file), *small, *runs, "train.epochs=3"]) == 0


def test_the_readme_is_under_three_screens():
    assert len(README.splitlines()) <= 155


def test_the_tree_shows_every_top_level_folder():
    for text in (README, CHINESE):
        (tree,) = (block for block in blocks(text, "") if block.startswith("configs/"))
        shown = {line.split()[0] for line in tree.splitlines()}
        code = {f"{path.parent}/" for path in Path().glob("[a-z]*/__init__.py")}
        assert shown == code | {"configs/", "docs/", "findings/", "runs/", "tests/"}


@pytest.mark.parametrize(
    ("key", "table"),
    [("transforms", TRANSFORMS), ("loss", LOSSES), ("scheduler", SCHEDULERS), ("metrics", METRICS)],
)
def test_the_numbers_of_choices_are_those_of_the_tables(key, table):
    for text in (README, CHINESE):
        (row,) = (row[1] for row in rows(text) if row[0] == f"`{key}`")
        named = len(set(re.findall(r"\w+", row)) & set(table))
        more = named + 5 if "[five more]" in row else 0
        total = re.search(r"\[(?:共|等)? ?(\d+)", row)
        assert (int(total[1]) if total else more) == len(table)


def test_every_shipped_yaml_is_named_after_its_file():
    for path in Path("configs").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["name"] == path.stem


def test_the_chinese_readme_has_the_same_commands_and_the_same_file_but_for_its_comments():
    for language in ("sh", "yaml"):
        ours, theirs = (
            [re.sub(" +# .*", "", block) for block in blocks(text, language)]
            for text in (README, CHINESE)
        )
        assert ours == theirs != []
    assert len(blocks(CHINESE)) == len(blocks(README))


def test_the_chinese_readme_has_the_same_headings_links_and_pictures():
    levels = [re.findall("^(#+) ", text, re.MULTILINE) for text in (README, CHINESE)]
    assert levels[0] == levels[1]
    links = [
        sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - {"README.md", "README.zh-CN.md"})
        for text in (README, "\n".join(english_links(CHINESE, Path())))
    ]
    assert links[0] == links[1]
    assert "(README.zh-CN.md)" in README.split("##")[0] and "(README.md)" in CHINESE.split("##")[0]


def test_the_chinese_readme_has_the_same_tables_commands_names_and_numbers():
    english, chinese = rows(README), rows(CHINESE)
    assert len(english) == len(chinese)
    for ours, theirs in zip(english, chinese, strict=True):
        assert len(ours) == len(theirs)
        if "`" in ours[0]:
            assert ours[0] == theirs[0]
        texts = [" ".join(row) for row in (ours, theirs)]
        assert {*re.findall("`[^`]+`", texts[0])} == {*re.findall("`[^`]+`", texts[1])}
        if len(ours) == 5:  # the results
            numbers = [sorted(re.findall(r"\d[\d.,]*", text)) for text in texts]
            assert numbers[0] == numbers[1]


def test_both_list_every_exit_code():
    wanted = {*Exit} | {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for text, head in ((README, "Exit codes: "), (CHINESE, "退出码：")):
        listed = text.partition(head)[2].partition("\n\n")[0]
        assert sorted(map(int, re.findall(r"[0-9]+", listed))) == sorted(wanted)
