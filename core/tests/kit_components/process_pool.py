"""A plain pool of processes: proof that the suite's tests of isolation, limits and cancelling can be passed.

One job at a time per child and no care for speed. Not a plugin.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from taskq.errors import ConfigError, SoftTimeLimitExceeded, TaskInterrupted
from taskq.message import RELEASED, Job, Outcome
from taskq.spi import Finished, PoolCapabilities, PoolConfig, PoolSink, Runtime, Support

CAPABILITIES = PoolCapabilities(
    isolation=True, soft_limit=Support.NATIVE, hard_limit=Support.NATIVE, cancel_running=Support.NATIVE, resize=True
)
REPORT_S = 0.003
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "asyncio", "taskq.testing.pool_runtime"])


def child(runtime: Runtime, pipe: Connection) -> None:
    """Run jobs until the pipe ends."""

    def over(number: int, frame: Any) -> None:
        raise SoftTimeLimitExceeded("the soft time limit has passed")

    signal.signal(signal.SIGALRM, over)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    runtime.start()
    try:
        while (job := pipe.recv()) is not None:
            begin = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, runtime.limits(job.task).soft or 0)
            try:
                outcome: Outcome | str = runtime.execute(job)
            except TaskInterrupted:
                outcome = Outcome(RELEASED, "QUEUED")
            except Exception as error:
                outcome = f"the runtime raised {type(error).__name__}: {error}"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send((job.key, outcome, time.perf_counter() - begin))
    except EOFError:
        pass
    runtime.stop()


class Child:
    """A process and what it does now."""

    def __init__(self, runtime: Runtime) -> None:
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=child, args=(runtime, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.until = float("inf")
        self.retired = False

    def end(self, seconds: float) -> None:
        """End the process, by force after a while."""
        try:
            self.pipe.send(None)
        except OSError:
            pass
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


class ProcessPool:
    """Runs each job in one of ``concurrency`` child processes."""

    def __init__(self, config: PoolConfig) -> None:
        if config.concurrency < 1:
            raise ConfigError("a pool needs a slot")
        self._slots = config.concurrency
        self._lock = threading.RLock()
        self._ready: deque[Job] = deque()
        self._children: list[Child] = []
        self._done: list[Finished] = []
        self._since = 0.0
        self._held: set[int] = set()
        self._accepting = False
        self._unfinished: list[int] = []
        self._bell, self._ring = CONTEXT.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._manage, daemon=True)

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        self._runtime, self._sink = runtime, sink
        self._children = [Child(runtime) for _ in range(self._slots)]
        self._accepting = True
        self._thread.start()

    def free(self) -> int:
        return self._slots - len(self._held) if self._accepting else 0

    def submit(self, jobs: Sequence[Job]) -> int:
        with self._lock:
            if not self._accepting:
                return 0
            count = max(0, min(len(jobs), self._slots * 8 - len(self._held)))
            self._ready.extend(jobs[:count])
            self._held.update(job.key for job in jobs[:count])
            self._ring.send(None)
        return count

    def take_back(self, limit: int) -> Sequence[int]:
        with self._lock:
            keys = [self._ready.pop().key for _ in range(min(limit, len(self._ready)))]
            self._held.difference_update(keys)
        return keys

    def resize(self, concurrency: int) -> int:
        with self._lock:
            if self._accepting:
                self._slots = max(1, concurrency)
                self._ring.send(None)
        return self._slots

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        with self._lock:
            waiting = [job.key for job in self._ready if job.key in set(keys)]
            self._ready = deque(job for job in self._ready if job.key not in set(waiting))
            self._held.difference_update(waiting)
            running = [c for c in self._children if hard and c.job is not None and c.job.key in set(keys)]
            acted = waiting + [c.job.key for c in running if c.job is not None]
            for one in running:
                one.process.kill()
        if waiting:
            self._sink.returned(waiting)
        return acted

    def stop(self, deadline: float) -> Sequence[int]:
        with self._lock:
            self._accepting = False
            waiting = [job.key for job in self._ready]
            self._ready.clear()
            self._held.difference_update(waiting)
        if waiting:
            self._sink.returned(waiting)
        while self._held and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        with self._lock:
            if self._thread.is_alive():
                self._report(now=True)
                self._unfinished += self._held
                self._held.clear()
                self._sink = None  # type: ignore[assignment]
        if self._thread.is_alive():
            self._ring.send("end")
            self._thread.join()
        for one in self._children:
            one.end(0.0 if one.job is not None else 2.0)
        self._children = []
        self._bell.close()
        self._ring.close()
        return self._unfinished

    # ------------------------------------------------------------------------------------------------ the manager

    def _manage(self) -> None:
        while True:
            with self._lock:
                pipes = {one.pipe: one for one in self._children if one.job is not None}
                nearest = min([one.until for one in pipes.values()] + [self._since + REPORT_S if self._done else 1e18])
            timeout = None if nearest > 1e17 else max(0.0, nearest - time.monotonic())
            ready = wait([self._bell, *pipes], timeout)
            if self._bell in ready and self._bell.recv() == "end":
                return
            with self._lock:
                if self._sink is None:
                    continue
                for pipe, one in pipes.items():
                    if pipe in ready:
                        self._receive(one)
                    elif one.until <= time.monotonic():
                        one.process.kill()
                        one.until = float("inf")
                self._fit()
                self._report(now=False)
                self._hand_out()

    def _receive(self, one: Child) -> None:
        assert one.job is not None
        key, one.job, one.until = one.job.key, None, float("inf")
        try:
            _, outcome, elapsed = one.pipe.recv()
        except (EOFError, OSError):
            one.end(0.0)
            self._children[self._children.index(one)] = Child(self._runtime)
            outcome, elapsed = f"process {one} died", 0.0
        if isinstance(outcome, str):
            self._report(now=True)
            self._held.discard(key)
            self._tell(self._sink.crashed, [key], [], outcome)
        else:
            self._since = self._since if self._done else time.monotonic()
            self._done.append(Finished(key, outcome, elapsed))

    def _fit(self) -> None:
        while len(self._children) < self._slots:
            self._children.append(Child(self._runtime))
        for one in [c for c in self._children if c.job is None][: len(self._children) - self._slots]:
            self._children.remove(one)
            one.end(2.0)

    def _hand_out(self) -> None:
        busy = sum(one.job is not None for one in self._children)
        begun = []
        for one in self._children:
            if one.job is None and self._ready and busy < self._slots:
                busy += 1
                one.job = self._ready.popleft()
                hard = self._runtime.limits(one.job.task).hard
                one.until = time.monotonic() + hard if hard else float("inf")
                one.pipe.send(one.job)
                begun.append(one.job.key)
        if begun:
            self._tell(self._sink.started, begun)

    def _report(self, *, now: bool) -> None:
        if self._done and (now or time.monotonic() - self._since >= REPORT_S):
            done, self._done = self._done, []
            self._held.difference_update([finished.key for finished in done])
            self._tell(self._sink.finished, done)

    def _tell(self, method: Any, *arguments: Any) -> None:
        try:
            method(*arguments)
        except RuntimeError:
            pass  # the kit's sink fails on purpose
