"""What TensorBoard shows of a run: scalars on one step axis, the config, the training images."""

import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter
from torchvision.utils import make_grid


class Events:
    """The run's event file. Writing waits for the end of an epoch, or ten seconds."""

    def __init__(self, run: Path, first_step: int | None) -> None:
        """Open it; points at ``first_step`` and later, of a run that was cut off, are purged."""
        self._writer = SummaryWriter(str(run), purge_step=first_step)
        self._scalars: list[tuple[str, float, int, float]] = []
        self._flushed = time.monotonic()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point for each tag, which ``flush`` writes."""
        self._scalars += [(tag, value, step, time.time()) for tag, value in values.items()]
        if time.monotonic() - self._flushed > 10:
            self.flush()

    def config(self, text: str) -> None:
        """Show the effective configuration; TensorBoard's Markdown shows indented text as code."""
        self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))

    def images(self, images: Tensor) -> None:
        """Show a grid of (B, [crops,] C, H, W) images as the model sees them, stretched to 0-1."""
        grid = make_grid(images.flatten(0, -4), nrow=8, normalize=True)
        self._writer.add_image("images/train", grid, 0)

    def flush(self) -> None:
        """Let a TensorBoard that is open show what was added."""
        for tag, value, step, at in self._scalars:
            self._writer.add_scalar(tag, value, step, walltime=at)
        self._scalars.clear()
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write the rest and close the file."""
        self.flush()
        self._writer.close()
