"""What a service manager hears from a worker."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import TaskQ
from taskq_contrib_systemd import plugin


class Manager:
    """The receiving end of systemd's notifications."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self.socket.settimeout(10)

    def hear(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())

    def hear_until(self, name: str) -> dict[str, str]:
        while name not in (told := self.hear()):
            pass
        return told


@pytest.fixture(params=["path", "abstract"])
def manager(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    path = f"{tmp_path}/notify" if request.param == "path" else f"@taskq-test-{os.getpid()}"
    manager = Manager(path)
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    yield manager
    manager.socket.close()


@pytest.fixture
def app() -> Iterator[TaskQ]:
    with TaskQ("unit", broker="memory://unit", isolated=True) as app:
        app.task(name="noop")(lambda: 1)
        yield app


def test_ready_signs_of_life_and_the_end(app: TaskQ, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "150000")
    with app.worker(pool="solo") as worker:
        assert manager.hear()["READY"] == "1"
        told = manager.hear_until("WATCHDOG")
        assert told["STATUS"].startswith(f"worker {worker.name}: 0 ended")
    assert manager.hear_until("STOPPING")["STOPPING"] == "1"
    assert not plugin._stops


def test_a_worker_that_starts_anew_does_not_say_that_it_ends(app: TaskQ, manager: Manager) -> None:
    """The manager would kill the new one for being still there at the end of its patience."""
    with app.worker(pool="solo") as worker:
        assert manager.hear()["READY"] == "1"
        worker.restart_wanted = True  # as on HUP
        before = time.monotonic()
    told = manager.hear_until("RELOADING")
    assert before <= int(told["MONOTONIC_USEC"]) / 1e6 + 1e-6
    assert "STOPPING" not in told
    manager.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        manager.hear_until("STOPPING")


def test_a_worker_that_is_not_live_gives_no_sign(
    app: TaskQ, manager: Manager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "90000")
    monkeypatch.setattr("taskq.worker.watch._SILENCE", -1.0)  # every turn is too long ago
    with app.worker(pool="threads", concurrency=1):
        assert manager.hear()["READY"] == "1"
        manager.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            manager.hear_until("WATCHDOG")
    assert "no sign of life" in caplog.text


def test_no_signs_of_life_where_nobody_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert plugin.watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert plugin.watchdog_s() == 1.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert plugin.watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert plugin.watchdog_s() is None


def test_nothing_happens_without_a_manager(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not plugin.notify(READY="1")
    with app.worker(pool="solo"):
        assert not plugin._stops


def test_a_manager_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/nobody")
    assert not plugin.notify(READY="1")
