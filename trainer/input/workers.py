"""Worker processes that read batches ahead, their signals and limits, and the copy to a GPU."""

import errno
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import active_children
from multiprocessing.queues import Queue
from multiprocessing.util import get_temp_dir
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from datasets import DataError, temporary
from trainer.input.subset import Subset, to_device
from trainer.process.errors import (
    LIMITS,
    ComponentError,
    RunError,
    WorkerDied,
    in_plain_words,
    limit_met,
)
from trainer.process.quit import SIGNALS

Request = tuple[Tensor, int]  # the rows of a batch, and the epoch
FILES = 8  # open files that each worker takes at least: pipes, shared memory
REFUSED = 100  # exit code of a worker minus the error number of what the system refused to it


class Workers:
    """``count`` processes that read batches of ``subset``, from the first ``read`` to ``close``."""

    def __init__(self, subset: Subset, count: int, device: torch.device) -> None:
        self.subset, self.count, self.device = subset, count, device
        self._requests: list[tuple[NDArray[np.int64], int]] = []
        self._worker_loader: DataLoader[Any] | None = None
        self._end_workers: Callable[[], None] = lambda: None

    @property
    def are_running(self) -> bool:
        """Whether the processes were started."""
        return self._worker_loader is not None

    def read(self, requests: list[Request]) -> Iterator[Any]:
        """What ``Subset.read`` gives for each request, on the device."""
        if self._worker_loader is None:
            # Workers inherit it. One that is killed would leave a folder of its own behind.
            temporary.begin(Path(get_temp_dir()))
            self._worker_loader = DataLoader(
                _Reading(self.subset),
                sampler=self._requests,
                batch_size=None,
                num_workers=self.count,
                persistent_workers=True,
                worker_init_fn=prepare_worker,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # without it, an iterator draws from the global one
            )
            self._end_workers = weakref.finalize(self, end_workers, self._worker_loader)
        # DataLoader takes any iterable as its sampler. A tensor would be sent as an open file.
        self._requests[:] = [(rows.numpy(), epoch) for rows, epoch in requests]
        return copied_ahead(from_workers(self._worker_loader), self.device)

    def close(self) -> None:
        """End the processes; the next ``read`` starts new ones."""
        self._worker_loader = None
        self._end_workers()


