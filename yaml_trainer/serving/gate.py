"""What every request passes: whose browser may ask, what an answer's headers say, and counting."""

import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yaml_trainer.serving.metrics import Counts

BATCH = "x-batch"  # the header that tells how many images were predicted at once
PREDICT = "/predict"
PATHS = (PREDICT, "/", "/health", "/info", "/metrics")  # counted each; others together
HEADERS = {
    # Nothing is loaded from elsewhere, and nobody's page may hold this one in a frame.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Gate:
    """An ASGI application around another one.

    names: those by which a browser may ask; None if any. A page of another site may be told that
    its own name is this machine (DNS rebinding): then the name in Host is that site's.
    """

    def __init__(self, app: ASGIApp, names: tuple[str, ...] | None, counts: Counts) -> None:
        self.app, self.names, self.counts = app, names, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 to a foreign page, and pass on what else comes."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, path = time.perf_counter(), scope["path"]

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                counted = path if path in PATHS else "other"
                self.counts.answers[counted, message["status"]] += 1
                if size := headers.get(BATCH):
                    self.counts.images.add(int(size))
                if path == PREDICT and message["status"] == 200:
                    self.counts.seconds.add(time.perf_counter() - begun)
            await send(message)

        app = self.app
        if why := foreign(Headers(scope=scope), scope["method"], self.names):
            app = JSONResponse({"detail": why}, 403)
        await app(scope, receive, sending)


def foreign(headers: Headers, method: str, names: tuple[str, ...] | None) -> str:
    """Why a request is of another site's page; "" if it is not."""
    host = headers.get("host", "")
    if names is not None and _name_of(host) not in names:
        known = ", ".join(names)
        more = "python -m trainer.serve --name HOST gives it another name"
        return f"this server is not {host[:200]!r}; it answers to {known} ({more})"
    origin = headers.get("origin")
    if origin is not None and _place_of(origin) != host.lower():
        return f"a page of {origin[:200]!r} may not ask this server"
    if method == "POST" and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return "a page of another site may not ask this server"
    return ""


def _place_of(origin: str) -> str | None:
    """The name and the port of an Origin header, in small letters; None if it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _name_of(host: str) -> str | None:
    """The name in a Host header, in small letters without the port; None if it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
