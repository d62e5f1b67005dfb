"""Celery on RabbitMQ, results by its reply queues (rpc)."""

from __future__ import annotations

import os

from tests.bench.peers import _celery

ACK = "after the run (acks_late; its default is before)"
DURABILITY = "quorum queue, persistent, publisher confirms on (its default: classic, off)"
NOTE = "py-amqp, -P solo, prefetch × 1000 (its default: × 4); results are sent to the caller, unstored"
RESULTS = True
VERSIONS = (*_celery.VERSIONS, "amqp")
QUEUES = ("{name}",)

_contender = _celery.Contender(
    __name__, os.environ.get("BENCH_URL", "amqp://"), "rpc://",
    options={"confirm_publish": True},
    task_acks_late=True, task_default_queue=os.environ.get("BENCH_NAME", "bench"), task_default_queue_type="quorum",
    task_default_exchange_type="topic",
)  # fmt: skip
app, worker, send, call = _contender.app, _contender.worker, _contender.send, _contender.call
