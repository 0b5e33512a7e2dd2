"""Reads a request's picture, within limits: no more is read or held than they allow."""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import Message

from yaml_trainer.serving.settings import Serving

HOW = (
    "send the picture's file as the body, with Content-Type: image/jpeg or the like; or as a file "
    'of a form (multipart/form-data); or as JSON {"image": "..."} in base64'
)
FORM, JSON = "multipart/form-data", "application/json"
RAW = ("image/", "application/octet-stream")  # how content types begin whose body is the file


class Upload(NamedTuple):
    """A picture's file. explain: whether a picture of the evidence is wanted too.

    company: how many requests were being read or at work when it was complete, with itself.
    """

    content: bytes
    explain: bool
    company: int

    def __repr__(self) -> str:
        """Without the content, which litserve else writes out for each request, and throws away."""
        return f"Upload({len(self.content)} bytes)"


class Desk:
    """Counts the requests that are read, waiting or at work, and the bytes that they hold."""

    def __init__(self, settings: Serving) -> None:
        self.settings = settings
        self.requests = 0
        self.held = 0  # bytes


async def read_upload(request: Request, explain: bool = False) -> AsyncIterator[Upload]:
    """Yield a request's Upload, and keep its place until it is answered.

    Raises HTTPException: 400 for a body that is not what its type says, 408 if it comes too slowly,
    413 if it is too large, 415 for another type, 429 if too many others are there.
    """
    desk: Desk = request.app.state.desk
    settings = desk.settings
    if desk.requests >= settings.max_queue:
        raise _busy(f"{desk.requests:,} requests are at work or waiting, and no more may (queue)")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > settings.max_bytes:
        raise _too_large(settings.max_bytes)
    desk.requests += 1
    held = 0

    async def limited() -> Message:
        nonlocal held
        message = await request.receive()
        size = len(message.get("body", b""))
        if held + size > settings.max_bytes:
            raise _too_large(settings.max_bytes)
        if desk.held + size > settings.max_held:
            raise _busy("the requests that are being read fill the memory for them")
        held += size
        desk.held += size
        return message

    try:
        try:
            async with asyncio.timeout(settings.timeout):
                content = await _content(Request(request.scope, limited))
        except TimeoutError:
            why = f"the request did not arrive within {settings.timeout} s"
            raise HTTPException(408, why, {"Connection": "close"}) from None
        except ClientDisconnect:  # nobody reads the answer; it is counted
            raise HTTPException(400, "the request ended before its body did") from None
        if not content:
            raise HTTPException(400, f"there is no picture in the request; {HOW}")
        yield Upload(content, explain, desk.requests)
    finally:
        desk.requests -= 1
        desk.held -= held


async def _content(request: Request) -> bytes:
    """The bytes of the picture's file."""
    kind = request.headers.get("content-type", "application/octet-stream").strip().lower()
    if kind.startswith(FORM):
        async with request.form(max_files=1, max_fields=8) as form:
            files = [value for value in form.values() if isinstance(value, UploadFile)]
            return await files[0].read() if files else b""
    if kind.startswith(JSON):
        return _of_json(await request.body())
    if kind.startswith(RAW):
        return await request.body()
    raise HTTPException(415, f"Content-Type {kind[:100]!r} is none of a picture; {HOW}")


def _of_json(body: bytes) -> bytes:
    """The bytes of ``image`` in a JSON object; a data URL's beginning is passed over."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is no JSON: {str(error)[:200]}") from None
    text = found.get("image") if isinstance(found, dict) else None
    if not isinstance(text, str):
        raise HTTPException(400, 'the JSON is not {"image": "..."} with the file in base64')
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(400, f"image is not base64: {str(error)[:200]}") from None


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the request is larger than {limit:,} bytes; the server reads none")


def _busy(why: str) -> HTTPException:
    return HTTPException(429, f"{why}; ask again later", {"Retry-After": "1"})
