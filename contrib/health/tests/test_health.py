"""Probes of real workers, over HTTP and by the command."""

from __future__ import annotations

import json
import os
import signal
import socket as socketlib
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from taskq import TaskQ
from taskq.errors import ConfigError, WorkerError
from taskq_contrib_health import plugin
from taskq_contrib_health.options import parse
from tests.support.processes import Worker, environment, eventually

TASKS = """
from taskq import TaskQ

app = TaskQ("probed", broker="sqlite:///{folder}/q.db?synchronous=NORMAL", isolated=False)

@app.task
def noop():
    return 1
"""


@pytest.fixture
def app() -> Iterator[TaskQ]:
    with TaskQ(
        "health",
        broker="memory://health",
        isolated=True,
        extensions={"health": {"address": "127.0.0.1:0", "tasks": True}},
    ) as app:
        app.task(name="noop")(lambda: 1)
        yield app


def ask(worker: Any, path: str) -> tuple[int, Any]:
    host, port = plugin._servers[worker].address[:2]
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_worker_at_work_is_live_and_ready(app: TaskQ) -> None:
    gate = threading.Event()
    app.task(name="wait")(lambda: gate.wait(20))
    with app.worker(pool="threads", concurrency=1) as worker:
        assert ask(worker, "/live") == (200, {"live": True, "reasons": []})
        assert ask(worker, "/ready") == (200, {"ready": True, "reasons": []})
        app.tasks["noop"].delay().get(timeout=10)
        result = app.tasks["wait"].delay()
        (task,) = eventually(lambda: ask(worker, "/running")[1]["tasks"])
        assert (task["task"], task["id"]) == ("wait", result.id)
        status, health = ask(worker, "/health")
        assert (status, health["worker"], health["slots"]) == (200, worker.name, 1)
        status, missing = ask(worker, "/nothing?x=1")
        assert status == 404
        assert "/ready" in missing["paths"]
        worker.lanes[0].broker_down = True
        assert ask(worker, "/ready") == (503, {"ready": False, "reasons": ["the broker is not available"]})
        assert ask(worker, "/live")[0] == 200
        worker.lanes[0].broker_down = False
        gate.set()
    assert worker not in plugin._servers


def test_which_tasks_run_is_told_on_request_only(app: TaskQ) -> None:
    other = TaskQ("quiet", broker="memory://quiet", isolated=True, extensions={"health": {"address": "127.0.0.1:0"}})
    other.task(name="noop")(lambda: 1)
    with other, other.worker(pool="solo") as worker:
        assert ask(worker, "/running")[0] == 404


def test_an_address_in_use_ends_the_start(app: TaskQ) -> None:
    with app.worker(pool="solo") as worker:
        host, port = plugin._servers[worker].address
        second = TaskQ("second", broker="memory://second", isolated=True,
                       extensions={"health": {"address": f"{host}:{port}"}})  # fmt: skip
        second.task(name="noop")(lambda: 1)
        with second, pytest.raises(WorkerError, match="an address of its own"):
            second.worker(pool="solo").start()


@pytest.mark.parametrize("address", ["", "localhost", "host:port", "unix:", ":99999", "8080"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        parse(address)


def test_addresses() -> None:
    assert parse("localhost:80") == ("localhost", 80)
    assert parse(":8080") == ("0.0.0.0", 8080)
    assert parse("[::1]:8080") == ("::1", 8080)
    assert parse("unix:/run/x") == "/run/x"


def test_each_worker_has_the_address_of_its_name(tmp_path: Path) -> None:
    """A dead worker's socket is in nobody's way; that of a living one, or another file, is never removed."""
    socket, other = tmp_path / "mail-1.sock", tmp_path / "mail-2.sock"
    options = {"health": {"address": f"unix:{tmp_path}/{{name}}.sock"}}
    dead = socketlib.socket(socketlib.AF_UNIX)
    dead.bind(str(socket))
    dead.close()
    other.write_text("kept")
    with TaskQ("named", broker="memory://named", isolated=True, extensions=options) as app:
        app.task(name="noop")(lambda: 1)
        with app.worker(pool="solo", name="mail-1") as worker:
            assert plugin._servers[worker].address == str(socket)
            for name in ("mail-1", "mail-2"):
                with pytest.raises(WorkerError, match="an address of its own"):
                    app.worker(pool="solo", name=name).start()
            assert socket.is_socket()
    assert not socket.exists()
    assert other.read_text() == "kept"


def probe(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taskq", "health", *options], cwd=folder, env=environment(folder), check=False,
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def test_the_command_asks_a_worker_process(tmp_path: Path) -> None:
    socket = tmp_path / "h.sock"
    (tmp_path / "tasks.py").write_text(TASKS.format(folder=tmp_path))
    (tmp_path / "taskq.toml").write_text(f'[extensions.health]\naddress = "unix:{tmp_path}/{{name}}.sock"\n')
    nobody = probe(tmp_path, "--name", "h")
    assert nobody.returncode == 1
    assert "no worker answers" in nobody.stderr
    worker = Worker(tmp_path, "-P", "solo", "-n", "h").ready()
    try:
        assert probe(tmp_path, "--name", "h").returncode == 0
        nameless = probe(tmp_path)
        assert nameless.returncode == 1
        assert "--name" in nameless.stderr
        live = probe(tmp_path, "--live", "--address", f"unix:{socket}")
        assert (live.returncode, live.stdout) == (0, "live\n")
        told = json.loads(probe(tmp_path, "-n", "h", "--json").stdout)
        assert (told["pid"], told["ready"], told["pools"]) == (worker.process.pid, True, ["solo"])
        worker.send(signal.SIGSTOP)
        stopped = probe(tmp_path, "-n", "h", "--timeout", "0.5")
        assert stopped.returncode == 1
        worker.send(signal.SIGCONT)
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
    finally:
        worker.end()
    assert not os.path.exists(socket)


def test_the_command_needs_an_address(tmp_path: Path) -> None:
    answer = probe(tmp_path)
    assert answer.returncode == 1
    assert "--address" in answer.stderr
