"""dramatiq on Redis."""

from __future__ import annotations

import os

from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from tests.bench.peers import _dramatiq

ACK = "after the run (at least once)"
DURABILITY = "the server's"
NOTE = f"{_dramatiq.POOL} (its default: -p cores -t 8); no bulk enqueue"
RESULTS = True
VERSIONS = (*_dramatiq.VERSIONS, "redis")

_url = os.environ.get("BENCH_URL", "redis://")
broker = RedisBroker(url=_url)
broker.add_middleware(Results(backend=RedisBackend(url=_url)))
_contender = _dramatiq.Contender(__name__, broker, "default", results=True)
worker, send, call, submit = _contender.worker, _contender.send, _contender.call, _contender.submit
