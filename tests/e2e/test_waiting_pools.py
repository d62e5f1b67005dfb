"""Worker processes with the pools for tasks that wait: asyncio, gevent and eventlet, on SQLite and Redis."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq import TaskQ
from taskq.errors import SoftTimeLimitExceeded, TimeLimitExceeded
from tests.support.processes import Worker

LEASE = 2.0
TASKS = """
import asyncio, os, socket, sys, threading, time
PATCHED = [name for name in ("gevent", "eventlet") if socket.socket.__module__.startswith(name)]
from taskq import TaskQ, current_request

HERE = os.path.dirname(os.path.abspath(__file__))
app = TaskQ("waits", broker={broker!r}, isolated=True, lease={lease}, queues={{}})
REACHED, ALL = 0, 50

@app.task
def patched():
    return PATCHED

@app.task
def together(i):
    \"\"\"Return when all are here: they must run at the same time.\"\"\"
    global REACHED
    REACHED += 1
    while REACHED < ALL:
        time.sleep(0.01)
    return current_request().args[0]

@app.task
async def async_together(i):
    global REACHED
    REACHED += 1
    while REACHED < ALL:
        await asyncio.sleep(0.01)
    return current_request().args[0]

@app.task
def fetch(port):
    \"\"\"Wait for a server that answers after a moment.\"\"\"
    with socket.create_connection(("127.0.0.1", port)) as sock:
        return sock.recv(10).decode()

@app.task
def gated():
    with open(os.path.join(HERE, "began"), "a") as file:
        file.write("x")
    while not os.path.exists(os.path.join(HERE, "gate")):
        time.sleep(0.01)
    return current_request().deliveries

@app.task
async def agated():
    with open(os.path.join(HERE, "began"), "a") as file:
        file.write("x")
    while not os.path.exists(os.path.join(HERE, "gate")):
        await asyncio.sleep(0.01)
    return current_request().deliveries

def wait_async(**options):
    @app.task(name="limited_async_" + "_".join(options), **options)
    async def limited():
        await asyncio.sleep(60)
    return limited

def wait(**options):
    @app.task(name="limited_" + "_".join(options), **options)
    def limited():
        time.sleep(60)
    return limited

wait_async(soft_time_limit=0.2)
wait_async(time_limit=0.2)
if {green}:
    wait(soft_time_limit=0.2)
    wait(time_limit=0.2)
"""


class Site:
    """A folder with the application, and a worker of one pool."""

    def __init__(self, folder: Path, pool: str, broker: str) -> None:
        self.folder = folder
        self.green = pool != "asyncio"
        (folder / "tasks.py").write_text(TASKS.format(broker=broker, lease=LEASE, green=self.green))
        self.app = TaskQ("waits", broker=broker, isolated=True, lease=LEASE)
        self.worker = Worker(folder, "-P", pool, "-c", "60", "--grace", "20")

    def call(self, name: str, *args: object) -> object:
        return self.app.send_task(name if "limited" in name else f"tasks.{name}", args)

    def began(self) -> int:
        file = self.folder / "began"
        return len(file.read_text()) if file.exists() else 0

    def until_began(self, count: int) -> None:
        deadline = time.monotonic() + 20
        while self.began() < count:
            assert time.monotonic() < deadline, self.worker.output
            time.sleep(0.01)


@pytest.fixture(params=["sqlite", "redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/queue.db?synchronous=NORMAL"
    url: str = request.getfixturevalue("redis_url")
    return url


@pytest.fixture(params=["asyncio", "gevent", "eventlet"])
def site(request: pytest.FixtureRequest, tmp_path: Path, broker: str) -> Iterator[Site]:
    site = Site(tmp_path, request.param, broker)
    site.worker.ready()
    yield site
    site.worker.end()
    site.app.close()


def test_a_worker_process(site: Site, request: pytest.FixtureRequest) -> None:
    """One process for all of it, as starting one is what takes time."""
    pool = request.node.callspec.params["site"]
    assert site.call("patched").get(timeout=20) == ([pool] if site.green else [])
    if site.green:
        results = [site.call("together", i) for i in range(50)]
        assert [result.get(timeout=20) for result in results] == list(range(50))
    else:
        results = [site.call("async_together", i) for i in range(50)]
        assert [result.get(timeout=20) for result in results] == list(range(50))
    names = ["limited_async_", "limited_"] if site.green else ["limited_async_"]
    for name in names:
        with pytest.raises(SoftTimeLimitExceeded):
            site.call(name + "soft_time_limit").get(timeout=20)
        with pytest.raises(TimeLimitExceeded):
            site.call(name + "time_limit").get(timeout=20)
    # leases are renewed while tasks of both kinds wait, and a warm stop lets them end
    held = [site.call("gated"), site.call("agated")]
    site.until_began(2)
    time.sleep(LEASE * 1.5)
    site.worker.send(signal.SIGTERM)
    time.sleep(0.2)
    (site.folder / "gate").touch()
    assert site.worker.wait() == 0, site.worker.output
    assert [result.get(timeout=20) for result in held] == [1, 1], "a message was given out again while its task ran"
    assert site.began() == 2


def test_what_runs_at_the_end_of_the_grace_goes_back(site: Site) -> None:
    """A second TERM interrupts what waits; the messages are there for the next worker at once."""
    names = ["agated", "gated"] if site.green else ["agated"]
    results = [site.call(name) for name in names]
    site.until_began(len(names))
    site.worker.send(signal.SIGTERM)
    time.sleep(0.3)
    site.worker.send(signal.SIGTERM)
    assert site.worker.wait() in (0, 3), site.worker.output
    (site.folder / "gate").touch()
    again = Worker(site.folder, "-P", "gevent" if site.green else "asyncio", "-c", "10").ready()
    try:
        for result in results:
            result.get(timeout=LEASE * 5)
    finally:
        again.end()


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_an_unpatched_process_is_refused(pool: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(
        TASKS.format(broker=f"sqlite:///{tmp_path}/q.db", lease=LEASE, green=True)
        + f"\napp.configure({{'worker.pool': {pool!r}}})\n"
    )
    worker = Worker(tmp_path)
    assert worker.wait() == 1
    assert f"needs a process that {pool} has patched" in worker.output
    assert f"taskq worker -P {pool}" in worker.output
