"""Celery on its SQLAlchemy transport and result backend, SQLite files."""

from __future__ import annotations

import os

from tests.bench.peers import _celery

ACK = "before the run (the row is marked as it is taken, and nothing brings it back after a crash)"
DURABILITY = "SQLite's defaults: rollback journal, synchronous=FULL"
NOTE = "polls every 10 ms, results every 5 ms (its defaults: 1 s, 0.5 s)"
RESULTS = True
VERSIONS = (*_celery.VERSIONS, "SQLAlchemy")

_folder = os.environ["BENCH_DIR"]
_contender = _celery.Contender(
    __name__, f"sqla+sqlite:///{_folder}/broker.db", f"db+sqlite:///{_folder}/results.db", options={}
)
app, worker, send, call = _contender.app, _contender.worker, _contender.send, _contender.call
