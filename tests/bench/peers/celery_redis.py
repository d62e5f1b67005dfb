"""Celery on Redis, results pushed by Redis."""

from __future__ import annotations

import os

from tests.bench.peers import _celery

_prefetch = int(os.environ.get("BENCH_PREFETCH", "1000"))
ACK = "after the run (acks_late; its default is before)"
DURABILITY = "the server's; what a killed worker held comes back after an hour (visibility_timeout)"
NOTE = f"{os.environ.get('BENCH_POOL', '-P solo')}, prefetch × {_prefetch} (its default: × 4)"
RESULTS = True
VERSIONS = (*_celery.VERSIONS, "redis")

_url = os.environ.get("BENCH_URL", "redis://")
_contender = _celery.Contender(
    __name__, _url, _url, options={}, task_acks_late=True, worker_prefetch_multiplier=_prefetch
)
app, worker, send, call, submit = (
    _contender.app, _contender.worker, _contender.send, _contender.call, _contender.submit,
)  # fmt: skip
