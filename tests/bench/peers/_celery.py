"""What the Celery contenders share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.transport import virtual

from tests.bench.stopwatch import tick

VERSIONS = ("celery", "kombu")
POLL = 0.01


class Contender:
    """The three functions on one Celery application."""

    def __init__(self, module: str, broker: str, backend: str, options: dict[str, Any], **settings: Any) -> None:
        self.module = module
        virtual.Transport.polling_interval = POLL  # as an option, the SQLAlchemy transport hands it to its engine
        self.app = Celery(module, broker=broker, backend=backend)
        self.app.conf.update(broker_transport_options=options, worker_prefetch_multiplier=1000, **settings)
        self.app.conf.update(broker_connection_retry_on_startup=False, worker_hijack_root_logger=False)
        self.noop = self.app.task(tick, name="noop", ignore_result=True)
        self.kept = self.app.task(tick, name="kept")

    def worker(self) -> list[str]:
        program = str(Path(sys.executable).with_name("celery"))
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
        return [program, "-A", f"{self.module}:app", "worker", "-P", "solo", *quiet]

    def send(self, count: int, *, bulk: bool, results: bool) -> None:
        task = self.kept if results else self.noop
        with self.app.producer_pool.acquire(block=True) as producer:  # Celery's own advice for many
            for _ in range(count):
                task.apply_async(producer=producer) if bulk else task.delay()

    def call(self) -> None:
        self.kept.delay().get(timeout=20, interval=0.005)
