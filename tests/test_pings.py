"""Health pings to a server on loopback: what it is told, and that nothing else learns of it."""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from batchpredict.cli import main
from batchpredict.errors import UsageError
from batchpredict.ops import pings
from batchpredict.ops.task_names import TaskName
from batchpredict.ops.watching import Ended, Targets, monitored
from batchpredict.run.current import one_run, run_id
from tests import models
from tests.commands import receipt, run, start

SECRET = "5f0b3c9e-secret"
RUN = "0123456789abcdef"
MOST_SECONDS = 10.0


@dataclass
class Service:
    """What answers pings: `status` and `location`, after `delay` seconds, `dropped` times not."""

    status: int = 200
    location: str = ""
    delay: float = 0.0
    dropped: int = 0
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            service.requests.append((self.command, self.path, body))
            if service.dropped:
                service.dropped -= 1
                self.close_connection = True
                return
            time.sleep(service.delay)
            self.send_response(service.status)
            if service.location:
                self.send_header("Location", service.location)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"OK")

        def do_GET(self) -> None:
            raise AssertionError("a ping without its body")

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Clients that wait no longer are meant to be."""

    with Server(("127.0.0.1", 0), Handler) as server:
        service.url = f"http://127.0.0.1:{server.server_port}/{SECRET}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_text_model(tmp_path_factory.mktemp("models") / "text")


def predict(
    directory: Path, model: Path, url: str, *more: str, rows: str = "1,good\n"
) -> subprocess.CompletedProcess[bytes]:
    (directory / "data.csv").write_text(f"id,text\n{rows}")
    (directory / "prom").mkdir(exist_ok=True)
    return run(
        "--input_file=data.csv", f"--model={model}", "--metrics_dir=prom", "--verbose", *more,
        cwd=directory, env={"BATCHPREDICT_PING_URL": url},
    )  # fmt: skip


def assert_kept_secret(directory: Path, done: subprocess.CompletedProcess[bytes]) -> None:
    texts = [done.stdout, done.stderr]
    texts += [path.read_bytes() for path in directory.rglob("*") if path.is_file()]
    for text in texts:
        assert SECRET.encode() not in text


def test_start_and_success(tmp_path: Path, model: Path) -> None:
    with serving(Service()) as service:
        done = predict(tmp_path, model, f"{service.url}/?create=1")
    assert (done.returncode, done.stderr) == (0, b"")
    (_, begun, nothing), (_, end, body) = service.requests
    assert (urlsplit(begun).path, urlsplit(end).path) == (f"/{SECRET}/start", f"/{SECRET}/0")
    assert nothing == b""
    first, second = (parse_qs(urlsplit(path).query) for path in (begun, end))
    assert first == second
    assert first["create"] == ["1"]
    told = receipt(tmp_path / "data.scored.csv.receipt.json")["run_id"]
    rid = str(uuid.UUID(first["rid"][0]))
    assert rid == first["rid"][0]
    assert rid.startswith(f"{told[:8]}-{told[8:12]}-8{told[12:15]}-8{told[15]}")
    assert f"run {told}: success, exit status 0" in body.decode()
    assert "data.csv: 1 row, 1 scored" in body.decode()
    assert_kept_secret(tmp_path, done)


def test_rejects_and_failures(tmp_path: Path, model: Path) -> None:
    with serving(Service()) as service:
        partial = predict(tmp_path, model, service.url, "--max_rejects=1", rows="1,good\n2,bad,3\n")
        failed = predict(tmp_path, model, service.url, "--max_rejects=0", rows="1,good\n2,bad,3\n")
        usage = predict(tmp_path, model, service.url, "--threshold=7")
    assert (partial.returncode, failed.returncode, usage.returncode) == (3, 65, 2)
    ends = [(urlsplit(path).path, body.decode()) for _, path, body in service.requests[1::2]]
    assert [path for path, _ in ends] == [f"/{SECRET}/{code}" for code in (3, 65, 2)]
    assert "malformed_row 1" in ends[0][1]
    assert "ERROR data.csv: 1 of 2 rows rejected" in ends[1][1]
    assert "ERROR --threshold=7" in ends[2][1]
    for done in (partial, failed, usage):
        assert_kept_secret(tmp_path, done)


def test_a_night_without_a_file_that_may_be_missing(tmp_path: Path, model: Path) -> None:
    with serving(Service()) as service:
        done = run(
            "--input_file=gone.csv", "--if_missing=skip", f"--model={model}", cwd=tmp_path,
            env={"BATCHPREDICT_PING_URL": service.url},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    _, (_, path, body) = service.requests
    assert urlsplit(path).path == f"/{SECRET}/0"
    assert b"\nnothing was scored: no input was there" in body


def test_a_retry_is_told_of_as_a_run_is(tmp_path: Path, model: Path) -> None:
    name = "data.scored.csv.receipt.json"
    with serving(Service()) as service:
        more = (f"--ping_url={service.url}", "--metrics_dir=retries", "--log_format=json")
        predict(tmp_path, model, service.url, "--max_rejects=99%", rows="1,good\n2\n3\n")
        (tmp_path / "retries").mkdir()
        del service.requests[:]
        assert run("retry", name, *more, "--dry_run", cwd=tmp_path).returncode == 0
        assert service.requests == []
        path = tmp_path / "data.scored.csv.rejects.jsonl"
        path.write_text(path.read_text().replace('"2"', '"2,good"'))
        partial = run("retry", name, *more, cwd=tmp_path)
        failed = run("retry", "gone.json", *more, cwd=tmp_path)
    assert (partial.returncode, failed.returncode) == (3, 66)
    paths = [urlsplit(path).path.rpartition("/")[2] for _, path, _ in service.requests]
    assert paths == ["start", "3", "start", "66"]
    assert b"1 row could still not be scored" in service.requests[1][2]
    assert b"gone.json" in service.requests[3][2]
    last = json.loads(partial.stdout.splitlines()[-1])
    assert (last["event"], last["receipt"]) == ("receipt", receipt(tmp_path / name))
    found = {path.name: path.read_text() for path in (tmp_path / "retries").iterdir()}
    (text,) = [text for key, text in found.items() if "data.scored.csv.receipt" in key]
    assert len(found) == 2
    assert 'batchpredict_last_run_inputs{result="published"' in text
    assert f'task="{tmp_path}/{name}"' in text


def test_a_rehearsal_tells_nobody(tmp_path: Path, model: Path) -> None:
    with serving(Service()) as service:
        assert predict(tmp_path, model, service.url, "--dry_run").returncode == 0
    assert service.requests == []


def test_a_server_that_does_not_know_the_address(tmp_path: Path, model: Path) -> None:
    with serving(Service(status=404)) as service:
        done = predict(tmp_path, model, service.url, "--log_format=json")
    assert done.returncode == 0
    (warning,) = map(json.loads, done.stderr.splitlines())
    assert "start (HTTP 404), exit status (HTTP 404)" in warning["message"]
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "receipt"
    assert_kept_secret(tmp_path, done)


def test_a_terminated_run_tells_of_it(tmp_path: Path, model: Path) -> None:
    (tmp_path / "prom").mkdir()
    with serving(Service()) as service:
        process = start(
            "--input_file=-", "--input_format=csv", "--output_file=out.csv", f"--model={model}",
            f"--ping_url={service.url}", "--metrics_dir=prom", cwd=tmp_path,
        )  # fmt: skip
        until = time.monotonic() + 30
        while not list(tmp_path.glob(".out.csv.*")) and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 143
    assert urlsplit(service.requests[-1][1]).path == f"/{SECRET}/143"
    (path,) = (tmp_path / "prom").iterdir()
    assert 'status="stopped"' in path.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_end_is_told(
    tmp_path: Path, model: Path, number: signal.Signals
) -> None:
    """What was to be done is done: the ping is given up, the exit status is the run's."""
    (tmp_path / "data.csv").write_text("id,text\n1,good\n")
    with serving(Service()) as service:
        process = start(
            "--input_file=data.csv", f"--model={model}", f"--ping_url={service.url}", cwd=tmp_path
        )
        until = time.monotonic() + 30
        while not service.requests and time.monotonic() < until:
            time.sleep(0.01)
        service.delay = 30.0
        while len(service.requests) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        begin = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert time.monotonic() - begin < 5
    assert b"not told of the run's exit status (no answer in time)" in errors
    assert (tmp_path / "data.scored.csv").exists()


