"""A plain pool of processes: proof that the suite's tests of isolation, limits and cancelling can be passed.

One job at a time per child and no care for speed. Not a plugin.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from taskq.errors import (
    ConfigError,
    SoftTimeLimitExceeded,
    TaskCancelled,
    TaskInterrupted,
    TaskQError,
    TaskRevoked,
    TimeLimitExceeded,
)
from taskq.message import RELEASED, Job, Outcome
from taskq.spi import Finished, PoolCapabilities, PoolConfig, PoolSink, Running, Runtime, Support

CAPABILITIES = PoolCapabilities(
    isolation=True,
    soft_limit=Support.NATIVE,
    hard_limit=Support.NATIVE,
    cancel_running=Support.NATIVE,
    terminate=True,
    resize=True,
    recycle=True,
)
REPORT_S = 0.003
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "asyncio", "taskq.testing.pool_runtime"])
NEVER = float("inf")

# ---------------------------------------------------------------------------------------------------- the child's side


class Inside:
    """A child: its main thread runs jobs, another one reads the pipe."""

    def __init__(self, runtime: Runtime, pipe: Connection) -> None:
        self.runtime, self.pipe = runtime, pipe
        self.writing = threading.Lock()
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.answers: dict[int, queue.SimpleQueue[bytes]] = {}
        self.number = 0
        self.key: int | None = None  # what runs, as long as it may be struck
        self.until = NEVER
        self.told: deque[tuple[int, BaseException]] = deque()

    def run(self) -> None:
        """Run jobs until the parent says that it is enough."""
        signal.signal(signal.SIGALRM, self.strike)
        for number in (signal.SIGINT, signal.SIGTERM):  # those of a terminal or service manager: the parent says more
            signal.signal(number, lambda number, frame: None)
        threading.Thread(target=self.read, daemon=True).start()
        self.runtime.start(self.call)
        while (job := self.jobs.get()) is not None:
            self.send("done", *self.one(job), memory())
        self.runtime.stop()
        sys.stdout.flush()

    def one(self, job: Job) -> tuple[int, Outcome | BaseException | str, float]:
        begin = time.monotonic()
        soft = self.runtime.limits(job.task).soft
        outcome: Outcome | BaseException | str | None = None
        self.until = begin + soft if soft else NEVER
        try:
            self.key = job.key
            if soft:
                signal.setitimer(signal.ITIMER_REAL, soft)
            outcome = self.runtime.execute(job)
        except BaseException as error:
            if outcome is None:  # else it was struck when it had just ended
                outcome = self.verdict(error)
        self.key = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        return job.key, outcome, time.monotonic() - begin

    def verdict(self, error: BaseException) -> Outcome | BaseException | str:
        if isinstance(error, TaskInterrupted):
            return Outcome(RELEASED, "QUEUED", terminal=False)
        if isinstance(error, TaskCancelled):
            return TaskRevoked("cancelled")
        if isinstance(error, SoftTimeLimitExceeded):
            return error
        return f"the runtime raised {type(error).__name__}: {error}"

    def strike(self, number: int, frame: Any) -> None:
        """End what runs, if it is what was meant."""
        if self.key is not None and time.monotonic() >= self.until:
            self.until = NEVER
            self.runtime.interrupt(SoftTimeLimitExceeded("the soft time limit has passed"))
        while self.told:
            key, error = self.told.popleft()
            if key == self.key:
                self.runtime.interrupt(error)

    def read(self) -> None:
        try:
            while True:
                self.take(*self.pipe.recv())
        except (EOFError, OSError):
            os._exit(0)  # the parent is gone

    def take(self, what: str, *values: Any) -> None:
        if what == "job":
            self.jobs.put(Job(*values))
        elif what == "end":
            self.jobs.put(None)
        elif what == "answer":
            self.answers.pop(values[0]).put(values[1])
        elif what == "tell":
            self.told.append((values[0], values[1]("the worker says so")))
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)  # type: ignore[arg-type]
        elif what == "show":
            frame = sys._current_frames()[threading.main_thread().ident]  # type: ignore[index]
            self.send("shown", self.key, "".join(traceback.format_stack(frame)))

    def call(self, data: bytes) -> bytes:
        answer: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        with self.writing:
            self.number += 1
            number = self.number
            self.answers[number] = answer
            self.pipe.send(("ask", number, data))
        return answer.get()

    def send(self, *message: Any) -> None:
        with self.writing:
            self.pipe.send(message)


def memory() -> int:
    """Return this process's resident memory in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def child(runtime: Runtime, pipe: Connection) -> None:
    """Be a child."""
    Inside(runtime, pipe).run()


# --------------------------------------------------------------------------------------------------- the parent's side


