"""What ``trainer.serve`` was asked for. Each process of the server gets a copy."""

from dataclasses import dataclass, field
from fractions import Fraction

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Serving:
    """The settings of a server.

    run: the run's folder. host: the address that it listens on. token: what requests must have;
    None: nothing. names: the further names by which it is asked. max_batch: images at once. wait:
    seconds that a batch waits for requests that are on their way. max_bytes: of a request.
    max_queue: requests at work or waiting. timeout: seconds that reading a request may take, and
    that it may wait for its turn. workers: processes with a model. The others are as those of
    ``trainer.predict``.
    """

    run: str
    host: str
    port: int
    token: str | None = field(repr=False)
    names: tuple[str, ...]
    max_batch: int
    wait: float
    max_bytes: int
    max_queue: int
    timeout: int
    workers: int
    device: str | None
    threads: int | None
    tta: str | None
    sets: Fraction | None
    reject: Fraction | None
    score: str | None

    @property
    def max_held(self) -> int:
        """The bytes of all requests that are read or waiting at once."""
        return 8 * self.max_bytes

    @property
    def known_names(self) -> tuple[str, ...] | None:
        """The names by which it may be asked; None if any: then a token is needed anyway."""
        is_local = self.host == "127.0.0.1"
        return (*LOCAL_NAMES, *self.names) if is_local or self.names else None
