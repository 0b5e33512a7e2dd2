"""Connects the ranks of a run that torchrun starts: ranks, common errors, collectives.

Only rank 0 prints and writes. With one process an action only runs; nothing is sent.
"""

import hashlib
import itertools
import os
import pickle
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from datasets import DataError
from trainer.process.errors import ProcessFailed, RunError, Stopped, in_plain_words
from trainer.process.launch import RANK, WORLD_SIZE, is_one_of_several
from trainer.process.stop import StopRequest

Item = TypeVar("Item")
Returned = TypeVar("Returned")
PATIENCE = 600  # seconds in which all ranks must have connected
FAILURE = "failure"  # the store's key for the reason why a rank failed
COMMON = "is_common"  # an attribute of errors that every rank raises
# The messages of gloo, NCCL and the store when another rank is gone.
GONE = "gloo|NCCL|onnection (closed|reset|refused)|Broken pipe|recvValue failed|Timed out waiting"


class _Ways:
    """The store and the group for messages between ranks: in main memory, never on a GPU."""

    store: Any = None
    host: Any = None  # None: the default group is gloo's
    asked: tuple[dist.Work, Tensor] | None = None  # an all-reduce under way


def world_size() -> int:
    """The number of ranks; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is rank 0, which prints and writes."""
    return rank() == 0


@contextmanager
def joined(on_gpu: bool, stop: StopRequest) -> Iterator[None]:
    """Context manager: inside, the ranks are connected. With one process it does nothing.

    ``on_gpu``: send gradients by NCCL if there is a GPU; else by gloo. An error that every rank
    raises passes through. A rank that fails alone raises ProcessFailed with its error's text; the
    ranks that wait for it raise ProcessFailed too.
    """
    if not is_one_of_several():
        yield
        return
    cuda = on_gpu and torch.cuda.is_available()
    meeting: Future[None] = Future()
    # In a thread: meanwhile this one handles signals, and it is not blocked by a missing rank.
    threading.Thread(target=meet, args=(cuda, meeting), daemon=True).start()
    end = time.monotonic() + PATIENCE
    while not meeting.done():
        if time.monotonic() > end:
            raise ProcessFailed(
                f"rank {os.environ[RANK]}: not all of the {os.environ[WORLD_SIZE]} processes came "
                f"to {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} in {PATIENCE // 60} "
                "minutes."
            )
        time.sleep(0.01)
    if error := meeting.exception():
        raise ProcessFailed(f"the processes did not find each other: {error}") from None
    stop.agree = agreed
    try:
        yield
        dist.barrier(_Ways.host)
        dist.destroy_process_group()
    except Exception as error:
        if is_common(error) or isinstance(error, ProcessFailed):
            raise
        raise as_process_failure(error) from error
    finally:
        stop.agree = int
        _Ways.asked = None


def meet(cuda: bool, meeting: "Future[None]") -> None:
    """Connect to the other ranks and make the process groups; for a thread of its own."""
    try:
        store, number, count = next(rendezvous("env://"))
        store = of_this_start(store, number, count)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count)
        _Ways.store, _Ways.host = store, dist.new_group(backend="gloo") if cuda else None
        meeting.set_result(None)
    except Exception as error:
        meeting.set_exception(error)


def of_this_start(store: Any, number: int, count: int) -> Any:
    """A view of torchrun's store with keys of this start's processes only.

    torchrun keeps one store while it restarts its processes, and PyTorch does not distinguish the
    starts: a rank would connect to the address of a dead process. Therefore each rank writes a
    random id; rank 0 collects the ids, and sets "go" after all ranks have found theirs there.
    """
    me = uuid.uuid4().hex
    store.set(f"here/{number}", me)
    while True:
        if number == 0:
            here = ",".join(str(store.get(f"here/{n}"), "ascii") for n in range(count))
            store.set("here", here)
        else:
            here = str(store.get("here"), "ascii")
        if me in here:
            start = PrefixStore(hashlib.sha256(here.encode()).hexdigest(), store)
            start.set(f"seen/{number}", "")
            if number == 0 and start.check([f"seen/{n}" for n in range(count)]):
                start.set("go", "")
            if start.check(["go"]):
                return start
        time.sleep(0.02)


def as_process_failure(error: Exception) -> ProcessFailed:
    """Turn ``error`` into the ProcessFailed with which this rank exits.

    If the error only says that another rank is gone, report that rank's reason.
    """
    plain = in_plain_words(error)
    if isinstance(plain, ProcessFailed):
        return plain
    if isinstance(error, dist.DistError) or re.search(GONE, str(error)):
        time.sleep(0.2)  # the rank that failed may be about to write its reason
        why = _word_of_failure() or "one was killed, or its machine is gone"
        return ProcessFailed(f"the other processes ended: {why}", is_own=False)
    failed = ProcessFailed(f"rank {rank()} failed: {str(plain) or type(plain).__name__}")
    for note in getattr(error, "__notes__", ()):
        failed.add_note(note)
    if _Ways.store is not None:
        with suppress(RuntimeError):
            _Ways.store.set(FAILURE, str(failed))
    return failed


