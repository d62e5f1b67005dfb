"""taskiq on Redis streams."""

from __future__ import annotations

import os

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from tests.bench.peers import _taskiq

ACK = "after the run (its default; with its list broker: before)"
DURABILITY = "the server's"
NOTE = f"{_taskiq.POOL}, 100 tasks at a time (its default), async def; results are read by polling every 1 ms"
RESULTS = True
VERSIONS = (*_taskiq.VERSIONS, "taskiq-redis", "redis")

_url = os.environ.get("BENCH_URL", "redis://")
broker = RedisStreamBroker(_url, consumer_id="0")
if os.environ.get("BENCH_RESULTS"):
    broker = broker.with_result_backend(RedisAsyncResultBackend(_url, result_ex_time=600))
_contender = _taskiq.Contender(__name__, broker, results=True)
worker, send, call, submit = _contender.worker, _contender.send, _contender.call, _contender.submit
