"""Load-test ``trainer.serve`` on this machine: throughput, latency, memory; bad and huge uploads.

    python -m scripts.benchmark_serving --run runs/lenet_rmb --images data/rmb

"One by one" is a server with ``--max-batch 1``, asked by one client that waits for each answer. The
clients are this process, and take part of the machine's cores. Connections are kept in both cases.
Both servers are there at once, and are asked by turns.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scripts.machine import load_average, processor
from trainer.process.launch import run_as_command

SUFFIXES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
MIB = 1 << 20
HUGE = 48 * MIB  # bytes of an upload above the server's limit
CHUNK = 64 << 10  # bytes
PARTS = 10  # of a round


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run it, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark_serving", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--run", required=True, metavar="RUN", help="a run")
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help=".jpg and .png")
    parser.add_argument("--requests", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--clients", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--alone", type=int, default=300, metavar="N", help="requests one by one")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--more", type=int, default=0, metavar="N", help="then so many for memory")
    parser.add_argument(
        "server", nargs="*", metavar="-- OPTION", help="options of trainer.serve, after --"
    )
    arguments = parser.parse_args(argv)

    from trainer.process.exits import exit_code_of

    return exit_code_of(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from trainer.process.errors import UsageError

    files = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UsageError(f"--images {arguments.images}: there is no .jpg or .png.")
    random.Random(0).shuffle(files)
    good = [request_of(path.read_bytes(), SUFFIXES[path.suffix.lower()]) for path in files[:500]]
    size = statistics.median(len(request) for request in good)
    cores = f"{processor()}, {os.cpu_count()} cores, load {load_average()} before"
    print(f"{cores}; {len(good)} pictures, {size / 1024:.0f} KiB in the middle")
    ratios = []
    with (
        serving(arguments.run, ["--max-batch", "1", *arguments.server]) as single,
        serving(arguments.run, arguments.server) as batching,
    ):
        load(single.port, good, 20, 1)
        load(batching.port, good, 100, arguments.clients)
        before = batching.memory()
        for _ in range(arguments.rounds):
            alone, many = in_turn(single, batching, good, arguments)
            print(f"one by one   {alone}\n{arguments.clients} clients   {many}")
            ratios.append(many.rate / alone.rate)
            print(f"ratio        {ratios[-1]:.2f}", flush=True)
        told = f"{before:,.0f} MiB before, {batching.memory():,.0f} after"
    print(f"memory       {told}, of all processes of the server that batches")
    print(f"ratio        {statistics.median(ratios):.2f} in the middle of {len(ratios)}")
    if arguments.more:
        watch_memory(arguments, good)


def in_turn(
    single: "Running", batching: "Running", good: Sequence[bytes], arguments: argparse.Namespace
) -> tuple["Result", "Result"]:
    """A round: parts of both loads by turns, so that other programs' load meets both alike."""
    alone, many = Result(), Result()
    for _ in range(PARTS):
        for total, server, count, clients in (
            (alone, single, arguments.alone, 1),
            (many, batching, arguments.requests, arguments.clients),
        ):
            before = server.seconds()
            part = load(server.port, good, count // PARTS, clients)
            total.seconds += part.seconds
            total.each += part.each
            total.statuses += part.statuses
            total.processor += server.seconds() - before
    return alone, many


def watch_memory(arguments: argparse.Namespace, good: Sequence[bytes]) -> None:
    """Print the server's memory after good requests, and after bad and huge ones among them."""
    bad = [request_of(content, "image/jpeg") for content in (b"no picture", good[0][:2000])]
    mixed = [*good[:45], *bad * 2, *[huge(is_chunked) for is_chunked in (True, False)] * 2]
    random.Random(0).shuffle(mixed)
    with serving(arguments.run, arguments.server) as server:
        load(server.port, good, 100, arguments.clients)
        print(f"memory       {server.memory():,.0f} MiB after 100 requests")
        for what, requests in (("good", good), ("good, bad and huge", mixed)):
            result = load(server.port, requests, arguments.more, arguments.clients)
            told = f"{server.memory():,.0f} MiB, at most {server.peak():,.0f}"
            print(f"memory       {told}; after {arguments.more:,} {what}: {result}", flush=True)


def request_of(content: bytes, kind: str) -> bytes:
    """A request that sends a picture, as it goes over the wire."""
    head = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    return (
        f"{head}Content-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
    )


def huge(is_chunked: bool) -> bytes:
    """A request of HUGE bytes, with its length or in chunks, which tell none."""
    if not is_chunked:
        return request_of(bytes(HUGE), "image/jpeg")
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
    chunk = f"{CHUNK:x}\r\n".encode() + bytes(CHUNK) + b"\r\n"
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * (HUGE // CHUNK) + b"0\r\n\r\n"


@dataclass
class Result:
    """What became of some requests: seconds of all, and of each that was answered with 200."""

    seconds: float = 0.0
    each: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    processor: float = 0.0  # seconds, of all the server's processes; others' load spares it

    @property
    def rate(self) -> float:
        """Predictions a second."""
        return len(self.each) / self.seconds

    def __str__(self) -> str:
        told = ", ".join(f"{count:,} x {status}" for status, count in sorted(self.statuses.items()))
        if len(self.each) < 2:
            return told
        parts = statistics.quantiles(self.each, n=20)
        cost = f", {self.processor / len(self.each) * 1000:.2f} processor ms" * bool(self.processor)
        return (
            f"{self.rate:6.1f} a second, p50 {statistics.median(self.each) * 1000:.1f} ms, "
            f"p95 {parts[-1] * 1000:.1f} ms{cost}; {told}"
        )


def load(port: int, requests: Sequence[bytes], count: int, clients: int) -> Result:
    """Send ``count`` of the requests, in turn, from so many clients, each one after another."""
    return asyncio.run(_load(port, requests, count, clients))


async def _load(port: int, requests: Sequence[bytes], count: int, clients: int) -> Result:
    result, numbers = Result(), iter(range(count))

    async def client() -> None:
        streams = None
        for number in numbers:
            request, begun = requests[number % len(requests)], time.perf_counter()
            try:
                streams = streams or await asyncio.open_connection("127.0.0.1", port)
                status = await ask(*streams, request)
            except (OSError, asyncio.IncompleteReadError) as error:
                status, streams = type(error).__name__, None
            result.statuses[status] += 1
            if status == "200":
                result.each.append(time.perf_counter() - begun)
        if streams:
            streams[1].close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    result.seconds = time.perf_counter() - begun
    return result


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> str:
    """Send a request, and return the status of its answer, which must be JSON."""
    writer.write(request)
    answer = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
    await writer.drain()
    head = (await answer).decode("latin-1").lower()
    length = re.search(r"content-length: (\d+)", head)
    body = await reader.readexactly(int(length[1]) if length else 0)
    status = head.split(" ", 2)[1]
    found = json.loads(body)
    assert ("probabilities" if status == "200" else "detail") in found, found
    return status


class Running:
    """A server that runs: its port, and the memory of its processes."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process, self.port = process, port

    def memory(self) -> float:
        """MiB that all its processes hold, what they share counted once (PSS)."""
        return sum(_kib(pid, "smaps_rollup", "Pss:") for pid in self._all()) / 1024

    def peak(self) -> float:
        """The sum of the most that each process has ever held, in MiB; shared parts count twice."""
        return sum(_kib(pid, "status", "VmHWM:") for pid in self._all()) / 1024

    def seconds(self) -> float:
        """Processor seconds that its processes have used."""
        texts = [Path(f"/proc/{pid}/stat").read_text(encoding="ascii") for pid in self._all()]
        fields = [text.rpartition(")")[2].split() for text in texts]
        return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")

    def _all(self) -> list[int]:
        found = [self.process.pid]
        for pid in found:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
            found += map(int, children.split())
        return found


def _kib(pid: int, file: str, name: str) -> int:
    text = Path(f"/proc/{pid}/{file}").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(name))


@contextmanager
def serving(run: str, options: Sequence[str]) -> Iterator[Running]:
    """Context manager: a server of the run, ready, at a free port; ended by SIGTERM."""
    command = [sys.executable, "-m", "trainer.serve", run, "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    try:
        for line in process.stderr:
            said += line
            if found := re.search(r"^serving http://[^ ]*:(\d+)/", line):
                break
        else:
            raise RuntimeError(f"the server ended with exit code {process.wait()}: {said}")
        yield Running(process, int(found[1]))
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    run_as_command(main)
