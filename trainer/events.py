"""The file that TensorBoard reads: one a run, on one step axis."""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from trainer.disk import AppendedFile


class Events:
    """The run's event file. Writing waits for the end of an epoch, or ten seconds.

    SummaryWriter writes from a thread, where a full disk ends in a traceback and not in an error.
    """

    def __init__(self, run: Path, length: int = 0) -> None:
        """Go on in the run's file after its first ``length`` bytes; a new one where that is gone.

        What was written after the state that is resumed is written again, in the same places: a
        TensorBoard that is open reads on.
        """
        files = [path for path in sorted(run.glob("events.out.tfevents.*")) if path.is_file()]
        whole = [path for path in files if path.stat().st_size >= length]
        for short in set(files) - set(whole):  # what it still holds would be there twice
            short.rename(short.with_name(f"damaged.{short.name.replace('tfevents', 'events')}"))
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(whole[0] if whole else run / name, length if whole else 0)
        self._waiting = bytearray()
        self._flushed = time.monotonic()
        self.given_up: set[str] = set()  # what could not be drawn: said once, and not tried again
        if not self._file.length:
            self.add(0, file_version="brain.Event:2")
            self.flush()

    def add(self, step: int, **content: Any) -> None:
        """Add an event: a ``summary``, or another field of TensorBoard's Event."""
        event = Event(wall_time=time.time(), step=step, **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        self._waiting += length + _masked(length) + event + _masked(event)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point for each tag."""
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.add(step, summary=Summary(value=points))
        if time.monotonic() - self._flushed > 10:
            self.flush()

    def flush(self) -> int:
        """Let a TensorBoard that is open show what was added; the file's length."""
        waiting, self._waiting = bytes(self._waiting), bytearray()
        self._file.write(waiting)
        self._flushed = time.monotonic()
        return self._file.length

    def sync(self) -> None:
        """Bring what was flushed to the disk."""
        self._file.sync()

    def close(self) -> None:
        """Write the rest and close the file."""
        try:
            self.flush()
        finally:
            self._file.close()


def _masked(data: bytes) -> bytes:
    """The checksum of a TFRecord's part, turned as its format wants it."""
    checksum = google_crc32c.value(data)
    turned = (checksum >> 15 | checksum << 17) + 0xA282EAD8
    return struct.pack("<I", turned & 0xFFFFFFFF)
