"""Answer requests for predictions over HTTP, with a run's best weights, and show a page to try it.

    python -m trainer.serve runs/lenet_rmb
    curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg http://127.0.0.1:8000/predict

It listens on this machine only, unless a token is given and --host says otherwise.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.components import SCORES
from trainer.process.command_line import Parser, level
from trainer.process.launch import run_as_command

TOKEN = "YAML_TRAINER_TOKEN"  # the environment's variable
SHORTEST_TOKEN = 16  # characters
LOOPBACK = "127.0.0.1"
MIB = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = Parser(
        prog="python -m trainer.serve",
        description="Answer requests for predictions over HTTP: POST /predict, and a page at /.",
        epilog="exit codes: 0 after --help alone, 2 usage, or the port is taken, 5 run folder, "
        "7 out of memory, 8 a process of the server died; stopped: 130 Ctrl-C, 143 SIGTERM",
    )
    parser.add_argument("run", metavar="RUN", help="a run, or a folder of runs for its newest")
    parser.add_argument(
        "--host", choices=(LOOPBACK, "0.0.0.0", "::"), default=LOOPBACK, help="who may connect: "
        f"programs of this machine ({LOOPBACK}, the default), or others too, who need a token",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=_whole(0, 65535), default=8000, metavar="N", help="default: 8000; 0: a free"
    )
    parser.add_argument(
        "--token-file", metavar="FILE", help="a file with the token that requests must have "
        f"(default: the environment's {TOKEN})",
    )  # fmt: skip
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="a name by which a proxy is "
        "asked for this server, such as demo.example.org; needs a token",
    )  # fmt: skip
    parser.add_argument(
        "--max-batch", type=_whole(1, 4096), default=32, metavar="N", help="images at once (32)"
    )
    parser.add_argument(
        "--wait", type=_whole(0, 10_000), default=10, metavar="MS", help="how long a batch waits "
        "for requests that have arrived but are not yet read, in milliseconds (10)",
    )  # fmt: skip
    parser.add_argument(
        "--max-bytes", type=_whole(1, 1 << 30), default=32 * MIB, metavar="N",
        help="the largest request that is read (33554432)",
    )  # fmt: skip
    parser.add_argument(
        "--max-queue", type=_whole(1, 100_000), default=256, metavar="N", help="requests at work "
        "or waiting; further ones get status 429 (256)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=_whole(1, 3600), default=30, metavar="S", help="seconds that reading a "
        "request may take, and that it may wait for its turn (30)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=_whole(1, 64), default=1, metavar="N", help="processes with a model (1)"
    )
    parser.add_argument("--device", help="as train.device: auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--threads", type=_whole(1, 1024), metavar="N", help="as train.threads")
    parser.add_argument("--tta", choices=("none", "flip", "flip+shifts"), help="as that of predict")
    parser.add_argument("--sets", type=level, metavar="LEVEL", help="as that of predict")
    parser.add_argument("--reject", type=level, metavar="LEVEL", help="as that of predict")
    parser.add_argument("--score", choices=SCORES, help="as that of predict --reject")
    arguments = parser.parse_args(argv)
    if arguments.score and arguments.reject is None:
        parser.error("--score says how --reject measures: give --reject too, such as 0.95")

    from trainer.process.exits import exit_code_of

    ended: list[int] = []
    return exit_code_of(lambda: ended.append(run(arguments))) or ended[0]


def _whole(least: int, most: int) -> Callable[[str], int]:
    """Return an argument type: a whole number from ``least`` to ``most``."""

    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number in {least} to {most}")
        return int(text)

    return number


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks for, until a signal ends it; returns the exit code."""
    from trainer.process.errors import UsageError
    from trainer.run.folder import find_run

    if importlib.util.find_spec("litserve") is None:
        raise UsageError('this needs litserve, which is not installed: pip install -e ".[serve]"')
    token = _token(arguments.token_file)
    if token is None and (arguments.host != LOOPBACK or arguments.name):
        what = "--name" if arguments.name else f"--host {arguments.host}"
        raise UsageError(
            f"{what} lets others than this machine ask, so it needs a token of at least "
            f"{SHORTEST_TOKEN} characters: put it into the environment's {TOKEN}, or into a file "
            "that --token-file names. It makes one: python -c 'import secrets; "
            "print(secrets.token_urlsafe())'"
        )
    if arguments.host != LOOPBACK:
        told = "the token and the pictures go over plain HTTP; a proxy in front may add TLS"
        print(f"note    {told}", file=sys.stderr)
    folder = find_run(arguments.run)

    from yaml_trainer.serving.server import serve
    from yaml_trainer.serving.settings import Serving

    return serve(
        Serving(
            run=str(folder),
            host=arguments.host,
            port=arguments.port,
            token=token,
            names=tuple(arguments.name),
            max_batch=arguments.max_batch,
            wait=arguments.wait / 1000,
            max_bytes=arguments.max_bytes,
            max_queue=arguments.max_queue,
            timeout=arguments.timeout,
            workers=arguments.workers,
            device=arguments.device,
            threads=arguments.threads,
            tta=arguments.tta,
            sets=arguments.sets,
            reject=arguments.reject,
            score=arguments.score,
        )
    )


def _token(file: str | None) -> str | None:
    """The token of a file or of the environment; None if there is neither. Raises UsageError."""
    from trainer.process.errors import UsageError

    place, token = f"the environment's {TOKEN}", os.environ.get(TOKEN)
    if file is not None:
        place = f"--token-file {file}"
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise UsageError(f"{place}: {why}.") from None
    if token is None:
        return None
    if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()):
        raise UsageError(
            f"{place}: a token is at least {SHORTEST_TOKEN} printable ASCII characters; this has "
            f"{len(token)}."
        )
    return token


if __name__ == "__main__":
    run_as_command(main)