@pytest.mark.parametrize(
    "url",
    [
        f"ftp://host/{SECRET}",
        f"https://user:{SECRET}@host/",
        f"https://host/{SECRET}#more",
        f"https://host/{SECRET} x",
        f"https://host/{SECRET}\x1b",
        f"https://host/{SECRET}\u00e9",
        SECRET,
        "",
    ],
)
def test_no_address(url: str) -> None:
    with pytest.raises(UsageError, match="--ping_url: must be") as caught:
        pings.Pings(url, RUN)
    assert SECRET not in str(caught.value)


def test_no_address_on_the_command_line(tmp_path: Path, model: Path) -> None:
    done = predict(tmp_path, model, f"hc:{SECRET}")
    assert done.returncode == 2
    assert_kept_secret(tmp_path, done)


@pytest.mark.parametrize(
    ("wrong", "arguments", "code", "words"),
    [
        ("inputfile = 'x'", [], 78, "night.toml: unknown option 'inputfile'"),
        ("limit = 'many'", [], 78, "night.toml: Invalid value for '--limit'"),
        ("column = 5", [], 78, "night.toml: column must be a table"),
        ("", ["--imput_file=data.csv"], 2, "No such option"),
        ("", ["--limit=many"], 2, "'--limit'"),
        ("", ["--model"], 2, "'--model' requires an argument"),
        ("", ["--output_dir="], 2, "'--output_dir'"),
    ],
)
def test_a_slip_in_a_job_file_or_an_option(
    tmp_path: Path, wrong: str, arguments: list[str], code: int, words: str,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """At night nobody reads what the command says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prom").mkdir()
    with serving(Service()) as service:
        (tmp_path / "night.toml").write_text(
            f"input_file = 'data.csv'\nmodel = 'm'\nping_url = '{service.url}'\n"
            f"metrics_dir = 'prom'\n{wrong}\n"
        )
        assert main(["--dry_run", "--job=night.toml", *arguments]) == code
        assert service.requests == []
        capfd.readouterr()
        assert main(["--job=night.toml", *arguments]) == code
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert words in line
    paths = [urlsplit(path).path for _, path, _ in service.requests]
    assert paths == [f"/{SECRET}/start", f"/{SECRET}/{code}"]
    assert f"ERROR {line.split('ERROR ')[1].split(' ', 1)[1].split(' (see')[0]}" in (
        service.requests[1][2].decode()
    )
    text = (tmp_path / "prom" / "batchpredict_night.prom").read_text()
    assert f'batchpredict_last_run_exit_code{{task="night"}} {code}.0' in text
    assert 'batchpredict_last_success_timestamp_seconds{task="night"} 0.0' in text


def test_what_is_known_of_a_call_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job file that is no TOML says nothing, and a call without an input is no task's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prom").mkdir()
    (tmp_path / "night.toml").write_text("metrics_dir = 'prom'\nlimit = \n")
    with serving(Service()) as service:
        monkeypatch.setenv("BATCHPREDICT_PING_URL", service.url)
        codes = [
            main(arguments)
            for arguments in (
                ["--job=night.toml"],
                ["--imput_file=data.csv", "--metrics_dir=prom"],
                ["--input_file=data.csv", "--metrics_dir={dat}"],
                ["--help"],
            )
        ]
    assert codes == [78, 2, 2, 0]
    paths = [urlsplit(path).path.rpartition("/")[2] for _, path, _ in service.requests]
    assert paths == ["start", "78", "start", "2", "start", "2"]
    assert not [*(tmp_path / "prom").iterdir()]


# --- in this process


def ended(code: int = 0, *messages: str) -> Ended:
    return Ended(RUN, code, 5.0, 1.5, (), (), messages)


def told(url: str) -> float:
    """Seconds that a run which is over at once is delayed by."""
    both = pings.Pings(url, RUN)
    both.start()
    begin = time.monotonic()
    both.end(ended())
    return time.monotonic() - begin


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the time."""
    for name in ("_START_SECONDS", "_END_SECONDS", "_SOCKET_SECONDS", "_PAUSE_SECONDS"):
        monkeypatch.setattr(pings, name, getattr(pings, name) / 5)


def test_all_of_it_is_less_than_ten_seconds() -> None:
    assert pings._START_SECONDS + pings._END_SECONDS < MOST_SECONDS


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    ("service", "reason"),
    [
        (Service(delay=30.0), "no answer in time"),
        (Service(status=500), "HTTP 500"),
        (Service(status=404), "HTTP 404"),
        (Service(status=302, location="/elsewhere"), "HTTP 302: it leads elsewhere"),
    ],
    ids=["slow", "500", "404", "redirect"],
)
def test_a_server_that_does_not_do(
    service: Service, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(service):
        assert told(service.url) < MOST_SECONDS / 5
    assert caplog.text.count("WARNING") == 1
    assert f"start ({reason}" in caplog.text
    assert f"exit status ({reason}" in caplog.text
    assert SECRET not in caplog.text
    assert all("elsewhere" not in path for _, path, _ in service.requests)


@pytest.mark.usefixtures("_quick")
def test_a_dead_server(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert told(f"http://127.0.0.1:{port}/{SECRET}") < MOST_SECONDS / 5
    assert re.search(r"start \(.*refused\), exit status \(.*refused\)", caplog.text)


@pytest.mark.usefixtures("_quick")
def test_a_name_that_is_looked_up_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    def hang(*_: object, **__: object) -> object:
        release.wait(30)
        raise OSError("never")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    assert told(f"http://healthchecks.invalid/{SECRET}") < MOST_SECONDS / 5
    release.set()
    assert "no answer in time" in caplog.text


@pytest.mark.usefixtures("_quick")
def test_a_lost_ping_is_sent_again(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Service(dropped=1)) as service:
        told(service.url)
    paths = [urlsplit(path).path for _, path, _ in service.requests]
    assert paths == [f"/{SECRET}/start", f"/{SECRET}/start", f"/{SECRET}/0"]
    assert not caplog.records


def test_the_run_does_not_wait_for_the_ping_of_its_start() -> None:
    with serving(Service(delay=3.0)) as service:
        begin = time.monotonic()
        pings.Pings(service.url, RUN).start()
        assert time.monotonic() - begin < 2


def test_a_long_summary_keeps_its_end() -> None:
    messages = [f"WARNING \u00e9{number} {'x' * 200}" for number in range(100)]
    body = pings.body_of(ended(70, *messages))
    assert len(body) <= 10_000
    first, *rest = body.decode().splitlines()
    assert first.endswith(f"run {RUN}: failed, exit status 70, 1.5 s")
    assert rest[-1] == messages[-1]


@pytest.mark.parametrize("option", ["metrics", "pings"])
def test_what_tells_of_a_run_cannot_fail_it(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr("batchpredict.ops.metrics.write_metrics", broken)
    monkeypatch.setattr(pings.Pings, "start", lambda self: None)
    monkeypatch.setattr(pings.Pings, "end", broken)
    targets = {
        "metrics": Targets(str(tmp_path), None),
        "pings": Targets(None, f"http://127.0.0.1/{SECRET}"),
    }[option]
    with monitored(TaskName("a", "a"), targets) as watched:
        watched.exit_code = 0
    assert "this run is not told of: ValueError" in caplog.text
    assert SECRET not in caplog.text


def test_warnings_and_the_error_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Ended] = []
    monkeypatch.setattr(
        "batchpredict.ops.metrics.write_metrics", lambda *told: seen.append(told[2])
    )

    def interrupted() -> None:
        with monitored(TaskName("a", "a"), Targets(".", None)):
            logging.getLogger("batchpredict.run.runner").warning("look %s", "here")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one_run()(interrupted)()
    (end,) = seen
    assert (end.exit_code, end.status, end.run_id) == (130, "stopped", run_id())
    assert end.messages == ("WARNING look here", "ERROR interrupted")