def copied_ahead(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """What workers have read, on ``device``. A GPU copies the next batch while it works on one.

    Raises a DataError that comes instead of a batch.
    """
    if device.type != "cuda":
        yield from map(_checked, batches)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copies() -> Iterator[tuple[Any, Tensor]]:
        for images, labels in map(_checked, batches):
            with torch.cuda.stream(stream):
                copied = to_device(images, device), to_device(labels, device)
            yield copied  # not inside: the reader would go on in the copies' stream

    following = copies()
    ahead = next(following, None)
    while ahead is not None:
        images, labels = ahead
        working = torch.cuda.current_stream(device)
        working.wait_stream(stream)
        for tensor in (*(images if isinstance(images, list) else [images]), labels):
            tensor.record_stream(working)  # its memory is not free before the work is done
        ahead = next(following, None)
        yield images, labels


def _checked(batch: Any) -> Any:
    if isinstance(batch, DataError | ComponentError):
        raise batch
    return batch


def end_workers(worker_loader: DataLoader[Any]) -> None:
    """End the workers, which ignore SIGTERM: Python's exit would wait for them forever."""
    iterator: Any = worker_loader._iterator
    if iterator is not None:
        iterator._shutdown_workers()
        for worker in iterator._workers:
            if worker.is_alive():
                worker.kill()


def from_workers(worker_loader: DataLoader[Any]) -> Iterator[Any]:
    """What the workers read; raises WorkerDied, between two steps, if a worker ended.

    DataLoader's own signal handler would raise in the middle of a step, which would then be neither
    done nor undone.
    """
    handler = None
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and hasattr(signal, "SIGCHLD"):
        handler = signal.getsignal(signal.SIGCHLD)
        if getattr(handler, "__module__", "").startswith("torch."):  # another DataLoader left it
            handler = signal.SIG_DFL
    try:
        batches = iter(worker_loader) if worker_loader._iterator else start_workers(worker_loader)
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:
        iterator: Any = worker_loader._iterator
        workers = iterator._workers if iterator else []
        patience = time.monotonic() + isinstance(error, EOFError | ConnectionError)
        while not (dead := [str(worker.pid) for worker in workers if not worker.is_alive()]):
            if time.monotonic() >= patience:
                break
            time.sleep(0.001)  # a process that ends closes its connections before it is gone
        if not dead and limit_met(error) != errno.EMFILE:
            raise
        ends = [worker.exitcode or 0 for worker in workers] if dead else [REFUSED + errno.EMFILE]
        if refused := [end - REFUSED for end in ends if end > REFUSED]:
            raise too_many(worker_loader.num_workers, refused[0]) from None
        raise WorkerDied(
            f"the worker process {', '.join(dead)} ended by itself. Where memory ran out, fewer "
            "loader.workers or a smaller loader.batch_size help."
        ) from error


def start_workers(worker_loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the workers. If the system refuses one, end those that began and raise RunError."""
    others, held = active_children(), list[int]()
    try:
        allow_open_files()
        for _ in range(FILES * worker_loader.num_workers):
            held.append(os.dup(2))
        while held:
            os.close(held.pop())
        return iter(worker_loader)
    except (RuntimeError, OSError) as error:
        for descriptor in held:
            os.close(descriptor)
        for worker in set(active_children()) - set(others):
            worker.kill()
            worker.join()
        if (number := limit_met(error)) is None:
            raise
        raise too_many(worker_loader.num_workers, number) from None


def allow_open_files() -> None:
    """Raise this process's own limit of open files to what the system allows it."""
    if sys.platform != "win32":
        import resource

        with suppress(OSError, ValueError):
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def too_many(count: int, number: int) -> RunError:
    """The error for ``count`` workers that take more than the system gives."""
    return RunError(
        f"loader.workers={count} takes more than the system gives: {os.strerror(number)}. Set "
        f"fewer (0 needs none of it), or {LIMITS[number]}."
    )


def prepare_worker(worker: int) -> None:
    """Ignore signals to the whole process group: the trainer stops its workers itself.

    What the system refuses to this worker ends it with an exit code that says so.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = quiet_where_the_trainer_hangs_up
    put = Queue.put

    def put_or_give_up(*arguments: Any) -> None:
        try:
            put(*arguments)
        except RuntimeError as error:  # its thread cannot be started
            give_up(error)
            raise

    Queue.put = put_or_give_up  # type: ignore
    Queue._on_queue_feeder_error = staticmethod(lose_no_batch)  # type: ignore


def give_up(error: BaseException) -> None:
    """End this worker if the system refused it something: the trainer would wait for ever."""
    if number := limit_met(error):
        os._exit(REFUSED + number)


def lose_no_batch(error: BaseException, batch: Any) -> None:
    """End this worker if its thread cannot send a batch: the trainer would wait for it for ever."""
    give_up(error)
    traceback.print_exception(error)
    os._exit(1)


def quiet_where_the_trainer_hangs_up(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an error of a worker's own threads, except a lost connection to the trainer.

    The trainer drops connections when another worker died. DataLoader itself reports read errors.
    """
    if not issubclass(kind, EOFError | ConnectionError):
        give_up(error)
        sys.__excepthook__(kind, error, trace)


class _Reading(torch.utils.data.Dataset[Any]):
    """A subset as DataLoader reads it: one item is a whole batch, read but not finished.

    A DataError or ComponentError is returned: DataLoader would add a traceback to a raised one.
    """

    def __init__(self, subset: Subset) -> None:
        self.subset = subset

    def __getitem__(self, request: tuple[NDArray[np.int64], int]) -> Any:
        rows, epoch = request
        try:
            images, labels = self.subset.read(torch.from_numpy(rows), epoch)
            if isinstance(images, list):  # copies: a kept image that is shared takes an open file
                return [image.clone().share_memory_() for image in images], labels.share_memory_()  # type: ignore
            return images.share_memory_(), labels.share_memory_()  # type: ignore
        except DataError as error:
            return error
        except (Exception, SystemExit) as error:  # the trainer could not see where it was raised
            if isinstance(error, RuntimeError | OSError):
                give_up(error)
            plain = in_plain_words(error)
            if isinstance(plain, ComponentError):
                return plain
            raise
