"""What TensorBoard shows of a run: scalars on one step axis, the config, the training images."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary
from torchvision.utils import make_grid

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
        self._records, self._waiting = RecordWriter(self), bytearray()
        self._flushed = time.monotonic()
        if not self._file.length:
            self._add(0, file_version="brain.Event:2")
            self.flush()

    def _add(self, step: int, **content: Any) -> None:
        event = Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())

    def write(self, record: bytes) -> None:
        """Keep a record until ``flush``: RecordWriter's file is this object."""
        self._waiting += record

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point for each tag."""
        for tag, value in values.items():
            self._add(step, summary=summary.scalar(tag, value))  # type: ignore[no-untyped-call]
        if time.monotonic() - self._flushed > 10:
            self.flush()

    def config(self, text: str) -> None:
        """Show the effective configuration; TensorBoard's Markdown shows indented text as code."""
        lines = "\n".join(f"    {line}" for line in text.splitlines())
        self._add(0, summary=summary.text("config", lines))  # type: ignore[no-untyped-call]

    def images(self, images: Tensor) -> None:
        """Show a grid of (B, [crops,] C, H, W) images as the model sees them, stretched to 0-1."""
        grid = make_grid(images.flatten(0, -4), nrow=8, normalize=True)
        picture = summary.image("images/train", grid, dataformats="CHW")  # type: ignore[no-untyped-call]
        self._add(0, summary=picture)

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