class Child:
    """A process and what it does now."""

    def __init__(self, runtime: Runtime) -> None:
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=child, args=(runtime, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.since = 0.0
        self.until = NEVER
        self.why: TaskQError | None = None
        self.share = 0
        self.stack = ""
        self._out: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def tell(self, *message: Any) -> None:
        """Send a message, without waiting for a child that does not read."""
        self._out.put(message)

    def _write(self) -> None:
        while (message := self._out.get()) is not None:
            try:
                self.pipe.send(message)
            except (OSError, ValueError):
                return

    def kill(self, why: TaskQError) -> None:
        self.why, self.until = why, NEVER
        self.process.kill()

    def end(self, seconds: float) -> None:
        """End the process, by force after a while."""
        self.tell("end")
        self._out.put(None)
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self._writer.join()
        self.process.close()
        self.pipe.close()


class ProcessPool:
    """Runs each job in one of ``concurrency`` child processes."""

    def __init__(self, config: PoolConfig) -> None:
        if config.concurrency < 1:
            raise ConfigError("a pool needs a slot")
        self._slots = config.concurrency
        self._share = config.max_tasks_per_child or 1 << 60
        self._memory = config.max_memory_per_child or 1 << 60
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
        atexit.register(self._kill)  # before multiprocessing waits for the children, at the end of this process
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
            running = [c for c in self._children if c.job is not None and c.job.key in set(keys)]
            acted = waiting + [c.job.key for c in running if c.job is not None]
            for one in running:
                if hard:
                    one.kill(TaskRevoked("terminated"))
                else:
                    self._tell_child(one, TaskCancelled)
        if waiting:
            self._sink.returned(waiting)
        return acted

    def running(self, *, stacks: bool = False) -> Sequence[Running]:
        with self._lock:
            busy = [(one, one.job.key, one.since) for one in self._children if one.job is not None]
            for one, _, _ in busy if stacks else ():
                one.stack = ""
                one.tell("show")
        deadline = time.monotonic() + 1.0
        while stacks and any(not one.stack and one.job is not None for one, _, _ in busy):
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        busy.sort(key=lambda triple: triple[2])
        return [Running(key, since, one.process.name, one.stack or None) for one, key, since in busy]

    def stop(self, deadline: float) -> Sequence[int]:
        with self._lock:
            self._accepting = False
            waiting = [job.key for job in self._ready]
            self._ready.clear()
            self._held.difference_update(waiting)
        if waiting:
            self._sink.returned(waiting)
        self._wait(deadline)
        with self._lock:
            for one in self._children:
                self._tell_child(one, TaskInterrupted)
        self._wait(time.monotonic() + 1.0)
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
            one.end(0.0 if one.job is not None else 0.5)
        self._children = []
        atexit.unregister(self._kill)
        self._bell.close()
        self._ring.close()
        return self._unfinished

    def _kill(self) -> None:
        self._lock.acquire()  # for good, so that the manager replaces none
        for one in self._children:
            one.process.kill()

    def _wait(self, deadline: float) -> None:
        while self._held and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)

    # ------------------------------------------------------------------------------------------------ the manager

    def _manage(self) -> None:
        while True:
            with self._lock:
                pipes = {one.pipe: one for one in self._children}
                nearest = min([one.until for one in pipes.values()] + [self._since + REPORT_S if self._done else NEVER])
            ready = wait([self._bell, *pipes], None if nearest == NEVER else max(0.0, nearest - time.monotonic()))
            if self._bell in ready and self._bell.recv() == "end":
                return
            with self._lock:
                if self._sink is None:
                    continue
                for pipe, one in pipes.items():
                    if pipe in ready and one in self._children:
                        self._receive(one)
                    elif one.until <= time.monotonic():
                        one.kill(TimeLimitExceeded("the hard time limit has passed"))
                self._fit()
                self._report(now=False)
                self._hand_out()

    def _receive(self, one: Child) -> None:
        try:
            what, *values = one.pipe.recv()
        except (EOFError, OSError):
            self._ended(one)
            return
        if what == "ask":
            number, data = values
            self._sink.request(data, lambda answer: one.tell("answer", number, answer))
        elif what == "shown":
            if one.job is not None and one.job.key == values[0]:
                one.stack = values[1]
        else:
            self._take(one, *values)

    def _take(self, one: Child, key: int, outcome: Any, elapsed: float, memory: int) -> None:
        one.job, one.until = None, NEVER
        if isinstance(outcome, Outcome):
            self._since = self._since if self._done else time.monotonic()
            self._done.append(Finished(key, outcome, elapsed))
        else:
            self._not_done(key, outcome)
        if one.share >= self._share or memory > self._memory:
            self._replace(one, 2.0)

    def _ended(self, one: Child) -> None:
        """Take note of a process that has ended without having been asked to."""
        job, why = one.job, one.why
        self._replace(one, 0.0)
        if job is not None:
            self._not_done(job.key, why or f"process {one} died")

    def _not_done(self, key: int, why: TaskQError | str) -> None:
        self._report(now=True)
        self._held.discard(key)
        if isinstance(why, str):
            self._tell(self._sink.crashed, [key], [], why)
        else:
            self._tell(self._sink.aborted, [key], why)

    def _replace(self, one: Child, seconds: float) -> None:
        one.end(seconds)
        self._children[self._children.index(one)] = Child(self._runtime)

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
                job = one.job = self._ready.popleft()
                hard = self._runtime.limits(job.task).hard
                one.since = time.monotonic()
                one.until = one.since + hard if hard else NEVER
                one.share += 1
                one.tell("job", *self._shipped(job))
                begun.append(job.key)
        if begun:
            self._tell(self._sink.started, begun)

    def _shipped(self, job: Job) -> tuple[Any, ...]:
        return job.key, job.payload, job.task, job.queue, job.deliveries, job.body

    def _tell_child(self, one: Child, error: type[BaseException]) -> None:
        if one.job is not None:
            one.tell("tell", one.job.key, error)

    def _report(self, *, now: bool) -> None:
        if self._done and (now or time.monotonic() - self._since >= REPORT_S):
            done, self._done = self._done, []
            self._held.difference_update([finished.key for finished in done])
            self._tell(self._sink.finished, done)

    def _tell(self, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except RuntimeError:
            pass  # the kit's sink fails on purpose
