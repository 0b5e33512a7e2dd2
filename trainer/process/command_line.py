"""The parser of every command. Its errors say what to type."""

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NoReturn

from trainer.process.words import NO_SETTINGS, SETTINGS, bare, with_value

# A word that is a section in a YAML, and one of its settings as an option.
AS_OPTION = {
    **dict.fromkeys(("data", "datasets"), "root"),
    **dict.fromkeys(("earlystopping", "earlystop"), "patience"),
    **dict.fromkeys(("transforms", "transform", "traintransforms"), "augment"),
}


def level(text: str) -> Fraction:
    """Return an argument that is a share between 0 and 1, as exactly as it was written."""
    if not re.fullmatch(r"0?\.\d{1,6}", text) or not Fraction(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number between 0 and 1, such as 0.95")
    return Fraction(text)


def without_paths_taken_for_files(
    argv: Sequence[str], suffixes: Mapping[str, tuple[str, ...]]
) -> list[str]:
    """Turn ``--json photo.jpg`` into ``--json=- photo.jpg``: a name without .json is a PATH.

    suffixes: of each option whose value may be left out, the endings of its values.
    """
    given = list(argv)
    for i, text in enumerate(given):
        if text == "--":
            break
        if text in suffixes:
            following = given[i + 1] if i + 1 < len(given) else ""
            if not following.lower().endswith(suffixes[text]):
                given[i] = f"{text}=-"
    return given


class Parser(argparse.ArgumentParser):
    """argparse's parser, which says how an unknown option is meant.

    A command with ``key=value`` settings names that argument ``overrides``.
    section: how the settings begin that the command takes. example: such a setting, and a value.
    """

    section = ""
    example = "train.epochs", "5"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; keeps the command line for ``error``."""
        self.given: Sequence[str] = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print usage and ``message``, with what to type instead, and end with exit code 2."""
        _, unknown, words = message.partition("unrecognized arguments: ")
        wanted = message.partition("arguments are required: ")[2].split(", ")
        file = next((w for w in self.given if w.endswith((".yaml", ".yml"))), None)
        options = [word for word in words.split() if word.startswith("-")]
        if unknown and options:
            message = "; ".join(map(self._unknown, options))
        elif "--config" in wanted and file:
            message = f"name the file by --config {file}"
        elif "RUN" in wanted:
            message = message.replace(", key=value", "")
            message += "; RUN is a run's folder, and python -m trainer.runs list shows all"
        super().error(message)

    def _unknown(self, option: str) -> str:
        """What to type instead of an unknown option."""
        name, _, value = option.lstrip("-").partition("=")
        place = self.given.index(option) if option in self.given else len(self.given)
        following = self.given[place + 1] if place + 1 < len(self.given) else "-"
        own = [text for action in self._actions for text in action.option_strings]
        if near := difflib.get_close_matches(option.partition("=")[0], own, n=1, cutoff=0.75):
            return f"unknown option {option}; did you mean {near[0]}?"
        if following.endswith((".yaml", ".yml")):
            how = "did you mean --config?" if "--config" in own else "this takes a run's folder"
            return f"unknown option {option}; {how}"
        if not any(action.dest == "overrides" for action in self._actions):
            listed = ", ".join(text for text in own[2:] if text.startswith("--"))
            return f"unknown option {option}; there are {listed or 'none'}"
        if not value and "=" in following:
            return f"unknown option {option}; a setting needs none: {following}"
        value = value or ("VALUE" if following.startswith("-") else following)
        word = bare(name)
        found = [name] if "." in name else SETTINGS.get(AS_OPTION.get(word, word), [])
        if not found and word in NO_SETTINGS:
            return f"unknown option {option}; {NO_SETTINGS[word][0]}"
        found = [one for one in found if one.startswith(self.section)]
        path, value = with_value(found[0], value) if found else self.example
        is_folder = "/" in value and not value.startswith("torchvision/")
        path = "dataset.root" if path == "dataset" and is_folder else path
        value = f"[{value}]" if path == "metrics" and value[:1] != "[" else value
        typed = shlex.quote(f"{path}={value}")
        how = "" if found else ", such as"
        return f"unknown option {option}; a setting has no dashes{how}: {typed}"
