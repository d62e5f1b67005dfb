"""dramatiq on RabbitMQ."""

from __future__ import annotations

import os

from dramatiq.brokers.rabbitmq import RabbitmqBroker

from tests.bench.peers import _dramatiq

ACK = "after the run (at least once)"
DURABILITY = "classic durable queue (it has no other), persistent, publisher confirms on (its default: off)"
NOTE = f"pika, {_dramatiq.POOL}; it keeps no results here: a round trip ends when the task runs"
RESULTS = False
VERSIONS = (*_dramatiq.VERSIONS, "pika")
QUEUES = ("{name}", "{name}.DQ", "{name}.XQ")

broker = RabbitmqBroker(url=os.environ.get("BENCH_URL", "amqp://"), confirm_delivery=True)
_contender = _dramatiq.Contender(__name__, broker, os.environ.get("BENCH_NAME", "bench"), results=False)
worker, send, call = _contender.worker, _contender.send, _contender.call
