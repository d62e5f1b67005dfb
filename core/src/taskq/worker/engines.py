"""The two ways of running jobs: on the worker's own thread, or handed to a pool.

Both take messages, admit them, have them run and queue their ends; they differ in who runs and who settles. What must
happen before a careful job starts (an at-most-once acknowledgement, recording STARTED, the verdict on a suspect)
happens here, right before the start.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from taskq.errors import StoreError, TaskDead, TaskInterrupted, TaskQError, TransportError
from taskq.failure import ResultPayload, encode_payload
from taskq.message import ACK, DEAD, RELEASED, Delivery, Job, Lost, Outcome, Record, Settlement
from taskq.spi.capabilities import HandBack
from taskq.spi.pool import Finished, Pool, SupportsInline
from taskq.states import DEAD as STATE_DEAD
from taskq.states import STARTED
from taskq.worker.admission import run_key
from taskq.worker.flag import Flag
from taskq.worker.pools import PoolSet
from taskq.worker.settler import Settler
from taskq.worker.take import TakeEstimator

if TYPE_CHECKING:
    from taskq.worker.worker import Worker

K = TypeVar("K")
V = TypeVar("V")
logger = logging.getLogger("taskq.worker")
_IDLE_WAIT = 5.0
"""Longest fetch in seconds; a wake ends it sooner."""
_SLICE = 0.02
"""Longest time in seconds that a finished job waits for others to be settled with it."""
_GATHER = 0.002
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_AHEAD_FROM = 64
_FLOOD = 128
"""Outcomes to store in one slice from which settling them beside the next slice is worth a change of threads."""
_CROWDED, _CROWDED_PAUSE = 1.0, 0.1
"""Seconds until a message is seen again that a full pool could not take, and until more are fetched here."""
_LOOK = 16
"""Messages to look through for one of several pools that has free slots, while the others are full."""
_INNOCENT = 10_000
"""Most messages that are remembered as lost before their start."""
_ORPHANS = 1000
"""Most runs whose lease was lost that are remembered, should their message come back."""


class Engine:
    """What both engines share: fetching with patience, admitting, and the steps before a careful start."""

    def __init__(self, worker: Worker, slots: int) -> None:
        self.worker = worker
        self.consumer = worker.consumer
        self.settler = worker.settler
        self.admission = worker.admission
        self.held = worker.held
        caps = worker.transport.capabilities
        settings = worker.settings
        cap = min(settings.prefetch or caps.max_fetch_batch, caps.max_fetch_batch * 4)
        # Where handing back is impossible, nothing is taken that does not start at once.
        self.take = TakeEstimator(slots, slots if caps.hand_back is HandBack.NO else cap)
        self.fetch_cap = min(cap, caps.max_fetch_batch)
        self.careful: deque[Job] = deque()
        self.suspects: deque[Job] = deque()
        self._pause = _FIRST_PAUSE
        self._full = False
        self._single = False
        self._resubscribe = False
        self.turned = time.monotonic()
        """When the intake last made a turn; every few seconds at the latest, unless a task runs on its thread."""
        most = slots if settings.autoscale is None else max(slots, *settings.autoscale)
        self.consumer.credit(settings.prefetch or cap * 2 + most, settings.prefetch_bytes)

    def fetch(self, limit: int, wait: float) -> Sequence[Delivery]:
        """Fetch with reconnection: a failure is logged once and tried again with growing pauses."""
        if self._single:
            limit = 1
        limit = min(limit, self.fetch_cap)
        self.turned = time.monotonic()
        began = time.perf_counter()
        try:
            if self._resubscribe:
                self._resubscribe = False
                self.consumer.subscribe(self.worker.queues, order=self.worker.settings.queue_order)
            fetched = self.consumer.fetch(limit, wait, ahead=limit if self._full and limit >= _AHEAD_FROM else 0)
        except TransportError as error:
            self.worker.broker_failed(error)
            self.worker.sleep(self._pause)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            return ()
        if self._pause != _FIRST_PAUSE:
            self._pause = _FIRST_PAUSE
            self.worker.broker_back()
        if fetched.lost:
            self.lost(fetched.lost)
        deliveries = fetched.deliveries
        self._full = len(deliveries) >= limit
        if self._full and limit > 1:
            self.take.round_trip(time.perf_counter() - began)
        return deliveries

    def resubscribe(self) -> None:
        """Have the intake subscribe again before its next fetch; any thread."""
        self._resubscribe = True
        self.consumer.wake()

    def full(self) -> bool:
        """Whether no task could start now, so that nothing need move."""
        raise NotImplementedError

    def admit(self, deliveries: Sequence[Delivery]) -> list[Job]:
        """Return the jobs that may just run; the others wait in ``careful`` and ``suspects``."""
        jobs, careful, suspects = self.admission.admit(deliveries)
        held = self.held
        for job in jobs:
            held[job.key] = job
        if careful:
            held.update((job.key, job) for job in careful)
            self.careful.extend(careful)
        if suspects:
            held.update((job.key, job) for job in suspects)
            self.suspects.extend(suspects)
            if not self.admission.counts_starts:
                # Their deliveries are all that counts, so a crash of the first must not count for the others.
                self.give_back(list(self.suspects)[1:])
                while len(self.suspects) > 1:
                    self.suspects.pop()
        if not self.admission.counts_starts:
            self._single = bool(suspects)
        if self.admission.adopted:
            self._readopt()
        return jobs

    def give_back(self, jobs: Sequence[Job], *, counted: bool = False, started: bool = False) -> None:
        """Hand jobs back, in order; ``started``: they may have started, so at-most-once ones are gone."""
        carrier = self.worker.carrier
        with carrier.lock:
            kept = [job for job in jobs if self.held.pop(job.key, None) is not None]
            self.settler.release(kept, counted=counted)
        for job in kept:
            if job.delivery is None and not carrier.forget(job) and not started:
                self.settler.send_back(job)  # it was acknowledged for a start that did not come

    def abort(self, keys: Sequence[int], error: TaskQError) -> None:
        """End jobs that the pool has ended: their tasks fail, are retried or count as revoked, by their own rules."""
        worker = self.worker
        for key in keys:
            with worker.carrier.lock:
                job = self.held.pop(key, None)
                if job is not None:
                    self.settler.end(job, worker.runtime.abort(job, error))
                    worker.carrier.ended(job)
                elif (orphan := self.admission.orphan(key)) is not None:
                    self._keep_orphan(Finished(key, worker.runtime.abort(orphan, error), 0.0))

    def lost(self, losses: Sequence[Lost]) -> None:
        """Forget jobs whose lease is gone; those that run may still be adopted when their message comes back."""
        receipts = {loss.receipt for loss in losses}
        gone = [j for j in list(self.held.values()) if j.delivery is not None and j.delivery.receipt in receipts]
        for job in gone:
            if self.held.pop(job.key, None) is None:
                continue
            unstarted = self.drop_unstarted(job)
            if job.header is None:
                continue
            if unstarted:
                _remember(self.admission.innocent, run_key(job.header), True, _INNOCENT)
            else:  # the oldest was most likely ended by another worker long ago
                _remember(self.admission.orphans, run_key(job.header), job, _ORPHANS)
        if gone:
            logger.warning(
                "%d message(s) lost their lease (%s); the broker gives them out again", len(gone), losses[0].reason
            )

    def _readopt(self) -> None:
        adopted, self.admission.adopted = self.admission.adopted, []
        for job in adopted:
            self.held[job.key] = job
            done = self.worker.finished_orphans.pop(job.key, None)
            if done is not None:
                self.collect([done])

    def collect(self, batch: Sequence[Finished]) -> None:
        """Queue the ends of finished jobs; a job that is no longer held keeps its outcome for an adoption."""
        carrier = self.worker.carrier
        if carrier.carries:
            with carrier.lock:
                self._collect_each(batch)
            return
        pop = self.held.pop
        found = [pop(finished.key, None) for finished in batch]
        if all(found):  # as nearly always
            known = cast("list[Job]", found)
            self.take.saw([job.task for job in known], batch)
            self.settler.finish(known, batch)
            return
        self._end_found(found, batch)

    def _collect_each(self, batch: Sequence[Finished]) -> None:
        """As ``collect``, where a run may be carried: it may have ended with its receipt, or without."""
        found = [self.held.pop(finished.key, None) for finished in batch]
        self._end_found(found, batch)
        for job, finished in zip(found, batch, strict=True):
            if job is not None:
                self._end_carried(job, finished)

    def _end_found(self, found: Sequence[Job | None], batch: Sequence[Finished]) -> None:
        jobs: list[Job] = []
        mine: list[Finished] = []
        for job, finished in zip(found, batch, strict=True):
            if job is None:
                self._keep_orphan(finished)
                continue
            jobs.append(job)
            mine.append(finished)
        if mine:
            self.take.saw([job.task for job in jobs], mine)
            self.settler.finish(jobs, mine)

    def _end_carried(self, job: Job, finished: Finished) -> None:
        carrier = self.worker.carrier
        (carrier.forget if finished.outcome.kind == RELEASED else carrier.ended)(job)

    def _keep_orphan(self, finished: Finished) -> None:
        kept = self.worker.finished_orphans
        _remember(kept, finished.key, finished, _ORPHANS)
        if finished.key in self.held and kept.pop(finished.key, None) is not None:
            self.collect([finished])  # adopted between the look at what is held and this

    def drop_unstarted(self, job: Job) -> bool:
        """Forget a job that has not started; False when it runs or ran."""
        raise NotImplementedError

    def settle_soon(self) -> None:
        """Have what is queued settled without waiting for a server that is down; called by the keeper."""
        raise NotImplementedError

    def before_start(self, job: Job) -> bool:
        """Do what a careful job or suspect needs right before its start; False when it is not to be run.

        Raises:
            StoreError, TransportError: it cannot be done now; the job must wait.
        """
        if self.admission.is_suspect(job) and not self.admission.clear(job):
            self.held.pop(job.key, None)
            return False
        task = self.worker.app.tasks[job.task]
        settings = self.worker.app.settings
        tracked = settings.track_started if task.track_started is None else task.track_started
        store = self.worker.store
        if tracked and store is not None and job.header.reply is not None:
            payload = encode_payload(ResultPayload("json", None, None, None, time.time(), self.worker.name))
            key = run_key(job.header)
            store.put([Record(key[0], STARTED, payload, False, key[2], key[1], settings.result_ttl)])
        if task.at_most_once and job.delivery is not None:
            with self.settler.lock:
                lost = self.consumer.settle([Settlement(job.delivery.receipt, ACK)])
                lost = [*lost, *self.consumer.flush(self.worker.lease)]
            receipt, job.delivery = job.delivery.receipt, None
            if any(loss.receipt == receipt for loss in lost):
                self.held.pop(job.key, None)
                return False
        return True


def _remember(kept: dict[K, V], key: K, value: V, most: int) -> None:
    """Keep a value under a key, and no more than so many: the oldest go."""
    kept[key] = value
    while len(kept) > most:
        kept.pop(next(iter(kept)))


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

    def __init__(self, worker: Worker, pool: Any) -> None:
        super().__init__(worker, 1)
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
        worker, settler, jobs, behind = self.worker, self.settler, self.jobs, self._behind
        while not worker.stopping and settler.fatal is None:
            if settler.waiting and (settler.blocked or not behind.busy):
                pause = settler.pump()
                if pause:
                    worker.sleep(pause)
                    continue
            if not jobs and not self.careful and not self.suspects:
                jobs.extend(self.admit(self.fetch(self.take.target(), _IDLE_WAIT)))
            while jobs and not settler.blocked and not worker.stopping:
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
            batch = self.pool.run(jobs, _SLICE)
            self.running = False
        except TaskInterrupted:
            # settle what had finished; the job that was left goes back when the worker stops
            self.running = False
            batch, self.pool.finished = self.pool.finished, []
        if batch:
            with self._collecting:
                self.collect(batch)
            self.worker.progress += len(batch)

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
        while (self.careful or self.suspects) and not self.worker.stopping:
            source = self.careful or self.suspects
            try:
                job = source.popleft()
            except IndexError:
                return  # the keeper handed them back meanwhile
            try:
                go = self.before_start(job)
            except (StoreError, TransportError) as error:
                source.appendleft(job)
                self.worker.store_failed(error)
                self.worker.sleep(1.0)
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


class PoolEngine(Engine):
    """Takes on the main thread, runs in a pool, settles on a finisher thread."""

    def __init__(self, worker: Worker, pool: Pool, slots: int) -> None:
        super().__init__(worker, slots)
        self.pool = pool
        self.local: deque[Job] = deque()
        self._done: queue.SimpleQueue[Sequence[Finished] | None] = queue.SimpleQueue()
        self._space = Flag()
        self._suspect: int | None = None
        self._several = pool if isinstance(pool, PoolSet) else None
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
            with self.worker.carrier.lock:
                job = self.held.pop(key, None)
                if job is not None:
                    self._end_crashed(job, reason)
                else:
                    self.admission.bury(key)
        self._done.put(())

    def _end_crashed(self, job: Job, reason: str) -> None:
        # where the broker's count cannot tell, the verdict comes when the message is to start again
        again = not self.admission.exact or job.deliveries < self.worker.app.settings.max_deliveries
        if job.delivery is None and again and self.worker.carrier.forget(job):
            return  # its guard runs it
        if job.delivery is not None and again:
            self.settler.release([job], counted=True)
            return
        text = f"its process died: {reason} (delivery {job.deliveries})"
        record = self.admission.error_record(job.header, TaskDead(text))
        self.settler.end(job, Outcome(DEAD, STATE_DEAD, record, (), text))
        self.worker.carrier.ended(job)

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
        self.worker.link.request(data, reply)

    # ------------------------------------------------------------------------------------------------ taking

    def run(self) -> None:
        """Work until the worker is told to stop."""
        self._thread.start()
        worker, settler = self.worker, self.settler
        while not worker.stopping and settler.fatal is None:
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
            wait = 0.05 if self.careful or self.suspects else _IDLE_WAIT
            deliveries = self.fetch(room, wait)
            if deliveries:
                self.local.extend(self.admit(deliveries))
                if settler.waiting:
                    self._done.put(())

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
            while len(source) > _LOOK + self.worker.slots:
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
            self.worker.store_failed(error)
            self.worker.sleep(0.5)
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
            end = time.monotonic() + _SLICE
            # Gather while the pool has more to do than slots, so that ends are settled together; else settle at once.
            while self.pool.free() <= 0 and settler.waiting and (left := end - time.monotonic()) > 0:
                try:
                    more = self._done.get(timeout=min(left, _GATHER))
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
            self.worker.progress += len(batch)

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
            if self.worker.gave_up:
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
            self.local.extendleft(reversed(again))
            if again:
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
