"""Makes the training step fast: the network is compiled, or replayed from a CUDA graph.

Evaluation, prediction and explanation use the plain model. So they give the same numbers as in the
run, and nobody waits for a compiler to see one image.
"""

import errno
import os
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.freeze import train_mode
from trainer.build.precision import HALF
from trainer.config import Config
from trainer.distributed.processes import rank, world_size
from trainer.distributed.shares import Shares, in_micro_batches, share_of
from trainer.input.subset import Subset
from trainer.process.compiler_stand_in import real
from trainer.process.console import Say, duration
from trainer.process.errors import ConfigError, OutOfMemory, RunError, in_plain_words

if TYPE_CHECKING:
    from trainer.build.job import Job

COMPILERS = ("C++ compiler", "C compiler", "Python.h")  # in PyTorch's message if there is none
# What says that files cannot be written: of the system, and of Python's tempfile.
NO_ROOM = (
    *map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS)),
    "No usable temporary directory",
)
MOST_VERSIONS = 64  # of compiled code; PyTorch's own limit is 8


def make_fast(job: "Job", say: Say) -> None:
    """Give the job the network that ``train`` asks for, and rehearse a step with it.

    Raises ConfigError if PyTorch cannot do it, or not on this machine.
    """
    train, config = job.config.train, job.config
    graphs = train.cuda_graphs and job.device.type == "cuda"
    if train.cuda_graphs and not graphs:
        say(f"note    train.cuda_graphs: there are none on {job.device.type}; it changes nothing")
    asked = {
        "compile": bool(train.compile),
        "cuda_graphs": graphs,
        "activation_checkpointing": train.activation_checkpointing,
        "precision": train.precision in HALF,
    }
    if not any(asked.values()):
        return
    key = next(key for key, is_asked in asked.items() if is_asked)
    if graphs and world_size() > 1:
        message = "does not go with several processes; train.compile=reduce-overhead does"
        raise ConfigError([config.fault("train.cuda_graphs", message)])
    if train.compile:
        say(f"note    compiling {config.model.name}; it takes longest the first time")
    began = time.perf_counter()
    train_mode(job.network)
    buffers = [buffer.clone() for buffer in job.model.buffers()]
    subsets = job.data.subsets["train"].of_each_size
    sizes = _sizes(job) if train.compile or graphs else [2]
    try:
        if train.compile:
            job.network = _compiled(job.network, job.model, train.compile)
        elif graphs:
            full = [_batch(job, subset, sizes[0])[0] for subset in subsets]
            job.network = Graphed(job.model, full, train.precision)
        for subset, size in product(subsets, sizes):
            _rehearse(job, job.network, *_batch(job, subset, size))
    except Exception as error:  # the compiler raises every kind
        if train.compile and (reason := no_room(error)):
            raise RunError(
                f"train.compile: the compiler cannot write its files: {reason}. Free some space, "
                "or name a folder that has some: TMPDIR=/elsewhere and "
                "TORCHINDUCTOR_CACHE_DIR=/elsewhere before the command; train.compile=false needs "
                "none"
            ) from None
        if isinstance(in_plain_words(error), OutOfMemory | RunError):
            raise
        if train.compile or graphs:  # what the model itself raises is not the compiler's
            _rehearse(job, job.model, *_batch(job, subsets[0], sizes[0]))
        raise ConfigError([config.fault(f"train.{key}", _reason(config, key, error))]) from error
    finally:
        job.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(job.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
    if train.compile:
        say(f"note    compiled in {duration(time.perf_counter() - began)}")


def no_room(error: BaseException | None) -> str:
    """The line of an error, or of its cause, that says that a disk takes no file; or ""."""
    while error is not None:
        for line in str(error).splitlines():
            if any(sign in line for sign in NO_ROOM):
                return line.strip()[:300]
        error = error.__cause__ or error.__context__
    return ""


def _compiled(network: nn.Module, model: nn.Module, mode: str | bool) -> nn.Module:
    """The network with compiled forward and backward passes, one version for each batch shape.

    Dropout draws the same numbers as without compiling. A resumed run meets the shapes in another
    order. Code for any shape could then give other bits, so it is never made. Nor is code that was
    chosen by its speed, except in the max-autotune modes; PyTorch's cache keeps their choices.
    """
    compiler = real()
    compiler.config.recompile_limit = max(MOST_VERSIONS, compiler.config.recompile_limit)
    name = mode if isinstance(mode, str) else "default"
    options = torch._inductor.list_mode_options(name)
    options |= {"fallback_random": True, "deterministic": not name.startswith("max-autotune")}
    if network is model:
        compiled: Any = torch.compile(model, dynamic=False, options=options)
        assert isinstance(compiled, nn.Module)
        return compiled
    network.compile(dynamic=False, options=options)  # in place: ``gradient_sync`` checks its class
    return network


class Graphed(nn.Module):
    """A model that replays training from a CUDA graph for each shape of ``batches``.

    The same kernels run, but one call launches them instead of hundreds. Other shapes, such as the
    last batch of an epoch, use the plain model.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Tensor], precision: str) -> None:
        super().__init__()
        self.model = model
        self.replays: dict[torch.Size, Callable[[Tensor], Tensor]] = {}
        half = HALF.get(precision, torch.float16)
        # No cache: the graph would replay autocast's cached copies of old weights.
        with torch.autocast("cuda", half, enabled=precision in HALF, cache_enabled=False):
            for images in batches:
                torch.cuda.make_graphed_callables(model, (images,), allow_unused_input=True)
                self.replays[images.shape] = model.forward  # put there by make_graphed_callables
                del model.forward

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        return self.replays.get(images.shape, self.model)(images)


def _sizes(job: "Job") -> list[int]:
    """The sizes of the micro-batches that the network will get; that of a full batch is first."""
    sizes, shares = [], Shares(rank(), world_size())
    for batch_size in job.train_loader.sizes():
        low, high = share_of(batch_size, shares.rank, shares.ranks)
        images, accumulate = torch.empty(max(high - low, 1)), job.config.train.accumulate
        pieces = in_micro_batches(images, images, batch_size, accumulate, shares)
        sizes += [len(piece[0]) for piece in pieces]
    return list(dict.fromkeys(sizes))


def _batch(job: "Job", subset: Subset, size: int) -> tuple[Tensor, Tensor]:
    """``size`` images and labels, two repeated, with the device and layout of a step."""
    images, labels = subset.sample(subset.extremes[:2])
    rows = torch.arange(size) % len(images)
    images, labels = images[rows].to(job.device), labels[rows].to(job.device)
    if job.train_loader.delivery.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, labels


def _rehearse(job: "Job", network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Forward and backward passes without a step; three on a GPU, where later ones do more."""
    for _ in range(3 if job.device.type == "cuda" else 1):
        with job.precision.autocast():
            logits = network(images).float()
        job.loss_fn(logits, labels).backward()


def _reason(config: Config, key: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if key == "compile" and any(sign in str(error) for sign in COMPILERS):
        return (
            "needs a C++ compiler and Python's headers, and PyTorch found none that works. Install "
            "them (Debian: apt install g++ python3-dev; macOS: xcode-select --install), or write "
            f"train.compile=false. It says: {reason}"
        )
    off = "fp32" if key == "precision" else "false"
    return f"does not go with {config.model.name}; write train.{key}={off}. PyTorch says: {reason}"