def _word_of_failure() -> str:
    with suppress(RuntimeError):
        if _Ways.store is not None and _Ways.store.check([FAILURE]):
            return str(_Ways.store.get(FAILURE), errors="replace")
    return ""


def on_main(action: Callable[[], Returned]) -> Returned:
    """Run ``action`` on rank 0 and return its result, or raise its error, on every rank."""
    if world_size() == 1:
        return action()
    outcome: list[Any] = [None]
    if is_main():
        try:
            outcome = [(action(), None)]
        except Stopped as stopped:
            outcome = [(None, stopped)]
        except Exception as error:
            outcome = [(None, _sendable(error))]
    dist.broadcast_object_list(outcome, src=0, group=_Ways.host)
    result, failure = outcome[0]
    if failure is not None:
        raise mark_common(failure)
    answer: Returned = result
    return answer


def on_every_rank(action: Callable[[], Returned]) -> Returned:
    """Run ``action`` on every rank, return the local result; all raise if it fails on any rank."""
    if world_size() == 1:
        return action()
    results: list[Returned] = []
    error: Exception | None = None
    try:
        results.append(action())
    except Exception as raised:
        error = raised
    failures: list[str | None] = [None] * world_size()
    message = None if error is None else str(in_plain_words(error)) or type(error).__name__
    dist.all_gather_object(failures, message, group=_Ways.host)
    if error is not None:
        if all(failure is not None for failure in failures):
            raise mark_common(error)
        raise error
    for number, failure in enumerate(failures):
        if failure is not None:
            raise ProcessFailed(f"rank {number} failed: {failure}", is_own=False)
    return results[0]


def _sendable(error: Exception) -> BaseException:
    """The error in plain words, or one with its text if it cannot be pickled."""
    plain = in_plain_words(error)
    try:
        pickle.loads(pickle.dumps(plain))  # noqa: S301 - our own, pickled just now
        return plain
    except Exception:
        kind = next((k for k in (DataError, RunError) if isinstance(plain, k)), RunError)
        return kind(str(plain))


def agreed(mine: int) -> int:
    """The largest number that any rank gave in the previous call; every rank must call it.

    This call's all-reduce is read in the next call: no step waits for it.
    """
    before = 0
    if _Ways.asked is not None:
        work, answer = _Ways.asked
        work.wait()
        before = int(answer)
    answer = torch.tensor([mine])
    work = dist.all_reduce(answer, dist.ReduceOp.MAX, group=_Ways.host, async_op=True)
    _Ways.asked = work, answer
    return before


def added_up(loss: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Both numbers summed over the ranks."""
    if world_size() == 1:
        return loss, correct
    both = torch.stack((loss.detach(), correct.to(loss.dtype)))
    dist.all_reduce(both)
    return both[0], both[1]


def is_true_everywhere(mine: bool) -> bool:
    """Whether ``mine`` is true on every rank; all must call it."""
    if world_size() == 1:
        return mine
    answer = torch.tensor([int(mine)])
    dist.all_reduce(answer, dist.ReduceOp.MIN, group=_Ways.host)
    return bool(answer)


def gathered(batches: list[Item]) -> list[Item]:
    """The batches of all ranks in order on rank 0, else none. Rank k % world_size has batch k."""
    if world_size() == 1:
        return batches
    all_batches: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(batches, all_batches, group=_Ways.host)
    if all_batches is None:
        return []
    rounds = itertools.zip_longest(*all_batches)
    return [batch for one_round in rounds for batch in one_round if batch is not None]


def mark_common(error: Exception) -> Exception:
    """Mark and return ``error``, which every rank raises at the same place."""
    setattr(error, COMMON, True)
    return error


def agree_on_error(error: Exception) -> Exception:
    """Mark ``error`` as common to all ranks if every rank reports it within 30 s, and return it.

    Reports go through the rendezvous store, because a rank that did not fail may be blocked in a
    gradient all-reduce.
    """
    if world_size() > 1:
        everyone = range(world_size())
        _Ways.store.set(f"alike/{rank()}", "")
        with suppress(RuntimeError):
            _Ways.store.wait([f"alike/{n}" for n in everyone], timedelta(seconds=30))
            mark_common(error)
            _Ways.store.set(f"heard/{rank()}", "")
            if is_main():  # the store may end with this process
                _Ways.store.wait([f"heard/{n}" for n in everyone], timedelta(seconds=5))
    return error


def is_common(error: Exception) -> bool:
    """Whether every rank raises this error; with one process always True."""
    return world_size() == 1 or hasattr(error, COMMON)
