"""The event file that TensorBoard reads: one for each run, with one step axis."""

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

from trainer.run.disk import AppendedFile


class Events:
    """The run's event file. It is written at the end of an epoch, or after ten seconds.

    Not torch's SummaryWriter: that writes in a thread, where a full disk raises no error here.
    """

    def __init__(self, run: Path, length: int = 0) -> None:
        """Continue the run's file after its first ``length`` bytes; begin a new one if it is gone.

        Later events are cut off. The file keeps its name, so that an open TensorBoard reads on.
        Other event files are renamed, so that TensorBoard does not read them.
        """
        own: Path | None = None
        self.tags: set[str] = set()  # tags of step 0, which are written once
        self.moved: list[Path] = []
        for path in sorted(path for path in run.glob("events.out.tfevents.*") if path.is_file()):
            tags = None if own else tags_of_start(path, length)
            if tags is not None:
                own, self.tags = path, tags
            else:  # cut short, damaged, or a second file: its points would come twice
                aside = path.name.replace("tfevents", "events")
                self.moved.append(path.rename(path.with_name(f"damaged.{aside}")))
        self.is_new = own is None or not length
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(own or run / name, length if own else 0)
        self._waiting = bytearray()
        self._flushed = time.monotonic()
        self.given_up: set[str] = set()  # drawings that failed are not tried again
        if not self._file.length:
            self.add(0, file_version="brain.Event:2")
            self.flush()

    def add(self, step: int, **content: Any) -> None:
        """Add an event: ``summary`` or another field. Tags of step 0 are added only once."""
        event = Event(wall_time=time.time(), step=step, **content)
        if step == 0:
            tags = _tags(event)
            if tags and tags <= self.tags:
                return
            self.tags |= tags
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._waiting += length + _masked(length) + data + _masked(data)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point for each tag."""
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.add(step, summary=Summary(value=points))
        if time.monotonic() - self._flushed > 10:
            self.flush()

    def flush(self) -> int:
        """Write what was added, so that TensorBoard can show it; return the file's bytes."""
        waiting, self._waiting = bytes(self._waiting), bytearray()
        self._file.write(waiting)
        self._flushed = time.monotonic()
        return self._file.length

    def sync(self) -> None:
        """Sync what was flushed to the disk."""
        self._file.sync()

    def close(self) -> None:
        """Write the rest and close the file."""
        try:
            self.flush()
        finally:
            self._file.close()


def tags_of_start(path: Path, length: int) -> set[str] | None:
    """Return the tags of step 0 in the first ``length`` bytes; None if these are damaged."""
    content = memoryview(path.read_bytes())
    tags: set[str] = set()
    place = 0
    while place < length:
        size = int.from_bytes(content[place : place + 8], "little")
        end = place + 12 + size
        head, data = content[place : place + 8], content[place + 12 : end]
        sums = bytes(content[place + 8 : place + 12]), bytes(content[end : end + 4])
        if sums != (_masked(head), _masked(data)):
            return None
        event = Event.FromString(data.tobytes())
        if event.step == 0:
            tags |= _tags(event)
        place = end + 4
    return tags if place == length else None


def _tags(event: Event) -> set[str]:
    tags = {value.tag for value in event.summary.value}
    return tags | {"graph"} if event.graph_def else tags


def _masked(data: bytes | memoryview) -> bytes:
    """Return the masked CRC32C of a field, as the TFRecord format defines it."""
    checksum = google_crc32c.value(bytes(data))
    turned = (checksum >> 15 | checksum << 17) + 0xA282EAD8
    return struct.pack("<I", turned & 0xFFFFFFFF)
