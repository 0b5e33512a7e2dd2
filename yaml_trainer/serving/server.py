"""Starts litserve's processes for a run, adds the page and the counts, and ends them again."""

import errno
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from litserve import LitServer
from starlette.responses import JSONResponse, Response

from trainer.process.errors import UsageError, WorkerDied
from yaml_trainer.serving.engine import Classifier
from yaml_trainer.serving.gate import Gate
from yaml_trainer.serving.metrics import TEXT, Counts
from yaml_trainer.serving.protocol import Bounded
from yaml_trainer.serving.settings import Serving
from yaml_trainer.serving.uploads import Desk

TEMPLATES = Path(__file__).parent / "templates"
PAGE = {  # path: file, type
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
CONNECTIONS = 1024  # at once; further ones get status 503
GRACE = 5  # seconds that requests may take to end after a signal
POLL = 0.05  # seconds


def serve(settings: Serving) -> int:
    """Serve until a signal comes; returns the exit code. Prints the address on stderr.

    Raises UsageError if the port cannot be had, WorkerDied if a process of the server ends.
    """
    port = require_port(settings.host, settings.port)
    server = Server(settings)
    stopped: list[int] = []
    this = os.getpid()

    def stop(number: int, frame: object) -> None:
        if os.getpid() != this:  # uvicorn's process has ended well, and sends itself the signal
            os._exit(0)
        if not stopped:
            stopped.append(number)
            server.is_stopping = True
            raise KeyboardInterrupt  # which litserve ends at
        for process in multiprocessing.active_children():  # asked twice
            process.kill()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        server.run(
            host=settings.host,
            port=port,
            num_api_servers=1,
            log_level="error",
            generate_client_file=False,
            limit_concurrency=CONNECTIONS,
            server_header=False,
            http=partial(Bounded, seconds=settings.timeout),
        )
    except (KeyboardInterrupt, EOFError, ConnectionError):
        pass  # before it was ready, or multiprocessing's manager is gone
    except EngineEnded as ended:
        return ended.code
    finally:
        for process in multiprocessing.active_children():
            process.kill()
            process.join(1)
    if server.has_died or not stopped:
        raise WorkerDied("a process of the server died; the lines above may say why.")
    print(f"stopped by {signal.Signals(stopped[0]).name}", file=sys.stderr)
    return 128 + stopped[0]


class EngineEnded(Exception):
    """A process with the model ended before it was ready; code: its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


class Server(LitServer):  # type: ignore[misc]
    """litserve's server with a page, counts, and limits of what is read and who may ask."""

    def __init__(self, settings: Serving) -> None:
        self.facts: Connection
        self.others: list[int] = []  # the processes besides this and uvicorn's
        self.facts, sender = multiprocessing.Pipe(duplex=False)
        self.counts, self.desk = Counts(), Desk(settings)
        classifier = Classifier(settings, sender)
        super().__init__(
            classifier,
            accelerator="cpu",  # the run's own settings choose the device
            workers_per_device=settings.workers,
            timeout=settings.timeout,
            disable_openapi_url=True,  # its page takes scripts from elsewhere
            middlewares=[(Gate, {"names": settings.known_names, "counts": self.counts})],
        )
        self.settings = settings
        self.uvicorn_graceful_timeout = GRACE
        self._monitor_workers = False  # ``_watch`` does
        self.has_died = self.is_stopping = False
        self.app.state.desk = self.desk
        self.app.add_exception_handler(RequestValidationError, _not_understood)
        routes = self.app.router.routes
        routes[:] = [route for route in routes if getattr(route, "path", "") != "/"]
        for path, (file, kind) in PAGE.items():
            self.app.add_api_route(path, _file(file, kind), methods=["GET"])
        allowed = [Depends(classifier.authorize)]
        self.app.add_api_route("/metrics", self._metrics, methods=["GET"], dependencies=allowed)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """In uvicorn's process: see ``_end_with_parent``."""
        threading.Thread(
            target=_end_with_parent, args=[os.getppid(), self.others], daemon=True
        ).start()
        async with super().lifespan(app):
            yield

    async def _metrics(self, request: Request) -> Response:
        return Response(self.counts.text(self.desk.requests, self.desk.held), media_type=TEXT)

    def verify_worker_status(self) -> None:
        """Wait until each process has loaded the run; the address follows.

        Raises EngineEnded if one ended, which has told why.
        """
        waited = len(self.inference_workers)
        while waited:
            if self.facts.poll(POLL):
                self.model_metadata = self.facts.recv()
                waited -= 1
                continue
            for process in self.inference_workers:
                if process.exitcode is not None:
                    raise EngineEnded(process.exitcode if process.exitcode > 0 else 8)
        self.others = [one.pid for one in multiprocessing.active_children() if one.pid is not None]
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Print the address once somebody listens there; stop the server if a process of it dies.

        litserve looks after the processes with a model only, and not after uvicorn's.
        """
        name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.host, self.settings.host)
        while True:
            with suppress(OSError), socket.create_connection((name, self.port), 1):
                break
            time.sleep(POLL)
        shown = f"[{name}]" if ":" in name else name
        address = f"http://{shown}:{self.port}/"
        print(f"serving {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        processes = multiprocessing.active_children()
        while all(process.is_alive() for process in processes):
            time.sleep(10 * POLL)
        time.sleep(10 * POLL)  # a signal to all processes reaches this one too
        if not self.is_stopping:
            self.has_died = True
            os.kill(os.getpid(), signal.SIGTERM)

    def run(self, host: str, port: int, **more: Any) -> None:
        """Run litserve's processes until one dies, or until KeyboardInterrupt."""
        self.port = port
        super().run(host=host, port=port, **more)


def _end_with_parent(parent: int, others: list[int]) -> None:
    """End this process and those ``others`` once the parent is gone, such as by SIGKILL."""
    while os.getppid() == parent:
        time.sleep(1)
    for process in others:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    os._exit(1)


async def _not_understood(request: Request, error: Exception) -> Response:
    """The answer to an option that is none: FastAPI's own has another form than all others."""
    return JSONResponse({"detail": "expected ?explain=true or ?explain=false, or no option"}, 400)


def _file(name: str, kind: str) -> Any:
    """An endpoint that gives a file of the page."""
    content = (TEMPLATES / name).read_bytes()

    async def give(request: Request) -> Response:
        return Response(content, headers={"content-type": kind})

    return give


def require_port(host: str, port: int) -> int:
    """``port``, or a free one for 0. Raises UsageError if it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
            found = int(trial.getsockname()[1])
        except OSError as error:
            why = error.strerror or str(error)
            if error.errno == errno.EADDRINUSE:
                why = "another program listens there; name another port, or 0 for a free one"
            raise UsageError(f"--port {port} at {host}: {why}.") from None
    if found < 1024:
        raise UsageError(f"--port {port}: litserve takes ports from 1024 on.")
    return found
