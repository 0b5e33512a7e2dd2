"""``trainer.serve``: a real server on this machine, asked as programs and browsers ask it."""

import asyncio
import base64
import dataclasses
import http.client
import json
import os
import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.conftest import SMALL
from trainer import predict as predict_command
from trainer.build.prepare import prepare
from trainer.build.trained import load_trained
from trainer.config import load_config
from trainer.loop.fit import fit
from trainer.process.stop import StopRequest
from trainer.serve import main

pytest.importorskip("litserve", reason='pip install -e ".[serve]"')
from fastapi import HTTPException, Request

from yaml_trainer.serving.answering import Answering
from yaml_trainer.serving.engine import Engine, Job, gather
from yaml_trainer.serving.metrics import Histogram
from yaml_trainer.serving.settings import Serving
from yaml_trainer.serving.uploads import Desk, Upload, read_upload

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "a token of more than sixteen characters"
JPEG = {"Content-Type": "image/jpeg"}
STRICT = ["--max-queue", "1", "--timeout", "2", "--max-bytes", "100000", "--reject", "0.5"]
STRICT += ["--name", "demo.example.org"]
MIB = 1 << 20


class Running:
    """A server: its process, address and folder, and how to ask it."""

    def __init__(self, process, port, folder):
        self.process, self.port, self.folder = process, port, folder

    def ask(self, method="POST", path="/predict", body=None, headers=JPEG):
        """The status, the headers and the body of an answer, as JSON where it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        is_json = (answer.headers["content-type"] or "").startswith("application/json")
        return answer.status, answer.headers, json.loads(content) if is_json else content.decode()

    def predicted(self, body, headers=JPEG, path="/predict"):
        status, _, answer = self.ask("POST", path, body, headers)
        assert status == 200, answer
        return answer

    def refused(self, status, body, headers=JPEG, **more):
        """The reason of an answer that has this status."""
        found, _, answer = self.ask(body=body, headers=headers, **more)
        assert (found, list(answer)) == (status, ["detail"]), answer
        return answer["detail"]

    def processes(self):
        """The server's processes: numbers of the main one first, and all that it has begun."""
        found = [self.process.pid]
        for pid in found:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
            found += map(int, children.split())
        return found


@contextmanager
def served(run, folder, options=(), token=None, number=signal.SIGTERM, code=143):
    """Start a server in an empty folder; it is ready when the block begins.

    It is ended by a signal, and must then have this exit code, and leave no process.
    """
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "YAML_TRAINER_TOKEN"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"YAML_TRAINER_TOKEN": token} if token else {}
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.serve", str(run), "--port", "0", *options],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process, process.stderr:
        said = ""
        for line in process.stderr:
            said += line
            if found := re.match(r"serving http://127\.0\.0\.1:(\d+)/ ", line):
                break
        else:
            pytest.fail(f"the server ended with exit code {process.wait()}:\n{said}")
        running = Running(process, int(found[1]), folder)
        processes = running.processes()
        try:
            yield running
        finally:
            process.send_signal(number)
            ended = process.wait(20)
        assert (ended, "Traceback" in process.stderr.read()) == (code, False)
        end = time.monotonic() + 10
        while left := [pid for pid in processes if is_there(pid)]:
            assert time.monotonic() < end, left
            time.sleep(0.05)


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def run(tmp_path_factory, notes):
    folder = tmp_path_factory.mktemp("run")
    (folder / "small.yaml").write_text(SMALL.format(root=notes))
    with StopRequest() as stop:
        job = prepare(load_config(folder / "small.yaml", []), lambda line: None)
        return fit(job, folder / "runs", None, lambda line: None, stop)


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    with served(run, tmp_path_factory.mktemp("served") / "empty", ["--wait", "50"]) as running:
        yield running


