"""Tells somebody, through apprise, that a run or a sweep has ended, however it ended.

The address may hold a password, so it comes from the environment and is never printed or kept.
"""

import importlib.util
import json
import logging
import os
import platform
import shlex
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.process.console import say
from trainer.process.errors import Stopped, UsageError, in_plain_words
from trainer.run.disk import read_json

if TYPE_CHECKING:
    import apprise

    from trainer.config import Config
    from trainer.config.settings import NotifySettings

PATIENCE = 10.0  # seconds for all addresses together
LONGEST = 2000  # letters of a message
KINDS = {"finished": "success", "failed": "failure", "stopped": "warning"}  # apprise's types


class Notice:
    """What is told at the end. ``text`` is set by what has ended well.

    is_trial: nobody is told; the address is checked.  if_stopped: what is added after a stop.
    folder: that of the run or sweep, which each message has; None: there is none yet.
    """

    def __init__(self, config: "Config", what: str, name: str, is_trial: bool = False) -> None:
        self.settings, self.title, self.text = config.notify, f"{what} {name}", ""
        self.is_trial, self.if_stopped = is_trial, ""
        self.folder: Path | None = None
        self.addresses: list[apprise.NotifyBase] = []

    def check(self) -> None:
        """Read the address; raises UsageError if it is missing, or none that apprise knows.

        Only rank 0 calls this, so only rank 0 tells.
        """
        if self.settings is not None:
            self.addresses = addresses(self.settings)

    def send(self, status: str, text: str) -> None:
        """Tell that it is finished, failed or stopped; never raises, and takes ten seconds at most.

        An address that does not answer is a note.
        """
        if self.settings is None or self.is_trial or status not in self.settings.on:
            return
        lines = [text[:LONGEST]] if text else []
        if self.folder is not None and self.folder.is_dir():
            lines.append(f"folder: {self.folder.resolve()}")
        body = "\n".join([*lines, f"(on {platform.node()})"])
        message = {"title": f"{self.title}: {status}", "body": body, "notify_type": KINDS[status]}
        reached: list[bool] = []
        threads = [
            threading.Thread(target=deliver, args=(one, message, reached), daemon=True)
            for one in self.addresses
        ]
        with suppress(RuntimeError):  # the system has no more threads
            for thread in threads:
                thread.start()
        for thread in threads:
            if thread.ident is not None:
                thread.join(PATIENCE / len(threads))
        if failed := len(threads) - sum(reached):
            say(f"note    notify: {failed} of {len(threads)} addresses in {self.settings.to} "
                "did not take the message")  # fmt: skip


def deliver(address: "apprise.NotifyBase", message: dict[str, str], reached: list[bool]) -> None:
    """Send one message; append whether it was taken."""
    with suppress(Exception):
        reached.append(bool(address.notify(**message)))


def addresses(settings: "NotifySettings") -> "list[apprise.NotifyBase]":
    """The addresses in the environment variable, each by itself; raises UsageError.

    The messages of apprise could hold an address, so its log is silent.
    """
    if importlib.util.find_spec("apprise") is None:
        raise UsageError('notify needs apprise, not installed here: pip install -e ".[notify]"')
    words = os.environ.get(settings.to, "").split()
    if not words:
        raise UsageError(
            f"notify.to: the environment has no {settings.to}. Set it to an address of apprise, "
            "such as mailto://USER:PASSWORD@HOST, or notify=null for none."
        )
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports what Python 3.13 lacks, if it is there
        import apprise

        # Not Apprise.notify: its pool's threads would hold up the exit where a server hangs.
        made = [apprise.Apprise.instantiate(word) for word in words]
    for number, (one, word) in enumerate(zip(made, words, strict=True), 1):
        if one is None:
            scheme = word.partition("://")[0] if "://" in word else ""
            kind = f", which begins with {scheme}://" if scheme.isalnum() else ""
            raise UsageError(
                f"notify.to: apprise knows no such address as number {number} in "
                f"{settings.to}{kind}. Its form is SCHEME://..., see "
                "https://github.com/caronc/apprise/wiki"
            )
    return [one for one in made if one is not None]


@contextmanager
def telling(config: "Config", what: str, name: str, is_trial: bool = False) -> Iterator[Notice]:
    """Context manager: tell how the body ended, as ``config.notify`` asks. ``what``: run or sweep.

    The body calls ``check`` of the notice on rank 0, and sets its ``text``. What the body raises is
    raised further.
    """
    notice = Notice(config, what, name, is_trial)
    try:
        yield notice
    except (Stopped, KeyboardInterrupt) as stopped:
        notice.send("stopped", f"{words_of(stopped)}\n{notice.if_stopped}".strip())
        raise
    except BaseException as error:
        notice.send("failed", words_of(in_plain_words(error)))
        raise
    notice.send("finished", notice.text)


def words_of(error: BaseException) -> str:
    """The message of an error with its notes, which say how to go on."""
    text = str(error) or type(error).__name__
    return "\n".join([text, *getattr(error, "__notes__", [])])


def result_text(run: Path) -> str:
    """The test result of a finished run, and its best epoch."""
    result: dict[str, Any] = {}
    with suppress(Exception):
        result = read_json(run / "result.json")
    test = result.get("test")
    numbers = [
        f"{name} {value:.4f}"
        for name, value in (test.items() if isinstance(test, dict) else ())
        if isinstance(value, float)
    ]
    lines = [f"test: {', '.join(numbers)}"] if numbers else []
    if isinstance(best := result.get("best"), dict):
        lines.append(f"best epoch: {best.get('epoch')} of {result.get('epochs')}")
    return "\n".join(lines)


def tell_killed(run: Path) -> None:
    """For a mirror that follows: tell of a run that was killed, which cannot tell it itself."""
    from trainer.config import load_config

    try:
        config = load_config(run / "config.yaml")
        notice = Notice(config, "run", config.name)
        notice.folder = run
        notice.check()
    except Exception as error:
        say(f"note    notify: nobody was told: {json.dumps(str(error))[:300]}")
        return
    again = f"python -m trainer.train --resume {shlex.quote(str(run))}"
    notice.send("failed", f"it was killed, or its machine died; to go on:\n  {again}")
