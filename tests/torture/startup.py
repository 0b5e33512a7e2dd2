"""Signals to the start of a command: at a random time, and at each import of an undisturbed start.

A real process gets a signal at a random time. At the imports, a process forks instead: the fork
gets the signal there, inside importlib, and the process goes on to its next import.
"""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
HANDLER = "quit_at_once"  # which a command has until training begins
PATIENCE = 60  # seconds in which a process must have ended, on a machine that has much to do
CPU = 1.7  # seconds of work of a start, until training begins

# A sitecustomize.py. FORKS: "import n", at each n-th import; "line n", at each n-th line of the
# code that takes and frees the locks of imports; "call n", at each n-th call of a Python function.
HOOK = f"""
import json, os, signal, sys, time

place, every = os.environ.pop("FORKS").split()
every, folder, met, outcomes = int(every), os.environ.pop("FORKS_IN"), 0, {{}}
numbers = [getattr(signal, name) for name in {SIGNALS!r}]
LOCKS = "_find_and_load _get_module_lock __enter__ __exit__ acquire release cb has_deadlock".split()

def strike(frame):
    global met
    if getattr(signal.getsignal(signal.SIGTERM), "__name__", "") != {HANDLER!r}:
        return
    met += 1
    futures = sys.modules.get("concurrent.futures.thread")
    if met % every or futures and futures._global_shutdown_lock.locked():  # which a fork takes
        return
    number = numbers[met // every % len(numbers)]
    log = f"{{folder}}/{{met}}.txt"
    process = os.fork()
    if process == 0:
        sys.settrace(None)
        sys.setprofile(None)
        sys.modules["trainer.process.quit"]._This.process = os.getpid()  # not a worker
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
        os.kill(os.getpid(), number)
        return
    end = time.monotonic() + {PATIENCE}
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            ended = os.waitpid(process, 0)
        time.sleep(0.0005)
    outcomes[met] = number.name, os.waitstatus_to_exitcode(ended[1])
    with open(f"{{folder}}/outcomes.json", "w") as file:
        json.dump(outcomes, file)

def trace(frame, event, argument):
    code = frame.f_code
    if place == "call":
        if event == "call":
            strike(frame)
    elif code.co_filename == "<frozen importlib._bootstrap>" and code.co_name in LOCKS:
        if place == "line":
            return line
        if code.co_name == "_find_and_load" and event == "call":
            strike(frame)

def line(frame, event, argument):
    strike(frame)
    return line

(sys.settrace if place == "line" else sys.setprofile)(trace)
"""


def start(arguments: Sequence[str], **environment: str) -> "subprocess.Popen[str]":
    """Start ``python -m ARGUMENTS`` with Python's own handlers, whatever this process ignores."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=obey,
    )


def obey() -> None:
    """Let signals have their usual effect, which a shell's background job and nohup take away."""
    for name in SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def at_imports(
    arguments: Sequence[str], forks: str, folder: Path
) -> tuple[int, list[tuple[str, int, str]]]:
    """Start a command; its forks get signals where HOOK says.

    Returns the exit code of the start itself, and for each fork its signal, exit code and message.
    """
    (folder / "hook").mkdir(parents=True)
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    paths = f"{folder / 'hook'}{os.pathsep}{ROOT}"
    process = start(arguments, PYTHONPATH=paths, FORKS=forks, FORKS_IN=str(folder))
    process.communicate()
    outcomes = json.loads((folder / "outcomes.json").read_text())
    return process.returncode, [
        (name, code, (folder / f"{number}.txt").read_text())
        for number, (name, code) in outcomes.items()
    ]


def problem_of(name: str, code: int, message: str, arguments: Sequence[str]) -> str:
    """What is wrong with the end of a training that got a signal before it began; "" if nothing."""
    lines = [
        f"stopped by {name}",
        "before training began, nothing was written; to start again:",
        f"  {shlex.join(['python', '-m', *arguments])}",
    ]
    if code == 75 and message.splitlines()[-3:] == lines:
        return ""
    return f"{name}: exit code {code}: {message[-1000:]}"


def at_a_random_time(arguments: Sequence[str], runs: Path, rng: random.Random) -> tuple[str, bool]:
    """Send a signal to a start after a random time of work: what is wrong, and was it too late."""
    name = rng.choice(SIGNALS)
    process = start(arguments)
    state = Path(f"/proc/{process.pid}/status")
    while process.poll() is None and not caught(state.read_text()):
        time.sleep(0.001)
    work = Path(f"/proc/{process.pid}/schedstat")
    until = int(work.read_text().split()[0]) + rng.uniform(0, CPU) * 1e9
    while process.poll() is None and int(work.read_text().split()[0]) < until:
        time.sleep(0.001)
    process.send_signal(getattr(signal, name))
    try:
        _, message = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"{name} left it running: {process.communicate()[1][-1000:]}", False
    code = process.returncode
    if code == 0 or "saved after step" in message and code == 75:
        return "", True
    written = [str(path) for path in runs.rglob("*")]
    problem = problem_of(name, code, message, arguments)
    return problem or f"nothing was written, but {written}" * bool(written), False


def caught(status: str) -> bool:
    """Whether a process with this /proc/PID/status handles SIGTERM: its own first line has run."""
    found = re.search(r"SigCgt:\s*(\w+)", status)
    return bool(found and int(found[1], 16) >> signal.SIGTERM - 1 & 1)
