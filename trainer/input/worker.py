"""What a worker process does, and how tensors get from it to the trainer: in shared memory."""

import io
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from trainer.process.errors import KNOWN, in_plain_words, limit_met
from trainer.process.quit import SIGNALS

Request = tuple[int, ...]  # short: a pipe holds many, so that sending one never waits
ALIGNED = 64  # bytes: a tensor in shared memory begins at a multiple, as one of PyTorch's does


@dataclass(frozen=True)
class Refused:
    """What takes the place of a result: the error that reading it raised."""

    error: BaseException


def work(
    rerun: object,
    read: Callable[[Request], Any],
    warm_up: Callable[[], None],
    own: Connection,
    inherited: list[Connection],
    pieces: Sequence[Tensor],
) -> None:
    """Answer requests (piece of memory, request) from ``own`` until the trainer closes it.

    Signals go to the whole process group, and are ignored: the trainer ends its workers itself.
    rerun came first, so that own components are here before their objects. warm_up is called first.
    inherited: the trainer's ends of pipes. They are closed, so that its
    end is seen here.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for connection in inherited:
        connection.close()
    torch.set_num_threads(1)
    with suppress(Exception):  # the request that meets the same error tells of it
        warm_up()
    while True:
        try:
            number, request = own.recv()
        except (EOFError, ConnectionError):
            return
        content = _content(read, request, pieces[number])
        try:
            own.send_bytes(content)
        except ConnectionError:
            return


def _content(read: Callable[[Request], Any], request: Request, piece: Tensor) -> bytes:
    try:
        return packed(read(request), piece)
    except (Exception, SystemExit) as error:  # the trainer could not see where it was raised
        plain = error if limit_met(error) else in_plain_words(error)
        if isinstance(plain, SystemExit):
            raise
        if not isinstance(plain, KNOWN):
            plain.add_note(traceback.format_exc())
        return packed(Refused(plain), piece)


def packed(result: Any, piece: Tensor) -> bytes:
    """``result`` as bytes; its tensors lie in ``piece`` as far as they fit."""
    content = io.BytesIO()
    _Packing(content, piece).dump(result)
    return content.getvalue()


def unpacked(content: bytes, piece: Tensor) -> Any:
    """The result whose ``packed`` bytes are ``content``. Its tensors are views of ``piece``."""
    return _Unpacking(content, piece).load()


class _Packing(pickle.Pickler):
    """Writes a tensor into the piece of memory, and only its place into the file.

    A tensor that does not fit is written into the file. Either way the order of its dimensions in
    memory stays: channels first or last.
    """

    def __init__(self, file: io.BytesIO, piece: Tensor) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._piece, self._used = piece, 0

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return None
        order = sorted(range(obj.ndim), key=obj.stride, reverse=True)
        places, inner = [order.index(i) for i in range(obj.ndim)], obj.detach().permute(order)
        begin, end = self._used, self._used + obj.nbytes
        if end > len(self._piece):
            flat = inner.contiguous().flatten().view(torch.uint8)
            return obj.dtype, inner.shape, places, bytearray(flat.numpy())
        self._piece[begin:end].view(obj.dtype).view(inner.shape).copy_(inner)
        self._used = -(-end // ALIGNED) * ALIGNED
        return obj.dtype, inner.shape, places, begin


class _Unpacking(pickle.Unpickler):
    def __init__(self, content: bytes, piece: Tensor) -> None:
        super().__init__(io.BytesIO(content))
        self._piece = piece

    def persistent_load(self, pid: Any) -> Tensor:
        dtype, shape, places, where = pid
        size = shape.numel() * dtype.itemsize
        if not size:
            return torch.empty(shape, dtype=dtype).permute(places)
        if isinstance(where, int):
            flat = self._piece[where : where + size].view(dtype)
        else:
            flat = torch.frombuffer(where, dtype=dtype)
        return flat.view(shape).permute(places)
