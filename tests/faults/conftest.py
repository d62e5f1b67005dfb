"""An application with worker processes on a broker of the test's own, all with default settings."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import Signature, TaskQ
from tests.faults.brokers import BROKERS, SERVED, Broker
from tests.support.processes import Worker, eventually

SOAK = bool(os.environ.get("TASKQ_SOAK"))
LEASE = 10.0  # the default
SLACK = 15.0  # what a busy machine may add
TASKS = """
import os, time
from taskq import TaskQ

HERE = os.path.dirname(os.path.abspath(__file__))
app = TaskQ("faults", broker={broker!r}, result_store={store!r}, isolated=True, **{settings!r})
notes = os.open(os.path.join(HERE, "notes"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@app.task
def short(i):
    time.sleep(0.005)
    os.write(notes, b"%d\\n" % i)
    return i

@app.task
def long(i):
    os.write(notes, b"%d\\n" % i)
    while not os.path.exists(os.path.join(HERE, "gate")):
        time.sleep(0.02)
    return i
"""


class Site:
    """The application's folder, its broker, and the application as a client has it."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self.folder = folder
        self.broker = broker
        self.workers: list[Worker] = []
        self._apps: list[TaskQ] = []
        self.serve()

    def serve(self, broker: str | None = None, store: str | None = None, **settings: Any) -> None:
        """Make the application use these URLs and settings; the broker's own URL by default."""
        self.url, self.store = broker or self.broker.url(), store
        text = TASKS.format(broker=self.url, store=store, settings=settings)
        (self.folder / "tasks.py").write_text(text)

    def app(self, url: str | None = None, **settings: Any) -> TaskQ:
        """The application of a client; closed after the test."""
        app = TaskQ("faults", broker=url or self.url, result_store=self.store, isolated=True, **settings)
        self._apps.append(app)
        return app

    def send(self, app: TaskQ, n: int, task: str = "short", first: int = 0, **options: Any) -> list[Any]:
        return list(
            app.send_many(
                [Signature(app=app, task=f"tasks.{task}", args=(i,), options=options) for i in range(first, first + n)]
            )
        )

    def worker(self, *options: str) -> Worker:
        made = Worker(self.folder, *options)
        self.workers.append(made)
        return made

    @property
    def output(self) -> str:
        """The logs of all workers, for a test that failed."""
        return "\n".join(f"--- {w.log.name}\n{w.output[-3000:]}" for w in self.workers)

    def ran(self) -> list[int]:
        """Numbers of the tasks that ran, as often as they did."""
        path = self.folder / "notes"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def all_ran(self, n: int, patience: float) -> None:
        def missing() -> bool:
            return not set(range(n)) <= set(self.ran())

        try:
            eventually(lambda: not missing(), self, patience)
        except BaseException:
            left = sorted(set(range(n)) - set(self.ran()))
            print(f"missing {len(left)} of {n}: {left[:20]}")
            raise

    def open_gate(self) -> None:
        (self.folder / "gate").touch()

    def end_well(self) -> None:
        """All is settled, TERM ends every worker that still runs, with code 0, and nothing is left on the server."""
        transport: Any = self.app(self.broker.url()).transport

        def settled() -> bool:
            found = transport.stats(["default"]).get("default")
            return found is None or not (found.ready or found.in_flight or found.delayed)

        eventually(settled, self, LEASE + SLACK)
        running = [w for w in self.workers if w.process.poll() is None]
        for worker in running:
            worker.send(signal.SIGTERM)
        for worker in running:
            assert worker.wait() == 0, worker.output
        deadline = time.monotonic() + LEASE + SLACK
        while left := self.broker.left():
            if hasattr(transport, "maintain"):
                transport.maintain(0.1)  # what a worker does from time to time; the last one is gone
            assert time.monotonic() < deadline, f"left on the server: {sorted(left)}\n{self.output}"
            time.sleep(0.1)

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        for app in self._apps:
            app.close()


@pytest.fixture
def make_site(tmp_path: Path, server_url: Callable[[str], str]) -> Iterator[Callable[[str], Site]]:
    """A function that makes a site with a broker of this name, started."""
    made: list[Site] = []
    brokers: list[Broker] = []

    def make(name: str) -> Site:
        kind = BROKERS[name]
        if kind.server:
            server_url(kind.server)  # skips, or fails under CI, where there is none
        broker = kind(tmp_path)
        brokers.append(broker)
        broker.start()
        made.append(Site(tmp_path, broker))
        return made[-1]

    yield make
    for site in made:
        site.close()
    for broker in brokers:
        broker.close()


def _params(names: list[str]) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.server) if BROKERS[n].server else n for n in names]


@pytest.fixture(params=_params(list(BROKERS)))
def site(request: pytest.FixtureRequest, make_site: Callable[[str], Site]) -> Site:
    """A site on each broker."""
    return make_site(request.param)


@pytest.fixture(params=_params(SERVED))
def served(request: pytest.FixtureRequest, make_site: Callable[[str], Site]) -> Site:
    """A site on each broker that is a server."""
    return make_site(request.param)
