"""What the taskiq contenders share."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import stopwatch
from tests.bench.peers._loop import run

if TYPE_CHECKING:
    from taskiq import AsyncBroker

VERSIONS = ("taskiq",)
POOL = os.environ.get("BENCH_POOL", "--workers 1")


class Contender:
    """The functions on one broker."""

    def __init__(self, module: str, broker: AsyncBroker, *, results: bool) -> None:
        self.module = module
        self.broker = broker
        self.results = results
        self.started = False

        async def noop() -> None:
            stopwatch.tick()

        async def pong() -> None:
            stopwatch.answer()

        async def nap(milliseconds: float) -> None:
            await asyncio.sleep(milliseconds / 1000)
            stopwatch.tick()

        self.noop = broker.register_task(noop, task_name="noop")
        self.pong = broker.register_task(pong, task_name="pong")
        kinds = {"burn": stopwatch.burn, "nap": nap, "stamped": stopwatch.stamped}
        self.kinds = {kind: broker.register_task(function, task_name=kind) for kind, function in kinds.items()}

    async def start(self) -> None:
        if not self.started:
            self.started = True
            await self.broker.startup()

    def worker(self) -> list[str]:
        program = str(Path(sys.executable).with_name("taskiq"))
        return [program, "worker", f"{self.module}:broker", *POOL.split(), "--log-level", "ERROR"]

    def send(self, count: int, *, bulk: bool, results: bool) -> None:
        async def work() -> None:
            await self.start()
            for _ in range(count):  # it has no bulk enqueue
                await self.noop.kiq()

        run(work())

    def call(self) -> None:
        async def work() -> None:
            await self.start()
            if self.results:
                task = await self.noop.kiq()
                await task.wait_result(check_interval=0.001, timeout=20)
            else:
                await self.pong.kiq()

        run(work())
        if not self.results:
            stopwatch.await_answer()

    def submit(self, kind: str, arguments: list[list[float]], pause: float = 0.0) -> None:
        async def work() -> None:
            await self.start()
            for these in arguments:
                await self.kinds[kind].kiq(*([time.monotonic()] if kind == "stamped" else []), *these)
                await asyncio.sleep(pause)

        run(work())
