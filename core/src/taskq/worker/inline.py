"""Running jobs on the worker's own thread, without a hand-off."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import NotSupported, StoreError, TaskInterrupted, TaskQError, TransportError
from taskq.message import Job
from taskq.spi.pool import Finished, SupportsInline
from taskq.worker.engine import IDLE_WAIT, SLICE, Engine
from taskq.worker.settler import Settler

if TYPE_CHECKING:
    from taskq.worker.lane import Lane

logger = logging.getLogger("taskq.worker")
_FLOOD = 128
"""Outcomes to store in one slice from which settling them beside the next slice is worth a change of threads."""


class _Behind:
    """Settles large batches on a thread of its own, so that the next one runs while the server works on the last."""

    def __init__(self, settler: Settler) -> None:
        self._settler = settler
        self._wake = threading.Semaphore(0)
        self._idle = threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None
        self._closing = False

    @property
    def busy(self) -> bool:
        """Whether a batch is being settled."""
        return not self._idle.is_set()

    def pump(self) -> None:
        """Have what is queued settled; waits for the batch before, so that ends do not pile up."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="taskq-settler", daemon=True)
            self._thread.start()
        self._idle.wait()
        self._idle.clear()
        self._wake.release()

    def close(self) -> None:
        """Let the last batch end."""
        if self._thread is not None:
            self._closing = True
            self._wake.release()
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            if self._closing:
                return
            try:
                self._settler.pump()
            except Exception as error:
                logger.exception("settling met an unexpected error; the worker ends")
                self._settler.fatal = error
            finally:
                self._idle.set()


class InlineEngine(Engine):
    """Fetches, runs and settles on one thread, without a hand-off; a keeper thread holds the leases."""

    def __init__(self, lane: Lane, pool: Any) -> None:
        super().__init__(lane, 1)
        self.pool: SupportsInline = pool
        self.jobs: deque[Job] = deque()
        self.running = False
        """Whether a task may be running right now on this thread, so that a signal may interrupt it."""
        self._collecting = threading.Lock()
        self._behind = _Behind(self.settler)
        self.thread: int | None = None

    def run(self) -> None:
        """Work until the worker is told to stop."""
        try:
            self._run()
        finally:
            self._behind.close()

    def _run(self) -> None:
        self.thread = threading.get_ident()
        lane, settler, jobs, behind = self.lane, self.settler, self.jobs, self._behind
        while not lane.worker.stopping and settler.fatal is None:
            if settler.waiting and (settler.blocked or not behind.busy):
                pause = settler.pump()
                if pause:
                    lane.worker.sleep(pause)
                    continue
            if not jobs and not self.careful and not self.suspects:
                jobs.extend(self.admit(self.fetch(self.take.target(), IDLE_WAIT)))
            while jobs and not settler.blocked and not lane.worker.stopping:
                self._run_slice(jobs)
                if settler.records_waiting >= _FLOOD and not settler.blocked:
                    behind.pump()
                else:
                    settler.pump()
            if not settler.blocked:
                self._run_careful()

    def full(self) -> bool:
        """Whether a task runs."""
        return self.running

    def _run_slice(self, jobs: deque[Job]) -> None:
        try:
            self.running = True
            self.turned = time.monotonic()
            batch = self.pool.run(jobs, SLICE)
            self.running = False
        except TaskInterrupted:
            # settle what had finished; the job that was left goes back when the worker stops
            self.running = False
            batch, self.pool.finished = self.pool.finished, []
        if batch:
            with self._collecting:
                self.collect(batch)
            self.lane.progress += len(batch)

    def settle_soon(self) -> None:
        # this engine's thread is in a task; were a server down, it would be waiting for that itself
        with self._collecting:
            # what ended before that task began, in the same slice, must not wait for its end
            done = self.pool.finished
            early = done[:]
            del done[: len(early)]
            if early:
                self.collect(early)
        if not self.settler.blocked:
            self.settler.pump()

    def _run_careful(self) -> None:
        while (self.careful or self.suspects) and not self.lane.worker.stopping:
            source = self.careful or self.suspects
            try:
                job = source.popleft()
            except IndexError:
                return  # the keeper handed them back meanwhile
            try:
                go = self.before_start(job)
            except (StoreError, TransportError) as error:
                source.appendleft(job)
                self.lane.store_failed(error)
                self.lane.worker.sleep(1.0)
                continue
            if go:
                self._run_slice(deque((job,)))
            if self.settler.pump():
                return

    def drop_unstarted(self, job: Job) -> bool:
        for waiting in (self.jobs, self.careful, self.suspects):
            for _ in range(3):
                try:
                    waiting.remove(job)
                    return True
                except ValueError:
                    break
                except (IndexError, RuntimeError):
                    continue  # the other thread took one meanwhile
        return False

    def unstarted(self) -> list[Job]:
        """Take every job that has not started, in order; called by the keeper too."""
        taken: list[Job] = []
        for waiting in (self.suspects, self.careful, self.jobs):
            try:
                while True:
                    taken.append(waiting.pop())
            except IndexError:
                continue
        taken.reverse()
        return taken


class InlineSink:
    """The sink of an inline pool, which reports by return value; it only hears of a broken runtime."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def started(self, keys: Sequence[int]) -> None:
        """Nothing waits for it."""

    def finished(self, batch: Sequence[Finished]) -> None:
        """Queue ends that did not come by return value."""
        self._lane.engine.collect(batch)

    def returned(self, keys: Sequence[int]) -> None:
        """Hand jobs back."""
        held = self._lane.held
        self._lane.engine.give_back([held[k] for k in keys if k in held])

    def crashed(self, running: Sequence[int], unstarted: Sequence[int], reason: str) -> None:
        """Hand jobs back; running ones count as started."""
        logger.error("%s", reason)
        held = self._lane.held
        self._lane.engine.give_back([held[k] for k in running if k in held], counted=True, started=True)
        self._lane.engine.give_back([held[k] for k in unstarted if k in held])

    def aborted(self, keys: Sequence[int], error: TaskQError) -> None:
        """End jobs that the pool has ended."""
        self._lane.engine.abort(keys, error)

    def request(self, data: bytes, reply: Callable[[bytes], None]) -> None:
        """Nobody asks: there is no child process."""
        raise NotSupported("an inline pool has no child processes")
