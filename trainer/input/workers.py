"""Worker processes that read ahead, into memory that they share with this process."""

import mmap
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch import Tensor

from trainer.components.own import Rerun
from trainer.input.subset import to_device
from trainer.input.worker import Refused, Request, unpacked, work
from trainer.process.errors import LIMITS, RunError, WorkerDied, limit_met
from trainer.process.quit import SIGNALS

AHEAD = 2**25  # bytes that a worker reads ahead; at least 2 results, at most 8
MOST = 2**29  # bytes that all workers read ahead; at least one result each


@dataclass(eq=False)
class _Sent:
    """A request that a worker has, the piece of memory for its result, and the result."""

    request: Request
    piece: int
    is_wanted: bool = True
    is_read: bool = False
    result: Any = None


def nothing() -> None:
    """Do nothing."""


class Workers:
    """``count`` processes that call ``read`` ahead, from here on until ``close``.

    read is called in a worker with a request; its result is made of lists, tuples, numbers and CPU
    tensors. Results whose tensors take up to ``size`` bytes are handed over in shared memory;
    larger ones come through a pipe, which is slower. Each worker calls ``warm_up`` first. Raises
    RunError if the system refuses processes.
    """

    def __init__(
        self,
        read: Callable[[Request], Any],
        count: int,
        device: torch.device,
        size: int,
        warm_up: Callable[[], None] = nothing,
    ) -> None:
        self.device = device
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        number, size = _cut_memory(count, size)
        is_forked = context.get_start_method() == "fork"
        if is_forked:  # it has no name and no file: nothing can be left behind
            self._memory = torch.frombuffer(mmap.mmap(-1, number * size), dtype=torch.uint8)
        else:
            self._memory = torch.empty(number * size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._pieces = self._memory.chunk(number)
        self._unused = list(range(number))[::-1]
        self._lent: int | None = None  # the piece of the result that was yielded last
        self._ahead: deque[_Sent] = deque()  # in the order in which results are asked for
        self._at_work: list[deque[_Sent]] = [deque() for _ in range(count)]  # what each worker has
        self._processes: list[Any] = []
        self._connections: list[Any] = []
        pinned: list[Tensor] = []
        # At the latest before multiprocessing waits for its processes, which ignore SIGTERM.
        ends = (self._processes, self._connections, pinned)
        self.close = Finalize(self, _end, ends, exitpriority=10)
        try:
            for _ in range(count):
                own, its = context.Pipe()
                self._connections.append(own)
                inherited = self._connections if is_forked else []
                process = context.Process(
                    target=work,
                    args=(Rerun(), read, warm_up, its, inherited, self._pieces),
                    daemon=True,
                )
                with signals_held():
                    process.start()
                self._processes.append(process)
                its.close()  # the worker alone has it: if it ends, that is seen
        except OSError as error:
            self.close()
            if (refused := limit_met(error)) is None:
                raise
            raise too_many(count, refused) from None
        if device.type == "cuda":
            runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            place, length = self._memory.data_ptr(), self._memory.nbytes
            if int(runtime.cudaHostRegister(place, length, 0)) == 0:
                pinned.append(self._memory)  # else copies to the GPU are slower

    def read(self, requests: Sequence[Request], following: Sequence[Request] = ()) -> Iterator[Any]:
        """What ``read`` gives for each request: (images, labels) on a GPU, or anything on the CPU.

        On the CPU its tensors lie in shared memory, which is written again when the next result is
        asked for: see ``own``. At the end, ``following`` is read ahead for the next call. Raises
        what ``read`` raises, and WorkerDied if a worker has ended.
        """
        return copied_ahead(self._read([*requests, *following], len(requests)), self.device)

    def begin(self, requests: Sequence[Request]) -> None:
        """Let the workers begin with these requests, which the next ``read`` may begin with."""
        deque(self._read(list(requests), 0), 0)

    def own(self, tensor: Tensor) -> Tensor:
        """``tensor``, or a copy if it lies in the memory that is shared with the workers."""
        is_here = tensor.untyped_storage().data_ptr() == self._memory.data_ptr()
        return tensor.clone() if is_here else tensor

    def _read(self, requests: list[Request], count: int) -> Iterator[Any]:
        self._take_back()
        if [sent.request for sent in self._ahead] != requests[: len(self._ahead)]:
            self._drop_all()
        left = deque(requests[len(self._ahead) :])
        for _ in range(count):
            self._send(left)
            while not (self._ahead and self._ahead[0].is_read):  # empty: all is still dropped
                self._receive()
                self._send(left)
            sent = self._ahead.popleft()
            self._lent, result = sent.piece, sent.result
            if isinstance(result, Refused):
                number = limit_met(result.error)
                raise too_many(len(self._processes), number) if number else result.error
            yield result
            self._take_back()
        self._send(left)

    def _send(self, left: deque[Request]) -> None:
        """Send requests as long as there is room for results, to the workers with least to do."""
        if self._unused and left:
            self._receive(0)
        while self._unused and left:
            worker = min(range(len(self._at_work)), key=lambda w: len(self._at_work[w]))
            sent = _Sent(left.popleft(), self._unused.pop())
            with self._all_alive():
                self._connections[worker].send((sent.piece, sent.request))
            self._at_work[worker].append(sent)
            self._ahead.append(sent)

    def _receive(self, timeout: float | None = None) -> None:
        """Take what workers have sent; wait for the first."""
        with self._all_alive():
            for connection in wait(self._connections, timeout):
                worker = self._connections.index(connection)
                content = self._connections[worker].recv_bytes()
                sent = self._at_work[worker].popleft()
                if sent.is_wanted:
                    sent.result, sent.is_read = unpacked(content, self._pieces[sent.piece]), True
                else:
                    self._unused.append(sent.piece)

    def _take_back(self) -> None:
        if self._lent is not None:
            self._unused.append(self._lent)
            self._lent = None

    def _drop_all(self) -> None:
        """Give up what was sent ahead, because other requests come."""
        for sent in self._ahead:
            sent.is_wanted = False
            if sent.is_read:
                self._unused.append(sent.piece)
        self._ahead.clear()

    @contextmanager
    def _all_alive(self) -> Iterator[None]:
        """Context manager: a lost connection becomes WorkerDied."""
        try:
            yield
        except (EOFError, ConnectionError) as error:
            patience = time.monotonic() + 1
            while not (dead := [str(p.pid) for p in self._processes if not p.is_alive()]):
                if time.monotonic() >= patience:
                    raise
                time.sleep(0.001)  # a process that ends closes its connections before it is gone
            raise WorkerDied(
                f"the worker process {', '.join(dead)} ended by itself. Where memory ran out, "
                "fewer loader.workers or a smaller loader.batch_size help."
            ) from error


@contextmanager
def signals_held() -> Iterator[None]:
    """Context manager: signals that end a run wait until the end of the body.

    Python calls functions of its own around a fork, and drops what a handler raises there.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cut_memory(count: int, size: int) -> tuple[int, int]:
    """The number of pieces of shared memory for ``count`` workers, and the bytes of each."""
    size = max(-(-size // mmap.PAGESIZE), 1) * mmap.PAGESIZE
    each = min(max(AHEAD // size, 2), 8)
    return max(min(count * each, MOST // size), count) + 1, size  # one is in use


def _end(processes: list[Any], connections: list[Any], pinned: list[Tensor]) -> None:
    """End workers, which ignore SIGTERM: Python's exit would wait for them for ever."""
    for memory in pinned:
        torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())  # type: ignore[no-untyped-call]
    for connection in connections:
        connection.close()
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def too_many(count: int, number: int) -> RunError:
    """The error for ``count`` workers that take more than the system gives."""
    return RunError(
        f"loader.workers={count} takes more than the system gives: {os.strerror(number)}. Set "
        f"fewer (0 needs none of it), or {LIMITS[number]}."
    )


def copied_ahead(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Batches (images, labels) on ``device``. A GPU copies the next one while it works on one.

    A batch is copied to a GPU before the one after it is asked for. Elsewhere batches stay where
    they are.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copies() -> Iterator[tuple[Any, Tensor]]:
        for images, labels in batches:
            with torch.cuda.stream(stream):
                copied = to_device(images, device), to_device(labels, device)
            yield copied  # not inside: the reader would go on in the copies' stream
            stream.synchronize()  # it began a step ago; its source may be overwritten from here on

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
