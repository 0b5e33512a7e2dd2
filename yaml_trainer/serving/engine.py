"""The process with the model: takes requests, predicts their pictures in batches, and answers."""

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from fastapi import Depends, HTTPException, Request
from litserve import LitAPI
from litserve.loops.base import LitLoop
from litserve.utils import LitAPIStatus, LoopResponseType, PickleableHTTPException
from starlette.responses import JSONResponse

from yaml_trainer.serving.gate import BATCH
from yaml_trainer.serving.settings import Serving
from yaml_trainer.serving.uploads import Upload, read_upload

if TYPE_CHECKING:
    from yaml_trainer.serving.answering import Answering

POLL = 1.0  # seconds between looks whether the server still is there


class Job(NamedTuple):
    """A request on its way through the engine: where its answer goes, and its picture."""

    consumer: int
    uid: str
    arrived: float  # by time.monotonic, which the processes of a machine share
    upload: Upload


class Classifier(LitAPI):  # type: ignore[misc]
    """What litserve calls: how a request is read, who may ask, and what its process loads."""

    def __init__(self, settings: Serving, facts: Connection) -> None:
        super().__init__(max_batch_size=settings.max_batch, loop=Engine())
        self.settings = settings
        self.facts = facts  # gets what /info tells, once the run is loaded

    def setup(self, device: str) -> None:
        """Load the run. Ends the process with the exit code of what is wrong."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this
        from trainer.process.exits import exit_code_of
        from trainer.process.start import start

        def load() -> None:
            with start():
                from yaml_trainer.serving.answering import Answering
            is_first = os.environ.get("LITSERVE_WORKER_ID", "0") == "0"
            self.answering: Answering = Answering(self.settings, tells=is_first)
            self.facts.send(self.answering.facts())

        if code := exit_code_of(load):
            sys.exit(code)

    def authorize(self, request: Request) -> None:
        """Raise HTTPException 401 unless the request has the token, if there is one."""
        require_token(request, self.settings.token)

    def decode_request(self, request: Annotated[Upload, Depends(read_upload)]) -> Upload:
        """The request's Upload; litserve takes how to read it from the annotation."""
        return request


def require_token(request: Request, token: str | None) -> None:
    """Raise HTTPException 401 unless the request has the token, which is compared in full."""
    import hmac

    given = request.headers.get("authorization", "")
    wanted = f"Bearer {token}"
    if token is not None and not hmac.compare_digest(given.encode(), wanted.encode()):
        how = "send the header Authorization: Bearer TOKEN, with this server's token"
        raise HTTPException(401, how, {"WWW-Authenticate": "Bearer"})


class Engine(LitLoop):  # type: ignore[misc]
    """Takes requests as they come, and answers them in batches, until the server ends it.

    A batch begins with the first picture. It waits for others only while some are known to be on
    their way. litserve's own loop for batches asks for requests all the time, also if none come.
    """

    def __call__(
        self,
        lit_api: Classifier,
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        workers_setup_status: Any,
        callback_runner: Any,
    ) -> None:
        """Answer until the server's main process is gone."""
        settings, answering, server = lit_api.settings, lit_api.answering, os.getppid()
        waiting: queue.Queue[Job] = queue.Queue(2 * settings.max_batch)
        taker = threading.Thread(target=_take, args=(request_queue, waiting), daemon=True)
        taker.start()
        while os.getppid() == server and taker.is_alive():
            jobs = gather(waiting, settings.max_batch, settings.wait)
            if jobs:
                for job, response in self.respond(jobs, answering, settings.timeout):
                    is_error = isinstance(response, HTTPException)
                    status = LitAPIStatus.ERROR if is_error else LitAPIStatus.OK
                    kind = LoopResponseType.REGULAR
                    self.put_response(transport, job.consumer, job.uid, response, status, kind)
        os._exit(0)

    def respond(
        self, jobs: Sequence[Job], answering: "Answering", timeout: float
    ) -> list[tuple[Job, JSONResponse | HTTPException]]:
        """Each job with its response: an answer, or an HTTPException."""
        oldest = time.monotonic() - timeout
        rest = [job for job in jobs if job.arrived >= oldest]
        late = PickleableHTTPException(504, f"it waited for its turn for more than {timeout:g} s")
        done: list[tuple[Job, JSONResponse | HTTPException]] = [
            (job, late) for job in jobs if job.arrived < oldest
        ]
        headers = {BATCH: str(len(rest))}
        try:
            answers = list(answering.answers([job.upload for job in rest])) if rest else []
        except Exception:  # a bug, or no memory: of this batch alone
            traceback.print_exc()
            failed = PickleableHTTPException(500, "the server failed; its log says why")
            return [*done, *((job, failed) for job in rest)]
        for job, answer in zip(rest, answers, strict=True):
            if isinstance(answer, str):
                done.append((job, PickleableHTTPException(422, answer)))
            else:
                done.append((job, JSONResponse(answer, headers=headers)))
        return done


def gather(waiting: "queue.Queue[Job]", most: int, wait: float) -> list[Job]:
    """The jobs of the next batch; none if there is none within POLL."""
    try:
        jobs = [waiting.get(timeout=POLL)]
    except queue.Empty:
        return []
    until = time.monotonic() + wait
    while len(jobs) < min(most, max(job.upload.company for job in jobs)):
        try:
            jobs.append(waiting.get(timeout=max(0.0, until - time.monotonic())))
        except queue.Empty:
            break
    return jobs


def _take(requests: Any, waiting: "queue.Queue[Job]") -> None:
    """Take requests from litserve's queue, for as long as it is there."""
    while True:
        try:
            waiting.put(Job(*requests.get(timeout=POLL)))
        except queue.Empty:
            continue
        except (EOFError, OSError):  # the server has ended
            return