@pytest.fixture(scope="module")
def strict(run, tmp_path_factory):
    """A server with a token and low limits."""
    folder = tmp_path_factory.mktemp("strict") / "empty"
    with served(run, folder, STRICT, token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def photos(notes):
    return sorted(path for path in notes.rglob("*") if path.suffix in (".jpg", ".png"))[:12]


# Answers


def test_probabilities_are_those_of_predict_to_the_bit_and_of_a_forward_pass_by_hand(
    run, server, photos, capsys
):
    assert predict_command.main([str(run), *map(str, photos), "--json", "--batch-size", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    model = load_trained(run, ["train.device=cpu"]).model
    for path, expected in zip(photos, told, strict=True):
        answer = server.predicted(path.read_bytes())
        assert answer["probabilities"] == expected["probabilities"]
        image = v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))
        image = v2.functional.resize(image, [32, 32], antialias=True).float() / 255
        with torch.no_grad():
            by_hand = model(((image - 0.5) / 0.25)[None]).softmax(dim=1)[0].tolist()
        assert list(answer["probabilities"].values()) == pytest.approx(by_hand, abs=1e-6)
        likely = max(answer["probabilities"], key=answer["probabilities"].get)
        assert (answer["label"], answer["label_set"], answer["unknown"]) == (likely, None, None)


def form_of(content, name="a.jpg", field="image"):
    head = f'--end\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=end"}
    return head.encode() + content + b"\r\n--end--\r\n", kind


def test_a_body_a_form_json_and_a_data_url_get_the_same_answer(server, photos):
    content = photos[0].read_bytes()
    text = base64.b64encode(content).decode()
    expected = server.predicted(content)
    as_json = {"Content-Type": "application/json"}
    assert server.predicted(*form_of(content)) == expected
    assert server.predicted(json.dumps({"image": text}), as_json) == expected
    url = {"image": f"data:image/jpeg;base64,{text}"}
    assert server.predicted(json.dumps(url), as_json) == expected
    assert server.predicted(content, {"Content-Type": "application/octet-stream"}) == expected


def test_requests_that_come_together_are_predicted_together_and_a_bad_one_fails_alone(
    server, photos
):
    contents = [path.read_bytes() for path in photos]
    alone = [server.predicted(content) for content in contents]
    with ThreadPoolExecutor(24) as pool:
        good = [pool.submit(server.ask, body=content) for content in contents]
        bad = [pool.submit(server.refused, 422, b"no picture") for _ in range(12)]
        for one, expected in zip(good, alone, strict=True):
            answer = one.result()[2]["probabilities"]
            assert answer == pytest.approx(expected["probabilities"], abs=1e-5)
        assert {one.result() for one in bad} == {"no image format that is read"} or all(
            "image" in one.result() for one in bad
        )
    together = [int(one.result()[1]["x-batch"]) for one in good]
    assert max(together) > 1


def test_label_sets_and_unknown_are_told_where_they_are_asked_for(strict, photos):
    answer = strict.predicted(photos[0].read_bytes(), JPEG | bearer(TOKEN))
    assert type(answer["unknown"]) is bool
    assert type(answer["score"]) is float


def test_grad_cam_comes_with_the_answer_where_it_is_asked_for(server, photos):
    answer = server.predicted(photos[0].read_bytes(), path="/predict?explain=true")
    found = answer["explanation"]
    assert found["class"] == answer["label"]
    head, _, text = found["grad_cam"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(text).startswith(b"\x89PNG")


# What is refused


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def bomb():
    """A PNG of 4 GB of pixels in a few bytes."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", 65000, 65000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 16))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_what_is_no_picture_gets_422_with_the_reason(server, photos):
    content = photos[0].read_bytes()
    for body, words in (
        (b"no picture", "image"),
        (content[: len(content) // 2], "truncated|broken|incomplete|end"),
        (bomb(), "pixels"),
        (b"PK\3\4" + bytes(100), "zip"),
    ):
        assert re.search(words, server.refused(422, body), re.IGNORECASE)


def test_a_request_without_a_picture_or_of_another_type_is_told_how(server):
    as_json = {"Content-Type": "application/json"}
    assert "multipart/form-data" in server.refused(400, b"")
    assert "urlencoded" in server.refused(
        415, b"x", {"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert "no JSON" in server.refused(400, b"{", as_json)
    assert "no JSON" in server.refused(400, b"[" * 100_000, as_json)
    assert '{"image": "..."}' in server.refused(400, b"[1]", as_json)
    assert "base64" in server.refused(400, b'{"image": "*"}', as_json)
    assert "no picture" in server.refused(400, b"--end--\r\n", form_of(b"")[1])
    assert "?explain=true" in server.refused(400, b"x", path="/predict?explain=maybe")
    server.refused(404, None, method="GET", path="/other")
    server.refused(405, None, method="GET")


def most_memory(running):
    """MiB that the server's processes have held at most, each."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in running.processes()]
    return [int(text.partition("VmHWM:")[2].split()[0]) / 1024 for text in texts]


def test_a_huge_upload_is_refused_in_bounded_memory_also_where_its_length_is_not_told(server):
    before = most_memory(server)
    length = {"Content-Length": str(10**12)}  # which is told, and never comes
    assert "larger than 33,554,432 bytes" in server.refused(413, None, JPEG | length)
    chunks = (bytes(MIB) for _ in range(200))
    assert "larger than" in server.refused(413, chunks, JPEG)  # http.client sends it in chunks
    grown = [after - was for after, was in zip(most_memory(server), before, strict=True)]
    assert max(grown) < 100
    text = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
        raw.sendall(text)
        assert b" 400 " in raw.recv(1000).split(b"\r\n")[0]


def test_a_head_without_an_end_is_refused_in_bounded_memory(server, photos):
    begun = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
    chunked = begun + b"Transfer-Encoding: chunked\r\n\r\n"
    before = most_memory(server)
    for head, more in (
        (begun, b"X-Name: a\r\n" * 50_000),  # many lines
        (begun + b"X: ", b"a" * MIB),  # one line
        (b"GET /", b"a" * MIB),
        (chunked + b"1\r\na\r\n1;", b"a" * MIB),  # what follows a chunk's length
        (chunked + b"1\r\na\r\n0\r\n", b"X-Name: a\r\n" * 50_000),  # after the body
    ):
        with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
            with pytest.raises(OSError):
                raw.sendall(head)
                for _ in range(60):
                    raw.sendall(more)
    with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
        raw.sendall(begun + b"X: " + b"a" * 65_600)
        assert b" 431 " in raw.recv(1000).split(b"\r\n")[0]
    grown = [after - was for after, was in zip(most_memory(server), before, strict=True)]
    assert max(grown) < 30
    small = b"".join(b"1\r\n%c\r\n" % byte for byte in photos[0].read_bytes())
    with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
        raw.sendall(chunked + small + b"0\r\n\r\n")  # of which each byte is a chunk
        assert b" 200 " in raw.recv(1000).split(b"\r\n")[0]


def test_a_head_that_does_not_arrive_ends_its_connection(strict):
    whole = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for sent, answers in ((b"", 0), (b"GET / HT", 0), (whole + b"GET / HT", 1)):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", strict.port), 10) as raw:
            raw.sendall(sent)
            received = b"".join(iter(lambda: raw.recv(65536), b""))
        assert received.count(b"HTTP/1.1 ") == answers
        assert 1 < time.monotonic() - began < 5


def test_a_client_that_goes_away_leaves_no_place_taken_and_no_traceback(strict, photos):
    content = photos[0].read_bytes()
    for kind in ("image/jpeg", "application/json", "multipart/form-data; boundary=x"):
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
        head += f"Authorization: Bearer {TOKEN}\r\nContent-Length: 5000\r\n\r\n--x"
        with socket.create_connection(("127.0.0.1", strict.port), 10) as raw:
            raw.sendall(head.encode())
            time.sleep(0.2)
    time.sleep(0.2)
    assert strict.predicted(content, JPEG | bearer(TOKEN))["label"]  # its queue holds one


def test_a_full_queue_gets_429_and_a_request_that_does_not_arrive_408(strict, photos):
    content = photos[0].read_bytes()
    head = (
        "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Length: 5000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", strict.port), 10) as slow:
        slow.sendall(head.encode() + b"only these")
        time.sleep(0.3)
        status, headers, answer = strict.ask(body=content, headers=JPEG | bearer(TOKEN))
        assert (status, headers["retry-after"]) == (429, "1"), answer
        assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]
    assert strict.predicted(content, JPEG | bearer(TOKEN))["label"]


