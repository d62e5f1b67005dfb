"""Celery on SQS (here: an emulator)."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from tests.bench.peers import _celery
from tests.bench.stopwatch import answer, await_answer

ACK = "after the run (acks_late; its default is before)"
DURABILITY = "the service's (here: an emulator)"
NOTE = "-P solo, prefetch × 1000 (its default: × 4); it keeps no results here: a round trip ends when the task runs"
RESULTS = False
VERSIONS = (*_celery.VERSIONS, "boto3", "pycurl")

_at = urlsplit(os.environ.get("BENCH_URL", "sqs://localhost:9324"))
_contender = _celery.Contender(
    __name__, f"sqs://x:x@{_at.hostname}:{_at.port}", "disabled://",
    options={"is_secure": False, "region": "elasticmq", "wait_time_seconds": 5},
    task_acks_late=True, task_default_queue=os.environ.get("BENCH_NAME", "bench"), worker_enable_remote_control=False,
)  # fmt: skip
app, worker, send = _contender.app, _contender.worker, _contender.send
pong = app.task(answer, name="pong", ignore_result=True)


def call() -> None:
    pong.delay()
    await_answer()
