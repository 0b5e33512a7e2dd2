"""Bounds a request's head, which uvicorn reads without an end: its bytes, and its seconds."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST = 64 * 1024  # bytes besides the body: of the head, of a chunk's line, of what follows a body
TOO_LARGE = b'{"detail":"the head of the request is larger than 65,536 bytes"}'
ANSWER = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(TOO_LARGE), TOO_LARGE)
)


class Bounded(HttpToolsProtocol):
    """One connection. seconds: how long the head of a request may take, from the connection on.

    A head that is too large gets status 431; one that does not end is not answered. Both times the
    connection is closed.
    """

    def __init__(self, *arguments: Any, seconds: float, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._seconds = seconds
        self._size = 0  # bytes since the last that was understood as a whole
        self._alarm: asyncio.TimerHandle | None = None
        self._is_in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._set_alarm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._unset_alarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come, unless what has not ended is too large by then."""
        self._size += len(data)
        super().data_received(data)
        if self._size > MOST and not self.transport.is_closing():
            if self._is_in_head:
                self.transport.write(ANSWER)
            self.transport.close()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_in_head = True
        self._set_alarm()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._is_in_head, self._size = False, 0
        self._unset_alarm()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """The line that begins a chunk is there."""
        self._size = 0

    def on_body(self, body: bytes) -> None:
        """A piece of the body, whose size ``read_upload`` bounds."""
        self._size = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        self._size = 0
        super().on_message_complete()

    def _set_alarm(self) -> None:
        self._unset_alarm()
        self._alarm = self.loop.call_later(self._seconds, self.transport.close)

    def _unset_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
