"""Several processes that train one model, as torchrun starts them: who is who, and what they share.

A batch is cut among them, gradient and loss are added up, a split is judged by all; the main one
(rank 0) alone speaks and writes. With one process nothing here does anything.
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
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from datasets import DataError
from models.freeze import train_mode
from trainer.config import Config
from trainer.errors import ProcessFailed, RunError, Stopped, in_plain_words
from trainer.launch import RANK, WORLD_SIZE, is_one_of_several
from trainer.sharding import is_sharded, synchronise
from trainer.stop import StopRequest

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = 600  # seconds in which all processes must have come
FAILURE = "failure"  # under this name a process leaves word of what it failed with
EVERYWHERE = "everywhere"  # an attribute of errors that all processes have met
NOTHING: AbstractContextManager[None] = nullcontext()
# How gloo, NCCL and the store say that somebody is gone.
GONE = "gloo|NCCL|onnection (closed|reset|refused)|Broken pipe|recvValue failed|Timed out waiting"


class _Ways:
    """How the processes speak beside the gradients: through main memory, never through a GPU."""

    store: Any = None
    host: Any = None  # None: the default group is gloo's
    asked: tuple[dist.Work, Tensor] | None = None  # a question under way


def world_size() -> int:
    """The number of processes; 1 where none was asked for."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that speaks and writes."""
    return rank() == 0


@contextmanager
def joined(config: Config, stop: StopRequest) -> Iterator[None]:
    """Meet the other processes for the time of the body; where there are none, do nothing.

    On GPUs gradients go by NCCL, else by gloo. What all processes fail with alike passes through.
    One that fails alone ends with ProcessFailed, which tells its own error; so do those that wait
    for it.
    """
    if not is_one_of_several():
        yield
        return
    cuda = config.train.device in ("auto", "cuda") and torch.cuda.is_available()
    meeting: Future[None] = Future()
    # In a thread: this one hears signals meanwhile, and is not held where another never comes.
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
        if was_met_by_all(error) or isinstance(error, ProcessFailed):
            raise
        raise alone(error) from error
    finally:
        stop.agree = int
        _Ways.asked = None


def meet(cuda: bool, meeting: "Future[None]") -> None:
    """Find the other processes, and make the groups over which they speak."""
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
    """The part of torchrun's store that belongs to the processes of this start.

    torchrun keeps one store while it starts processes again, and PyTorch does not tell starts
    apart: a process would look for another at the address of one that is dead. So each writes who
    it is; the first collects that, and says so once all have seen themselves in it.
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


def alone(error: Exception) -> ProcessFailed:
    """What a process ends with that met an ``error`` by itself, or was left by another."""
    told = in_plain_words(error)
    if isinstance(told, ProcessFailed):
        return told
    if isinstance(error, dist.DistError) or re.search(GONE, str(error)):
        time.sleep(0.2)  # who failed may be about to say so
        why = _word_of_failure() or "one was killed, or its machine is gone"
        return ProcessFailed(f"the other processes ended: {why}", is_own=False)
    failed = ProcessFailed(f"rank {rank()} failed: {str(told) or type(told).__name__}")
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


def on_main(action: Callable[[], Result]) -> Result:
    """What ``action`` gives or raises, done by the main process and told to all."""
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
        raise met_by_all(failure)
    answer: Result = result
    return answer


def everywhere(action: Callable[[], Result]) -> Result:
    """What ``action`` gives, done by every process; where it fails in one, none goes on."""
    if world_size() == 1:
        return action()
    result: Result | None = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as raised:
        error = raised
    failures: list[str | None] = [None] * world_size()
    told = None if error is None else str(in_plain_words(error)) or type(error).__name__
    dist.all_gather_object(failures, told, group=_Ways.host)
    if error is not None:
        if all(failure is not None for failure in failures):
            raise met_by_all(error)
        raise error
    for number, failure in enumerate(failures):
        if failure is not None:
            raise ProcessFailed(f"rank {number} failed: {failure}", is_own=False)
    assert result is not None
    return result


def _sendable(error: Exception) -> Exception:
    """The error, or where it cannot be sent to another process, one of like words."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own, of this moment
        return error
    except Exception:
        plain = in_plain_words(error)
        kind = next((k for k in (DataError, RunError) if isinstance(plain, k)), RunError)
        return kind(str(plain))


def agreed(mine: int) -> int:
    """The largest number that any process gave in the call before; every process must ask.

    The answer of this call is looked at in the next one: no step waits for it.
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
    """Both summed over the processes."""
    if world_size() == 1:
        return loss, correct
    both = torch.stack((loss.detach(), correct.to(loss.dtype)))
    dist.all_reduce(both)
    return both[0], both[1]


def gathered(batches: list[Item]) -> list[Item]:
    """The batches of all processes, for the main one: batch k was done by process k % world_size.

    The others get none.
    """
    if world_size() == 1:
        return batches
    all_batches: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(batches, all_batches, group=_Ways.host)
    if all_batches is None:
        return []
    rounds = itertools.zip_longest(*all_batches)
    return [batch for one_round in rounds for batch in one_round if batch is not None]


def from_main(model: nn.Module) -> None:
    """Give every process the main one's weights and buffers."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def buffers_from_main(model: nn.Module) -> None:
    """Give every process the main one's buffers: each has batch norm's statistics of its own.

    Before each training step it happens anyway; judging should see the same.
    """
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def over_processes(model: nn.Module, images: Tensor, device: torch.device) -> nn.Module:
    """The model as training calls it: its gradients become the mean over the processes.

    ``images`` (B, C, H, W) are rehearsed with. PyTorch puts gradients together in the order in
    which the first step found them; done here, a resumed run adds them up as one that went through.
    """
    images = images.to(device)
    buffers = [buffer.clone() for buffer in model.buffers()]
    train_mode(model)
    model(images).sum().backward()
    unused = any(p.grad is None for p in model.parameters() if p.requires_grad)
    shared = DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=unused,
    )
    for _ in range(2):
        shared(images).sum().backward()
    model.zero_grad(set_to_none=True)
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return shared


def met_by_all(error: Exception) -> Exception:
    """The error, which every process meets in this very step."""
    setattr(error, EVERYWHERE, True)
    return error


def met_alike(error: Exception) -> Exception:
    """The error; as one that all meet, where each process says within half a minute that it did.

    It is said in the store: who has not failed may be waiting for gradients, and for no message.
    """
    if world_size() > 1:
        everyone = range(world_size())
        _Ways.store.set(f"alike/{rank()}", "")
        with suppress(RuntimeError):
            _Ways.store.wait([f"alike/{n}" for n in everyone], timedelta(seconds=30))
            met_by_all(error)
            _Ways.store.set(f"heard/{rank()}", "")
            if is_main():  # the store may end with this process
                _Ways.store.wait([f"heard/{n}" for n in everyone], timedelta(seconds=5))
    return error


def was_met_by_all(error: Exception) -> bool:
    """Whether every process has met this error; where there is one only, it has."""
    return world_size() == 1 or hasattr(error, EVERYWHERE)


def averaging(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """In which to go forward: only the ``is_last`` part of a batch speaks with other processes."""
    if is_sharded(model):
        synchronise(model, is_last)
    if is_last or not isinstance(model, DistributedDataParallel):
        return NOTHING
    waiting: AbstractContextManager[None] = model.no_sync()
    return waiting
