"""What the Python API raises."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from trainer.process.errors import KNOWN, in_plain_words
from trainer.process.exits import CODES, Exit, message_of
from yaml_trainer.answer import Answer

SHOWN_FAULTS = 20  # in one message


class TrainerError(Exception):
    """What a command would tell on stderr. ``__cause__`` has the details, such as all faults.

    exit_code: the command's exit code: 2 config or usage, 3 data, 4 no finite numbers, 5 run
    folder or disk, 7 out of memory, 8 a worker process died, 75 stopped and resumable.
    """

    def __init__(self, message: str, exit_code: int = Exit.CONFIG) -> None:
        super().__init__(message)
        self.exit_code = int(exit_code)


class InputError(TrainerError, ValueError):
    """Images that cannot be predicted. The message tells each one's number and what is wrong.

    faults: the reason for each such image, by its number in the list, from 0. answers: those of
    all images in their order; None for those that cannot be predicted.
    """

    def __init__(
        self,
        message: str,
        faults: Mapping[int, str] | None = None,
        answers: Sequence[Answer | None] = (),
    ) -> None:
        super().__init__(message, Exit.DATA if faults else Exit.CONFIG)
        self.faults = dict(faults or {})
        self.answers = list(answers)


def as_trainer_error(error: Exception) -> TrainerError:
    """A known error as a TrainerError with the command's message and exit code."""
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), Exit.BUG)
    return TrainerError(message_of(error) or str(error), code)


@contextmanager
def known_errors() -> Iterator[None]:
    """Context manager: the trainer's own errors, and no others, become a TrainerError."""
    try:
        yield
    except KNOWN as error:
        if not isinstance(error, Exception):
            raise
        raise as_trainer_error(error) from error


@contextmanager
def all_errors() -> Iterator[None]:
    """``known_errors``, and those of memory, the disk or a component's code, in plain words."""
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        if not isinstance(plain := in_plain_words(error), KNOWN):
            raise  # a bug of the trainer
        assert isinstance(plain, Exception)
        raise as_trainer_error(plain) from error
