"""What the dramatiq contenders share."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import dramatiq

from tests.bench import stopwatch

VERSIONS = ("dramatiq",)
POOL = os.environ.get("BENCH_POOL", "-p 1 -t 8")


class Contender:
    """The functions on one broker."""

    def __init__(self, module: str, broker: dramatiq.Broker, queue: str, *, results: bool) -> None:
        self.module = module
        self.broker = broker
        self.results = results
        dramatiq.set_broker(broker)
        named: dict[str, Any] = {"broker": broker, "queue_name": queue}
        self.noop = dramatiq.actor(stopwatch.tick, actor_name="noop", **named)
        storing: dict[str, Any] = {"store_results": True} if results else {}
        self.kept = dramatiq.actor(stopwatch.tick, actor_name="kept", **named, **storing)
        self.pong = dramatiq.actor(stopwatch.answer, actor_name="pong", **named)
        kinds = {"burn": stopwatch.burn, "nap": stopwatch.nap, "stamped": stopwatch.stamped}
        self.kinds = {kind: dramatiq.actor(run, actor_name=kind, **named) for kind, run in kinds.items()}

    def worker(self) -> list[str]:
        program = str(Path(sys.executable).with_name("dramatiq"))
        return [program, *POOL.split(), "--skip-logging", f"{self.module}:broker"]

    def send(self, count: int, *, bulk: bool, results: bool) -> None:
        task = self.kept if results else self.noop
        for _ in range(count):  # it has no bulk enqueue
            task.send()

    def call(self) -> None:
        if self.results:
            self.kept.send().get_result(block=True, timeout=20_000)
        else:
            self.pong.send()
            stopwatch.await_answer()

    def submit(self, kind: str, arguments: list[list[float]], pause: float = 0.0) -> None:
        for these in arguments:
            self.kinds[kind].send(*([time.monotonic()] if kind == "stamped" else []), *these)
            time.sleep(pause)
