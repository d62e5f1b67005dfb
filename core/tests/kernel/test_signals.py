"""Signals of a worker's own process, while it starts and at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import pytest

from taskq.errors import ConnectionFailed
from taskq_transport_memory.transport import MemoryTransport

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")


def test_a_flag_may_be_set_by_a_signal_at_any_moment() -> None:
    """``threading.Event`` hangs here: a handler waits for the lock that the very code it interrupted holds."""
    code = """
        import signal, sys, time
        from taskq.worker.flag import Flag

        flag = Flag()

        def struck(*_):
            flag.set()
            signal.setitimer(signal.ITIMER_REAL, 0.0001)

        signal.signal(signal.SIGALRM, struck)
        signal.setitimer(signal.ITIMER_REAL, 0.0001)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            flag.clear()
            flag.wait(0.0001)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        flag.set()
        sys.exit(0 if flag.wait(5) and flag.is_set() else 1)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=30, check=False)
    assert done.returncode == 0


def away(self: Any) -> None:
    raise ConnectionFailed("nobody there")


def hanging(self: Any) -> None:
    time.sleep(30)  # a connection attempt that nobody answers


@pytest.mark.parametrize("opening", [away, hanging])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_worker_that_waits_for_its_broker_ends_at_once(
    rig: Any, pool: str, monkeypatch: pytest.MonkeyPatch, opening: Any, number: int
) -> None:
    app = rig.app()
    app.task(name="noop")(lambda: None)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryTransport, "open", opening)
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        worker, began = app.worker(pool=pool), time.monotonic()
        assert worker.run() == 0
        assert time.monotonic() - began < 10, "the start was not left"
    assert signal.getsignal(number) is before
    assert worker.restart_wanted is (number == signal.SIGHUP and not os.isatty(2))


def test_a_worker_on_a_thread_that_waits_for_its_broker_can_be_stopped(
    rig: Any, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = rig.app()
    app.task(name="noop")(lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryTransport, "open", away)
        worker = app.worker(pool=pool)
        thread = threading.Thread(target=worker.run, kwargs={"signals": False})
        thread.start()
        worker.stop()
        thread.join(10)
        assert not thread.is_alive()
    assert worker.exit_code == 0
