"""procrastinate on PostgreSQL."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

from tests.bench.stopwatch import answer, await_answer, tick

ACK = "after the run (a job that dies with its worker stays 'doing' until the application retries it)"
DURABILITY = "the server's: commit with fsync"
NOTE = "concurrency 1, LISTEN/NOTIFY; it keeps no results: a round trip ends when the task runs"
RESULTS = False
VERSIONS = ("procrastinate", "psycopg")

_url = os.environ.get("BENCH_URL", "")
app = App(connector=PsycopgConnector(conninfo=_url))
noop = app.task(name="noop", pass_context=False)(tick)
pong = app.task(name="pong", pass_context=False)(answer)
_opened = False


def _client() -> None:
    global _opened
    if not _opened:
        app.replace_connector(SyncPsycopgConnector(conninfo=_url)).__enter__().open()
        _opened = True


def prepare() -> None:
    _client()
    app.schema_manager.apply_schema()


def worker() -> list[str]:
    program = str(Path(sys.executable).with_name("procrastinate"))
    return [program, "--app", f"{__name__}.app", "worker", "-c", "1"]


def send(count: int, *, bulk: bool, results: bool) -> None:
    _client()
    if bulk:
        for start in range(0, count, 1000):
            noop.batch_defer(*[{}] * min(1000, count - start))
    else:
        for _ in range(count):
            noop.defer()


def call() -> None:
    _client()
    pong.defer()
    await_answer()
