"""Running jobs in a pool: taken on one thread, run by the pool, settled on another."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from taskq.errors import StoreError, TaskDead, TaskQError, TransportError
from taskq.message import DEAD, Job, Outcome
from taskq.spi.pool import Finished, Pool
from taskq.states import DEAD as STATE_DEAD
from taskq.worker.engine import IDLE_WAIT, SLICE, Engine
from taskq.worker.flag import Flag
from taskq.worker.pools import PoolSet
from taskq.worker.sharing import PoolShare

if TYPE_CHECKING:
    from taskq.worker.lane import Lane

logger = logging.getLogger("taskq.worker")
_RESERVE = 8
"""Jobs that wait in the pool, one a slot at most, for as long as ends are gathered: below that, more must be taken."""
_CROWDED, _CROWDED_PAUSE = 1.0, 0.1
"""Seconds until a message is seen again that a full pool could not take, and until more are fetched here."""
_LOOK = 16
"""Messages to look through for one of several pools that has free slots, while the others are full."""


class PoolEngine(Engine):
    """Takes on its lane's thread, runs in a pool, settles on a finisher thread."""

    def __init__(self, lane: Lane, pool: Pool | PoolSet | PoolShare, slots: int) -> None:
        super().__init__(lane, slots)
        self.pool = pool
        self.local: deque[Job] = deque()
        self._done: queue.SimpleQueue[Sequence[Finished] | None] = queue.SimpleQueue()
        self._space = Flag()
        self._suspect: int | None = None
        self._enough = -min(slots, _RESERVE)
        self._several = pool.several if isinstance(pool, PoolSet | PoolShare) else None
        self._crowded = 0.0
        self._moving = threading.Lock()
        """Held while jobs go to the pool or are taken back: intake and keeper must not move the same ones."""
        self._thread = threading.Thread(target=self._finish, name="taskq-finisher", daemon=True)

    # ---------------------------------------------------------------------------------------- the pool's sink

    def started(self, keys: Sequence[int]) -> None:
        """Take note of starts; nothing depends on them yet."""

    def finished(self, batch: Sequence[Finished]) -> None:
        """Queue finished jobs for the finisher."""
        self._done.put(batch)

    def returned(self, keys: Sequence[int]) -> None:
        """Hand back jobs that the pool did not start."""
        self.give_back([job for key in keys if (job := self.held.get(key)) is not None])
        self._done.put(())

    def crashed(self, running: Sequence[int], unstarted: Sequence[int], reason: str) -> None:
        """A process of the pool died: unstarted jobs go back uncounted, running ones count as started."""
        logger.error("%s; %d task(s) were running, %d waited there", reason, len(running), len(unstarted))
        self.returned(unstarted)
        for key in running:
            with self.lane.carrier.lock:
                job = self.held.pop(key, None)
                if job is not None:
                    self._end_crashed(job, reason)
                else:
                    self.admission.bury(key)
        self._done.put(())

    def _end_crashed(self, job: Job, reason: str) -> None:
        # where the broker's count cannot tell, the verdict comes when the message is to start again
        again = not self.admission.exact or job.deliveries < self.lane.app.settings.max_deliveries
        if job.delivery is None and again and self.lane.carrier.forget(job):
            return  # its guard runs it
        if job.delivery is not None and again:
            self.settler.release([job], counted=True)
            return
        text = f"its process died: {reason} (delivery {job.deliveries})"
        record = self.admission.error_record(job.header, TaskDead(text))
        self.settler.end(job, Outcome(DEAD, STATE_DEAD, record, (), text))
        self.lane.carrier.ended(job)

    def overflow(self, jobs: Sequence[Job]) -> None:
        """Hand jobs back, with a pause, that one of several pools cannot take soon."""
        kept = [job for job in jobs if self.held.pop(job.key, None) is not None]
        self.settler.postpone(kept, _CROWDED)
        self._crowded = time.monotonic() + _CROWDED_PAUSE
        self._done.put(())

    def aborted(self, keys: Sequence[int], error: TaskQError) -> None:
        """End jobs that the pool has ended."""
        self.abort(keys, error)
        self._done.put(())

    def request(self, data: bytes, reply: Callable[[bytes], None]) -> None:
        """Answer a child process over the worker's own connections."""
        self.lane.worker.link.request(data, reply)

    # ------------------------------------------------------------------------------------------------ taking

    def run(self) -> None:
        """Work until the worker is told to stop."""
        self._thread.start()
        lane, settler = self.lane, self.settler
        while not lane.worker.stopping and settler.fatal is None:
            self._submit()
            self.turned = time.monotonic()
            room = self._room()
            if self._crowded and (pause := self._crowded - time.monotonic()) > 0:
                self._space.clear()
                self._space.wait(pause)
                continue
            if room <= 0 or self.local:
                self._space.clear()
                if self._room() <= 0 or self.local:
                    self._space.wait(0.05 if self.local or self.careful else 0.5)
                continue
            # a careful job waits for a slot: do not sleep in a fetch while one may start
            wait = 0.05 if self.careful or self.suspects else IDLE_WAIT
            deliveries = self.fetch(room, wait)
            if deliveries:
                self.local.extend(self.admit(deliveries))
                if settler.waiting:
                    self._done.put(())

    def room_made(self) -> None:
        self._space.set()

    def full(self) -> bool:
        """Whether every slot is taken."""
        return self.pool.free() <= 0

    def _room(self) -> int:
        """Return how many messages to take now."""
        if self.settler.blocked:
            return 0
        room = self.take.target() - len(self.held)
        if self._several is not None and room < _LOOK and (free := self._several.free()) > 0:
            return max(_LOOK, free)  # what fills one pool must not keep the others from their messages
        return room

    def _submit(self) -> None:
        local = self.local
        with self._moving:
            if self._several is not None:
                self._several.feed()
            if local:
                jobs = list(local)
                count = self.pool.submit(jobs)
                if count == len(jobs):
                    local.clear()
                else:
                    for _ in range(count):
                        local.popleft()
        while self.careful and not local:
            if not self._start_careful(self.careful):
                break
        if self.suspects and (self._suspect is None or self._suspect not in self.held):
            self._start_careful(self.suspects)
        if self._several is not None:
            self._shed(self.careful)
            self._shed(self.suspects)

    def _shed(self, source: deque[Job]) -> None:
        """Hand back what waits for one of several pools beyond what may: other pools' messages are behind it."""
        too_many: list[Job] = []
        with suppress(IndexError):  # the keeper may hand them back meanwhile
            while len(source) > _LOOK + self.lane.worker.slots:
                too_many.append(source.pop())
        if too_many:
            self.overflow(too_many[::-1])

    def _next(self, source: deque[Job]) -> Job | None:
        """Take the first job for which a slot is free now; it is never started ahead of that."""
        if self.pool.free() <= 0:
            return None
        try:
            if self._several is None:
                return source.popleft()
            job = next(job for job in list(source) if self._several.free_for(job))
            source.remove(job)
        except (IndexError, StopIteration, ValueError):
            return None  # none, or the keeper handed it back meanwhile
        return job

    def _start_careful(self, source: deque[Job]) -> bool:
        job = self._next(source)
        if job is None:
            return False
        try:
            go = self.before_start(job)
        except (StoreError, TransportError) as error:
            source.appendleft(job)
            self.lane.store_failed(error)
            self.lane.worker.sleep(0.5)
            return False
        if not go:
            self._done.put(())
            return True
        if source is self.suspects:
            self._suspect = job.key
        with self._moving:
            if self.pool.submit((job,)) == 0:
                self.local.appendleft(job)
        return True

    # --------------------------------------------------------------------------------------------- finishing

    def settle_soon(self) -> None:
        self._done.put(())

    def _finish(self) -> None:
        try:
            self._finish_all()
        except Exception as error:
            logger.exception("the finisher met an unexpected error; the worker ends")
            self.settler.fatal = error
        finally:
            self.consumer.wake()

    def _finish_all(self) -> None:
        get, settler = self._done.get, self.settler
        while True:
            batch = get()
            if batch is None:
                return
            self._collect(batch)
            end = time.monotonic() + SLICE
            # Gather while the pool has enough to do, so that ends are settled together; else settle at once.
            while self.pool.free() <= self._enough and settler.waiting and (left := end - time.monotonic()) > 0:
                try:
                    more = self._done.get(timeout=left)
                except queue.Empty:
                    continue
                if more is None:
                    self._pump()
                    return
                self._collect(more)
            self._pump()
            self._space.set()
            if self._several is not None and self._several.waiting:
                self.consumer.wake()  # the intake is what feeds the pools

    def _collect(self, batch: Sequence[Finished]) -> None:
        if batch:
            self.collect(batch)
            self.lane.progress += len(batch)

    def _pump(self) -> None:
        while True:
            pause = self.settler.pump()
            if self.settler.fatal is not None:
                self.consumer.wake()
                return
            if not pause:
                return
            self._space.set()
            time.sleep(pause)
            if self.lane.worker.gave_up:
                return

    def drop_unstarted(self, job: Job) -> bool:
        with self._moving:
            for waiting in (self.local, self.careful, self.suspects):
                try:
                    waiting.remove(job)
                    return True
                except (ValueError, RuntimeError, IndexError):
                    continue
            # what the pool has not started goes to it again, in order; cancelling would end what runs
            back = list(reversed(self.pool.take_back(1 << 30)))
            again = [found for key in back if key != job.key and (found := self.held.get(key)) is not None]
            if self.lane.worker.stopping:
                self.give_back(again)  # the intake, which would submit them, has ended or is about to
            elif again:
                self.local.extendleft(reversed(again))
                self._space.set()
            return job.key in back

    def unstarted(self) -> list[Job]:
        """Take every job that has not started: the pool's own queue, then what waits here."""
        with self._moving:
            keys = self.pool.take_back(1 << 30)
            taken = [job for key in reversed(keys) if (job := self.held.get(key)) is not None]
            for waiting in (self.local, self.careful, self.suspects):
                try:
                    while True:
                        taken.append(waiting.popleft())
                except IndexError:
                    continue
        return taken

    def end(self) -> None:
        """Stop the finisher once it has settled what it got."""
        self._done.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout=10)