def test_only_a_request_with_the_token_is_answered_where_there_is_one(strict, photos):
    content = photos[0].read_bytes()
    for wrong in (
        {},
        bearer(""),
        bearer(TOKEN[:-1]),
        bearer(TOKEN + "x"),
        {"Authorization": TOKEN},
    ):
        status, headers, _ = strict.ask(body=content, headers=JPEG | wrong)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        for path in ("/info", "/metrics", "/health"):
            assert strict.ask("GET", path, headers=wrong)[0] == 401
    assert strict.ask("GET", "/", headers={})[0] == 200  # the page asks for it
    assert strict.ask("GET", "/info", headers=bearer(TOKEN))[0] == 200
    proxied = {"Host": "demo.example.org", "Origin": "https://demo.example.org"}
    assert strict.predicted(content, JPEG | bearer(TOKEN) | proxied)["label"]
    strict.refused(403, content, JPEG | bearer(TOKEN) | {"Host": "example.org"})
    command = Path(f"/proc/{strict.process.pid}/cmdline").read_text()
    assert TOKEN not in command


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_foreign_page_is_refused_by_name_or_origin(server, photos, headers):
    content = photos[0].read_bytes()
    server.refused(403, content, JPEG | headers)
    own = {"Host": f"localhost:{server.port}", "Origin": f"http://localhost:{server.port}"}
    assert server.predicted(content, JPEG | own)["label"]


