"""A worker's process with a pool and nothing else, for tests of signals, output and sudden ends.

``python -m taskq.testing.pool_alone < plan``; the plan is a pickled ``Plan``. It runs the jobs, leaves a trace
``reported`` for each end, and a trace ``ready`` when all were given to the pool; then it takes lines from standard
input: ``stop`` or ``leave``.
"""

from __future__ import annotations

import pickle  # noqa: TID251  between the test and this process, never from a broker
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from taskq.errors import TaskQError
from taskq.message import Job
from taskq.spi import Finished, Pool, PoolConfig, SupportsInline
from taskq.testing.pool_runtime import KitRuntime


@dataclass
class Plan:
    """What to do."""

    factory: Callable[[PoolConfig], Pool]
    config: PoolConfig
    runtime: KitRuntime
    jobs: list[Job]
    patience_s: float


class _Sink:
    """Leaves traces of what is reported."""

    def __init__(self, runtime: KitRuntime) -> None:
        self._runtime = runtime

    def _note(self, what: str, keys: Iterable[int]) -> None:
        for key in keys:
            self._runtime.note("reported", f"{what} {key}")

    def started(self, keys: Sequence[int]) -> None:
        pass

    def finished(self, batch: Sequence[Finished]) -> None:
        for finished in batch:
            self._note(finished.outcome.state, [finished.key])

    def returned(self, keys: Sequence[int]) -> None:
        self._note("returned", keys)

    def crashed(self, running: Sequence[int], unstarted: Sequence[int], reason: str) -> None:
        self._note("crashed", [*running, *unstarted])

    def aborted(self, keys: Sequence[int], error: TaskQError) -> None:
        self._note("aborted", keys)

    def request(self, data: bytes, reply: Callable[[bytes], None]) -> None:
        threading.Thread(target=reply, args=(b"answer to " + data,), daemon=True).start()


def main() -> None:
    """Do what the plan says."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a worker has handlers, too
        signal.signal(number, lambda number, frame: None)
    plan: Plan = pickle.load(sys.stdin.buffer)  # noqa: S301
    pool: Any = plan.factory(plan.config)
    sink = _Sink(plan.runtime)
    pool.start(plan.runtime, sink)
    waiting = deque(plan.jobs)
    if isinstance(pool, SupportsInline):
        plan.runtime.note("ready", "inline")
        while waiting:
            sink.finished(pool.run(waiting, 0.0))
    deadline = time.monotonic() + plan.patience_s
    while waiting and time.monotonic() < deadline:
        for _ in range(pool.submit(list(waiting))):
            waiting.popleft()
        time.sleep(0.01)
    plan.runtime.note("ready", "all given")
    if sys.stdin.readline().strip() == "stop":
        plan.runtime.note("stopped", repr(list(pool.stop(time.monotonic() + plan.patience_s))))


if __name__ == "__main__":
    main()
