"""What the Celery contenders share."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.transport import virtual

from tests.bench import stopwatch

VERSIONS = ("celery", "kombu")
POLL = 0.01


class Contender:
    """The functions on one Celery application."""

    def __init__(self, module: str, broker: str, backend: str, options: dict[str, Any], **settings: Any) -> None:
        self.module = module
        virtual.Transport.polling_interval = POLL  # as an option, the SQLAlchemy transport hands it to its engine
        self.app = Celery(module, broker=broker, backend=backend)
        self.app.conf.update(broker_transport_options=options, worker_prefetch_multiplier=1000)
        self.app.conf.update(broker_connection_retry_on_startup=False, worker_hijack_root_logger=False, **settings)
        self.noop = self.app.task(stopwatch.tick, name="noop", ignore_result=True)
        self.kept = self.app.task(stopwatch.tick, name="kept")
        kinds = {"burn": stopwatch.burn, "nap": stopwatch.nap, "stamped": stopwatch.stamped}
        self.kinds = {kind: self.app.task(run, name=kind, ignore_result=True) for kind, run in kinds.items()}

    def worker(self) -> list[str]:
        program = str(Path(sys.executable).with_name("celery"))
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
        pool = os.environ.get("BENCH_POOL", "-P solo").split()
        return [program, "-A", f"{self.module}:app", "worker", *pool, *quiet]

    def send(self, count: int, *, bulk: bool, results: bool) -> None:
        task = self.kept if results else self.noop
        with self.app.producer_pool.acquire(block=True) as producer:  # Celery's own advice for many
            for _ in range(count):
                task.apply_async(producer=producer) if bulk else task.delay()

    def call(self) -> None:
        self.kept.delay().get(timeout=20, interval=0.005)

    def submit(self, kind: str, arguments: list[list[float]], pause: float = 0.0) -> None:
        for these in arguments:
            self.kinds[kind].delay(*([time.monotonic()] if kind == "stamped" else []), *these)
            time.sleep(pause)
