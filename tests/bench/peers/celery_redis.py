"""Celery on Redis, results pushed by Redis."""

from __future__ import annotations

import os

from tests.bench.peers import _celery

ACK = "after the run (acks_late; its default is before)"
DURABILITY = "the server's; what a killed worker held comes back after an hour (visibility_timeout)"
NOTE = os.environ.get("BENCH_POOL", "-P solo") + ", prefetch × 1000, or × 1 with a pool (its default: × 4)"
RESULTS = True
VERSIONS = (*_celery.VERSIONS, "redis")

_url = os.environ.get("BENCH_URL", "redis://")
_contender = _celery.Contender(__name__, _url, _url, options={}, task_acks_late=True)
if "BENCH_POOL" in os.environ:
    _contender.app.conf.worker_prefetch_multiplier = int(os.environ.get("BENCH_PREFETCH", "1"))
app, worker, send, call, submit = (
    _contender.app, _contender.worker, _contender.send, _contender.call, _contender.submit,
)  # fmt: skip
