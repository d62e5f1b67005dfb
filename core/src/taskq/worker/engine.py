"""What both ways of running jobs share: fetching with patience, admitting, ending, the steps before a careful start.

Both take messages, admit them, have them run and queue their ends; they differ in who runs and who settles: the
worker's own thread (``inline``) or a pool (``pooled``). What must happen before a careful job starts (an at-most-once
acknowledgement, recording STARTED, the verdict on a suspect) happens here, right before the start.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, cast

from taskq.errors import TaskDead, TaskQError, TransportError
from taskq.failure import ResultPayload, encode_payload
from taskq.message import ACK, DONE, RELEASED, Delivery, Job, Lost, Outcome, Record, Settlement
from taskq.spi.capabilities import HandBack
from taskq.spi.pool import Finished
from taskq.states import FAILURE, STARTED
from taskq.worker.admission import run_key
from taskq.worker.take import TakeEstimator

if TYPE_CHECKING:
    from taskq.worker.lane import Lane

K = TypeVar("K")
V = TypeVar("V")
logger = logging.getLogger("taskq.worker")
IDLE_WAIT = 5.0
"""Longest fetch in seconds; a wake ends it sooner."""
SLICE = 0.02
"""Longest time in seconds that a finished job waits for others to be settled with it."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_AHEAD_FROM = 64
_INNOCENT = 10_000
"""Most messages that are remembered as lost before their start."""
_ORPHANS = 1000
"""Most runs whose lease was lost that are remembered, should their message come back."""


class Engine:
    """Takes the messages of one lane; see ``InlineEngine`` and ``PoolEngine``."""

    def __init__(self, lane: Lane, slots: int) -> None:
        self.lane = lane
        self.consumer = lane.consumer
        self.settler = lane.settler
        self.admission = lane.admission
        self.held = lane.held
        caps = lane.transport.capabilities
        settings = lane.settings
        cap = min(lane.prefetch or caps.max_fetch_batch, caps.max_fetch_batch * 4)
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
        self.consumer.credit(lane.prefetch or cap * 2 + most, lane.prefetch_bytes)

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
                self.consumer.subscribe(self.lane.queues, order=self.lane.settings.queue_order)
            fetched = self.consumer.fetch(limit, wait, ahead=limit if self._full and limit >= _AHEAD_FROM else 0)
        except TransportError as error:
            self.lane.broker_failed(error)
            self.lane.worker.sleep(self._pause)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            return ()
        if self._pause != _FIRST_PAUSE:
            self._pause = _FIRST_PAUSE
            self.lane.broker_back()
        if fetched.lost:
            self.lost(fetched.lost)
        deliveries = fetched.deliveries
        self._full = len(deliveries) >= limit
        if self._full and limit > 1:
            self.take.round_trip(time.perf_counter() - began)
        return deliveries

    def run(self) -> None:
        """Work until the worker is told to stop."""
        raise NotImplementedError

    def room_made(self) -> None:
        """Look again whether messages can be taken or started; any thread or signal handler."""

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
        """Hand jobs back, in order; ``started``: they may have started, so at-most-once ones end here."""
        carrier = self.lane.carrier
        with carrier.lock:
            kept = [job for job in jobs if self.held.pop(job.key, None) is not None]
            self.settler.release(kept, counted=counted)
        for job in kept:
            if job.delivery is None and not carrier.forget(job):
                if started:
                    self.settler.end(job, self._cut_short(job))
                else:
                    self.settler.send_back(job)  # it was acknowledged for a start that did not come

    def abort(self, keys: Sequence[int], error: TaskQError) -> None:
        """End jobs that the pool has ended: their tasks fail, are retried or count as revoked, by their own rules."""
        lane = self.lane
        for key in keys:
            with lane.carrier.lock:
                job = self.held.pop(key, None)
                if job is not None:
                    self.settler.end(job, lane.worker.runtime.abort(job, error))
                    lane.carrier.ended(job)
                elif (orphan := self.admission.orphan(key)) is not None:
                    self._keep_orphan(Finished(key, lane.worker.runtime.abort(orphan, error), 0.0))

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
            done = self.lane.finished_orphans.pop(job.key, None)
            if done is not None:
                self.collect([done])

    def collect(self, batch: Sequence[Finished]) -> None:
        """Queue the ends of finished jobs; a job that is no longer held keeps its outcome for an adoption."""
        carrier = self.lane.carrier
        if carrier.carries:
            with carrier.lock:
                self._collect_each(batch)
            return
        pop = self.held.pop
        found = [pop(finished.key, None) for finished in batch]
        if all(found) and not self.lane.worker.stopping:  # as nearly always
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
            if finished.outcome.kind == RELEASED and job.delivery is None and not self.lane.carrier.carried(job):
                self.settler.released += 1
                finished = Finished(finished.key, self._cut_short(job), finished.elapsed)
            mine.append(finished)
        if mine:
            self.take.saw([job.task for job in jobs], mine)
            self.settler.finish(jobs, mine)

    def _end_carried(self, job: Job, finished: Finished) -> None:
        carrier = self.lane.carrier
        (carrier.forget if finished.outcome.kind == RELEASED else carrier.ended)(job)

    def _cut_short(self, job: Job) -> Outcome:
        """Return the end of an at-most-once run that could not end before its worker: its caller must not wait."""
        reason = "its worker stopped before it had ended, and it runs at most once"
        return Outcome(DONE, FAILURE, self.admission.error_record(job.header, TaskDead(reason)), (), reason)

    def _keep_orphan(self, finished: Finished) -> None:
        kept = self.lane.finished_orphans
        _remember(kept, finished.key, finished, _ORPHANS)
        if finished.key in self.held and kept.pop(finished.key, None) is not None:
            self.collect([finished])  # adopted between the look at what is held and this

    def drop_unstarted(self, job: Job) -> bool:
        """Forget a job that has not started; False when it runs or ran."""
        raise NotImplementedError

    def end(self) -> None:
        """Stop what settles beside the intake, once it has settled what it got."""

    def unstarted(self) -> list[Job]:
        """Take every job that has not started, in order; called by the keeper too."""
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
        task = self.lane.app.tasks[job.task]
        settings = self.lane.app.settings
        tracked = settings.track_started if task.track_started is None else task.track_started
        store = self.lane.store
        if tracked and store is not None and job.header.reply is not None:
            payload = encode_payload(ResultPayload("json", None, None, None, time.time(), self.lane.name))
            key = run_key(job.header)
            store.put([Record(key[0], STARTED, payload, False, key[2], key[1], settings.result_ttl)])
        if task.at_most_once and job.delivery is not None:
            with self.settler.lock:
                lost = self.consumer.settle([Settlement(job.delivery.receipt, ACK)])
                lost = [*lost, *self.consumer.flush(self.lane.lease)]
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