@pytest.mark.parametrize("option", [["--host", "0.0.0.0"], ["--name", "demo.example.org"]])
def test_others_may_connect_only_with_a_token(run, option, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("YAML_TRAINER_TOKEN", raising=False)
    assert main([str(run), *option]) == 2
    assert "needs a token" in capsys.readouterr().err
    (tmp_path / "token").write_text("short\n")
    assert main([str(run), *option, "--token-file", str(tmp_path / "token")]) == 2
    assert "at least 16" in capsys.readouterr().err


def test_a_port_that_is_taken_and_a_run_without_weights_are_told(server, run, tmp_path, capsys):
    assert main([str(run), "--port", str(server.port)]) == 2
    assert "another program listens there" in capsys.readouterr().err
    empty = tmp_path / "run"
    empty.mkdir()
    (empty / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    command = [sys.executable, "-m", "trainer.serve", str(empty), "--port", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, "no weights yet" in ended.stderr) == (5, True)
    assert "Traceback" not in ended.stderr


# What else it tells


def test_the_programs_of_the_page_do_what_it_says(server, photos, tmp_path):
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (tmp_path / "photo.jpg").write_bytes(photos[0].read_bytes())
    expected = server.predicted(photos[0].read_bytes())
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    asked = re.search(r"^curl (.*/predict)$", text, re.MULTILINE)
    assert program and asked
    address = f"127.0.0.1:{server.port}"
    command = f"curl -s {asked[1]}".replace("127.0.0.1:8000", address)
    assert json.loads(said_by(["bash", "-c", command], tmp_path)) == expected
    code = program[1].replace("127.0.0.1:8000", address)
    said = said_by([sys.executable, "-c", code], tmp_path)
    assert said == f"{expected['label']} {expected['probabilities']}\n"


def said_by(command, folder):
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_health_and_facts_are_told(server, run):
    status, _, answer = server.ask("GET", "/health")
    assert (status, answer) == (200, "ok")
    model = server.ask("GET", "/info")[2]["model"]
    card = json.loads((run / "model.json").read_text())
    assert model["classes"] == card["classes"]
    assert model["sha256"] == card["weights"]["sha256"]
    assert model["input"] == [3, 32, 32]
    assert str(run.parent.parent) not in json.dumps(model)  # no place on the disk is told


def test_a_bucket_of_a_histogram_counts_the_values_that_are_at_most_its_bound():
    bounds, values = (1, 2, 4), (0.5, 1, 1.5, 2, 2, 3, 9)
    histogram = Histogram(bounds)
    for value in values:
        histogram.add(value)
    told = dict(line.rsplit(" ", 1) for line in histogram.lines("x", "y") if line[0] != "#")
    for bound in bounds:
        assert int(told[f'x_bucket{{le="{bound}"}}']) == sum(value <= bound for value in values)
    assert told['x_bucket{le="+Inf"}'] == told["x_count"] == str(len(values))
    assert float(told["x_sum"]) == sum(values)


def test_metrics_count_each_answer(server, photos):
    def read():
        lines = server.ask("GET", "/metrics")[2].splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    before = read()
    for path in photos[:3]:
        server.predicted(path.read_bytes())
    server.refused(422, b"no picture")
    after = read()

    def grew(name):
        return after[f"yaml_trainer_{name}"] - before.get(f"yaml_trainer_{name}", 0)

    assert grew('requests_total{path="/predict",status="200"}') == 3
    assert grew('requests_total{path="/predict",status="422"}') in (1, 1.0)
    assert grew("predict_seconds_count") == grew("batch_images_count") == 3
    assert grew('predict_seconds_bucket{le="+Inf"}') == 3
    assert (
        after["yaml_trainer_requests_in_progress"] == after["yaml_trainer_bytes_in_progress"] == 0
    )


def test_the_page_takes_nothing_from_elsewhere_and_may_not_be_framed(server):
    for path in ("/", "/page.js", "/page.css"):
        status, headers, text = server.ask("GET", path)
        assert status == 200
        assert not re.search(r"https?://|@import|innerHTML|eval\(", text)
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert server.ask("GET", path)[0] == 404


def test_nothing_is_written_where_it_was_started(server):
    assert list(server.folder.iterdir()) == []


def test_ctrl_c_lets_a_request_end_and_leaves_no_process(run, photos, tmp_path):
    content = photos[0].read_bytes()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    with served(run, tmp_path / "empty", number=signal.SIGINT, code=130) as running:
        with socket.create_connection(("127.0.0.1", running.port), 10) as begun:
            begun.sendall(head.encode() + content[:100])
            time.sleep(0.5)
            for pid in reversed(running.processes()):  # a terminal sends it to all
                os.kill(pid, signal.SIGINT)
            time.sleep(0.5)
            begun.sendall(content[100:])
            assert b" 200 " in begun.recv(1000).split(b"\r\n")[0]
        running.process.wait(10)


@pytest.mark.slow
def test_no_process_outlives_a_server_that_is_killed(run, tmp_path):
    with served(run, tmp_path / "empty", number=signal.SIGKILL, code=-9) as running:
        assert len(running.processes()) > 3


@pytest.mark.slow
@pytest.mark.parametrize("which", range(3))
def test_a_process_that_dies_ends_the_server_with_its_exit_code(run, tmp_path, which):
    with served(run, tmp_path / "empty", number=0, code=8) as running:
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in running.processes()}
        others = [pid for pid, command in commands.items() if "resource_tracker" not in command]
        assert len(others) == 4
        os.kill(others[1 + which], signal.SIGKILL)


class Failing(Answering):
    """A model that fails on a certain picture as no picture should make it fail."""

    def __init__(self):
        pass

    def answers(self, uploads):
        for upload in uploads:
            if upload.content == b"bad":
                raise MemoryError
            yield {"label": upload.content.decode()} if upload.content else "no picture"


def test_a_failure_of_the_model_is_the_answer_of_its_batch_and_the_next_one_is_answered(capsys):
    def respond(*contents, age=0.0):
        begun = time.monotonic() - age
        jobs = [Job(0, str(i), begun, Upload(c, False, 1)) for i, c in enumerate(contents)]
        found = Engine().respond(jobs, Failing(), timeout=5)
        return [getattr(response, "status_code", None) for _, response in found]

    assert respond(b"1", b"bad", b"100") == [500] * 3
    assert "MemoryError" in capsys.readouterr().err
    assert respond(b"1", b"", b"100") == [200, 422, 200]
    assert respond(b"1", age=6) == [504]


def test_a_batch_waits_only_for_requests_that_are_on_their_way():
    def gathered(*company, most=32, wait=10.0):
        waiting: queue.Queue[Job] = queue.Queue()
        for number in company:
            waiting.put(Job(0, "", 0.0, Upload(b"", False, number)))
        begun = time.monotonic()
        count = len(gather(waiting, most, wait))
        return count, time.monotonic() - begun > 0.2

    assert gathered(1) == (1, False)
    assert gathered(1, 2, 3) == (1, False)  # the first was alone: no wait, and no other
    assert gathered(3, 3, 3, 3) == (3, False)
    assert gathered(9, 9, 9, 9, most=2) == (2, False)
    assert gathered(2, wait=0.3) == (1, True)


def test_all_requests_together_hold_no_more_than_eight_times_the_bytes_of_one():
    fields: Any = dict.fromkeys(each.name for each in dataclasses.fields(Serving))
    desk = Desk(Serving(**fields | {"max_queue": 99, "max_bytes": 100, "timeout": 5}))
    app = SimpleNamespace(state=SimpleNamespace(desk=desk))

    async def statuses(sizes):
        found, readers = [], []
        for size in sizes:

            async def receive(size=size):
                return {"type": "http.request", "body": bytes(size), "more_body": False}

            scope = {"type": "http", "app": app, "headers": [], "method": "POST"}
            readers.append(read_upload(Request(scope, receive)))
            try:
                await anext(readers[-1])
                found.append(200)
            except HTTPException as refused:
                found.append(refused.status_code)
        for reader in readers:
            await anext(reader, None)
        return found

    assert asyncio.run(statuses([100] * 8 + [1, 101])) == [200] * 8 + [429, 413]
    assert (desk.requests, desk.held) == (0, 0)
