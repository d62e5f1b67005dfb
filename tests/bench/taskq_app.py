"""taskq, as a contender: with its defaults, on the broker of the environment."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

from taskq import TaskQ
from tests.bench import stopwatch
from tests.bench.stopwatch import tick

_url = os.environ.get("BENCH_URL", "memory://")
_scheme = _url.partition(":")[0]
_pool = os.environ.get("BENCH_POOL", "-P solo")
_queues = int(os.environ.get("BENCH_QUEUES", "0"))
_countdown = float(os.environ.get("BENCH_COUNTDOWN", "0"))
_asynchronous = bool(os.environ.get("BENCH_ASYNC"))

ACK = "after the run (at least once)"
DURABILITY = {
    "memory": "none: one process",
    "sqlite": "WAL, synchronous=FULL: accepted means on disk",
    "redis": "the server's",
    "amqp": "quorum queue, persistent, publisher confirms",
    "zeromq": "none: in the hub's memory",
    "sqs": "the service's (here: an emulator)",
}.get(_scheme, "the server's: commit with fsync")
if "NORMAL" in _url:
    DURABILITY = "WAL, synchronous=NORMAL (power loss may undo the last moments)"
if "queue_type=classic" in _url:
    DURABILITY = "classic queue, persistent, publisher confirms"
NOTE = (_pool if _pool != "-P solo" else "") + (", async def" if _asynchronous else "")
RESULTS = bool(entry_points(group="taskq.result_stores", name=_scheme))  # where the broker's server keeps them
VERSIONS = ("taskq-core",)
QUEUES = ("default",)
_CHUNK = 10_000
_program = str(Path(sys.executable).with_name("taskq"))

# Other servers keep results by themselves where they are the broker.
_store = _url.partition("?")[0] if RESULTS and _scheme in ("amqp", "zeromq") else None
app = TaskQ("bench", broker=_url, result_store=_store, isolated=True)


@app.task(name="plain", ignore_result=True)
def plain() -> None:
    tick()


@app.task(name="kept")
def kept() -> None:
    tick()


@app.task(name="anoop", ignore_result=True)
async def anoop() -> None:
    tick()


@app.task(name="akept")
async def akept() -> None:
    tick()


@app.task(name="pong", ignore_result=True)
def pong() -> None:
    stopwatch.answer()


@app.task(name="anap", ignore_result=True)
async def anap(milliseconds: float) -> None:
    await asyncio.sleep(milliseconds / 1000)
    tick()


_kinds = {
    "burn": app.task(name="burn", ignore_result=True)(stopwatch.burn),
    "nap": anap if _asynchronous else app.task(name="nap", ignore_result=True)(stopwatch.nap),
    "stamped": app.task(name="stamped", ignore_result=True)(stopwatch.stamped),
}
noop = anoop if _asynchronous else plain
storing = akept if _asynchronous else kept


def server() -> list[str]:
    if _scheme != "zeromq":
        return []
    return [_program, "zeromq", "hub", "--bind", "tcp://127.0.0.1:{port}"]


def worker() -> list[str]:
    queues = ["-Q", ",".join(f"q{n}" for n in range(_queues))] if _queues else []
    return [_program, "-A", __name__, "worker", "-l", "WARNING", *_pool.split(), *queues]


def send(count: int, *, bulk: bool, results: bool) -> None:
    task = storing if results else noop
    if _queues:
        app.send_many([task.s().set(queue=f"q{n % _queues}") for n in range(count)])
    elif _countdown and not results:
        app.send_many([task.s().set(countdown=_countdown) for _ in range(count)])
    elif bulk:
        for start in range(0, count, _CHUNK):
            app.send_many([task.s() for _ in range(min(_CHUNK, count - start))])
    else:
        for _ in range(count):
            task.delay()


def call() -> None:
    if RESULTS:
        storing.delay().get(timeout=20)
    else:
        pong.delay()
        stopwatch.await_answer()


def submit(kind: str, arguments: list[list[float]], pause: float = 0.0) -> None:
    task = _kinds[kind]
    if kind != "stamped":
        app.send_many([task.s(*these) for these in arguments])
        return
    for these in arguments:
        task.delay(time.monotonic(), *these)
        time.sleep(pause)
