"""A worker with child processes, on SQLite, in the test's own process; its application is a module in a folder."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import sys
import textwrap
import time
from pathlib import Path

import pytest

from taskq_pool_prefork.pool import PreforkPool

PATIENCE_S = 20.0
_numbers = itertools.count()

TASKS = """
import ctypes, multiprocessing, os, signal, subprocess, sys, threading, time
from taskq import TaskQ, current_request

HERE = os.path.dirname(os.path.abspath(__file__))
app = TaskQ("prefork", broker={broker!r}, lease=10.0, max_deliveries={max_deliveries}, max_result_bytes=1_000_000)

def note(*words):
    with open(os.path.join(HERE, "notes"), "a") as file:
        file.write(" ".join(map(str, words)) + "\\n")

def gate(name="gate"):
    while not os.path.exists(os.path.join(HERE, name)):
        time.sleep(0.005)

@app.task
def echo(x):
    note("echo", x, os.getpid(), current_request().deliveries)
    return x

@app.task
def who():
    return os.getpid()

@app.task
def gated(x):
    note("began", x, os.getpid(), current_request().deliveries)
    gate()
    note("ended", x)
    return x
"""


def eventually(look, what="it happens", seconds=PATIENCE_S):
    deadline = time.monotonic() + seconds
    while not (value := look()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.005)
    return value


def alive(pid):
    """Whether a process runs, zombies excluded."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Site:
    """One test's application and worker."""

    eventually = staticmethod(eventually)
    alive = staticmethod(alive)

    def __init__(self, folder, monkeypatch, broker=None):
        self.broker = broker or f"sqlite:///{folder}/queue.db?synchronous=NORMAL"
        self.folder = folder
        self.module = f"prefork_tasks_{os.getpid()}_{next(_numbers)}"
        self._monkeypatch = monkeypatch
        self.worker = None
        self.app = None

    def start(self, more="", *, concurrency=2, max_deliveries=3, grace=5.0, options=None, **settings):
        """Declare tasks and start a worker for them."""
        text = TASKS.format(broker=self.broker, max_deliveries=max_deliveries) + textwrap.dedent(more)
        (self.folder / f"{self.module}.py").write_text(text)
        self._monkeypatch.syspath_prepend(self.folder)
        for name, value in (options or {}).items():
            self._monkeypatch.setenv(f"TASKQ_POOLS__PREFORK__{name.upper()}", str(value))
        self.app = importlib.import_module(self.module).app
        self.worker = self.app.worker(pool="prefork", concurrency=concurrency, grace=grace, **settings)
        begin = PreforkPool.start

        def start(pool, runtime, sink):
            self.pool = pool  # a worker may have several, behind one
            begin(pool, runtime, sink)

        self._monkeypatch.setattr(PreforkPool, "start", start)
        self.worker.start()
        return self

    @property
    def children(self):
        """The process ids of the children that are ready."""
        with self.pool._lock:
            return [m.pid for m in self.pool._crew.members.values() if m.pid]

    @property
    def server(self):
        return self.pool._supervisor._server.process.pid

    def send(self, task, *args, **options):
        return self.app.send_task(f"{self.module}.{task}", args, **options)

    def notes(self, what):
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1:] for line in lines if line.split()[0] == what]

    def open(self, name="gate"):
        (self.folder / name).touch()

    def close(self):
        self.open()
        if self.worker is not None:
            self.worker.stop()
            self.worker.join(PATIENCE_S)
        if self.app is not None:
            self.app.close()
        sys.modules.pop(self.module, None)


@pytest.fixture
def site(request, tmp_path, monkeypatch, caplog):
    """On SQLite, or on Redis where the test says so by an indirect parameter."""
    caplog.set_level(logging.INFO, "taskq")
    redis = getattr(request, "param", "sqlite") == "redis"
    made = Site(tmp_path, monkeypatch, request.getfixturevalue("redis_url") if redis else None)
    yield made
    made.close()
