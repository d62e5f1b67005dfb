"""taskiq on RabbitMQ."""

from __future__ import annotations

import os

from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

from tests.bench.peers import _taskiq

ACK = "after the run (its default)"
DURABILITY = "quorum queue, persistent, publisher confirms"
NOTE = (
    f"aio-pika, {_taskiq.POOL}, prefetch 1000 (its default: 10); "
    "it keeps no results here: a round trip ends when the task runs"
)
RESULTS = False
VERSIONS = (*_taskiq.VERSIONS, "taskiq-aio-pika", "aio-pika")
QUEUES = ("{name}", "{name}.delay", "{name}.dead_letter")

_name = os.environ.get("BENCH_NAME", "bench")
broker = AioPikaBroker(
    os.environ.get("BENCH_URL", "amqp://"), qos=1000, exchange=Exchange(name=_name),
    task_queues=[Queue(name=_name, routing_key=_name)],
    delay_queue=Queue(name=f"{_name}.delay"), dead_letter_queue=Queue(name=f"{_name}.dead_letter"),
)  # fmt: skip
_contender = _taskiq.Contender(__name__, broker, results=False)
worker, send, call = _contender.worker, _contender.send, _contender.call
