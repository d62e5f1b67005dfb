"""The settler: ends deliveries so that nothing is lost between the broker and the result store.

Where both are one server the whole end of a message is one step (a fused commit). Elsewhere the order is: store the
outcome with its follow-ups, send the follow-ups, acknowledge. A crash between two steps leaves the message with the
broker; whoever gets it next finds the stored outcome, sends the follow-ups again and acknowledges (``admission``).

A server that is down blocks the settler, never the leases: finished work waits here, and intake stops until it is
through.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from taskq import envelope
from taskq.envelope import HISTORY, DeadInfo, Header
from taskq.errors import ResultTooLarge, StoreError, TransportError
from taskq.events import Event
from taskq.failure import ErrorInfo, ResultPayload, encode_payload
from taskq.logs import task_fields
from taskq.message import (
    ACK,
    DEAD,
    FINISHED,
    RELEASE,
    RELEASED,
    Commit,
    Job,
    Lost,
    Outbound,
    Outcome,
    Record,
    Settlement,
)  # fmt: skip
from taskq.routing import DEAD_SUFFIX
from taskq.spi.capabilities import Support
from taskq.spi.pool import Finished
from taskq.spi.store import ResultStore
from taskq.spi.transport import Committer, Consumer, Transport
from taskq.states import DEAD as STATE_DEAD
from taskq.states import FAILURE, RETRY, SUCCESS

if TYPE_CHECKING:
    from taskq.events import EventBus

logger = logging.getLogger("taskq.worker")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_UNSENDABLE_DELAY = 60.0
_TOGETHER = 256
"""Deliveries in a batch from which on no others are ended with it."""

_encode_follow_ups = msgspec.msgpack.Encoder().encode
decode_follow_ups = msgspec.msgpack.Decoder(list[Outbound]).decode


class _Batch:
    """Deliveries that end together, and how far they have come."""

    __slots__ = ("acks", "commits", "stage", "tried")

    def __init__(self, acks: list[Settlement], commits: list[Commit]) -> None:
        self.acks = acks
        self.commits = commits
        self.stage = 0 if commits else 2
        self.tried = False

    def takes_in(self, later: _Batch) -> bool:
        """Take in a later batch, to end together; not hand-backs, which keep their order by their own calls."""
        if len(self.acks) + len(self.commits) >= _TOGETHER or not (self._ends() and later._ends()):
            return False
        self.acks += later.acks
        self.commits += later.commits
        self.stage = min(self.stage, later.stage)
        return True

    def _ends(self) -> bool:
        return all(s.kind == ACK for s in self.acks) and all(c.settlement.kind == ACK for c in self.commits)


class Settler:
    """Ends deliveries; ``finish``, ``end`` and ``release`` queue them, ``pump`` carries them out.

    ``lock`` guards the settling side of the consumer: settler and lease keeper take turns. It is never held over a call
    of the result store or a send, which may hang until their timeout: leases go on.
    """

    def __init__(
        self, *, transport: Transport, consumer: Consumer, store: ResultStore | None, committer: Committer | None,
        events: EventBus, result_ttl: float, worker: str,
    ) -> None:  # fmt: skip
        self._transport = transport
        self._consumer = consumer
        self._store = store
        self._committer = committer
        self._events = events
        self._ttl = result_ttl
        self._worker = worker
        self._max_delay = transport.capabilities.max_delay_s
        self._waiting: deque[_Batch] = deque()
        self._pause = _FIRST_PAUSE
        self.lock = threading.RLock()
        self._turn = threading.Lock()
        self.blocked = False
        """Whether a server is down, so that finished work waits here."""
        self.fatal: Exception | None = None
        self.urgent = False
        """Set while the lease keeper waits for ``lock``, which a flood of ends must leave to it."""
        self._log_successes = logger.isEnabledFor(logging.DEBUG)
        self.ended = 0
        self.failed = 0
        self.dead = 0
        self.retried = 0
        self.released = 0
        """Runs that were interrupted, whose messages went back."""
        self.turns = 0
        """Batches carried out: what moves when work goes on."""

    # -------------------------------------------------------------------------------------------------- queueing

    def finish(self, jobs: Sequence[Job], batch: Sequence[Finished]) -> None:
        """Queue the end of jobs that a pool has run, and log what went wrong; same length and order."""
        acks: list[Settlement] = []
        commits: list[Commit] = []
        plain = [finished.outcome for finished in batch].count(FINISHED) == len(batch)
        if plain and all([job.delivery for job in jobs]):  # noqa: C419  a flood of no-ops; a list is quicker
            acks = [Settlement(job.delivery.receipt) for job in jobs]
            jobs_left: Sequence[tuple[Job, Finished]] = ()
        else:
            jobs_left = list(zip(jobs, batch, strict=True))
        keeps, ttl = self._store is not None, self._ttl
        for job, finished in jobs_left:
            outcome = finished.outcome
            delivery = job.delivery
            if outcome is FINISHED and delivery is not None:
                acks.append(Settlement(delivery.receipt))
            elif outcome.state == SUCCESS and keeps and delivery is not None and not outcome.follow_ups:
                # what most runs come to; as _commit, without its questions
                header = job.header
                commits.append(Commit(
                    Settlement(delivery.receipt),
                    Record(
                        header.id, SUCCESS, outcome.result or b"", True, header.attempt,
                        0 if header.extra is None else int(header.extra.get(envelope.EPOCH, 0)), ttl,
                        header.reply or None,
                    ),
                ))  # fmt: skip
            else:
                commits.append(self._commit(job, outcome))
                if outcome.reason is not None:
                    self._log(job, outcome)
        if self._log_successes:
            for job, finished in zip(jobs, batch, strict=True):
                logger.debug(
                    "task %s [%s] %s in %.4f s", job.task, _id(job), finished.outcome.state, finished.elapsed,
                    extra=task_fields(job.header, queue=job.queue, worker=self._worker),
                )  # fmt: skip
        self.ended += len(batch)
        self._waiting.append(_Batch(acks, commits))
        if self._events:
            self._emit(jobs, batch)

    def _log(self, job: Job, outcome: Outcome) -> None:
        """Log a retry or failure, at level INFO without a traceback where the task expects it; never a payload."""
        extra = task_fields(job.header, queue=job.queue, worker=self._worker)
        if outcome.state == RETRY:
            logger.warning("task %s [%s]: %s", job.task, _id(job), outcome.reason, extra=extra)
        elif outcome.state == FAILURE and outcome.detail is None:
            logger.info("task %s [%s] failed as expected: %s", job.task, _id(job), outcome.reason, extra=extra)
        elif outcome.state in (FAILURE, STATE_DEAD):
            detail = "\n" + outcome.detail if outcome.detail else ""
            where = f"; it is kept in {job.queue + DEAD_SUFFIX}" if outcome.kind == DEAD else ""
            logger.error("task %s [%s] failed: %s%s%s", job.task, _id(job), outcome.reason, where, detail, extra=extra)
        else:
            logger.info("task %s [%s] is not run: %s", job.task, _id(job), outcome.reason, extra=extra)

    def end(self, job: Job, outcome: Outcome) -> None:
        """Queue the end of a job that was not run."""
        self.finish((job,), (Finished(job.key, outcome, 0.0),))

    def forward(self, job: Job, follow_ups: Sequence[Outbound]) -> None:
        """Queue: send these messages, then acknowledge, without an outcome of this job's own."""
        self._waiting.append(_Batch([], [Commit(_settlement(job), None, tuple(follow_ups))]))

    def acknowledge(self, receipt: Any) -> None:
        """Queue a bare acknowledgement."""
        self._waiting.append(_Batch([Settlement(receipt)], []))

    def release(self, jobs: Sequence[Job], *, delay: float = 0.0, counted: bool = False) -> None:
        """Queue the hand-back of jobs, in order."""
        held = [Settlement(j.delivery.receipt, RELEASE, delay, counted) for j in jobs if j.delivery is not None]
        if held:
            self._waiting.append(_Batch(held, []))

    def postpone(self, jobs: Sequence[Job], delay: float) -> None:
        """Queue the hand-back of jobs so that nobody sees them for ``delay`` seconds, where the broker can do that."""
        caps = self._transport.capabilities
        if caps.release_delay or caps.delay is Support.NO:
            self.release(jobs, delay=delay if caps.release_delay else 0.0)
            jobs = [job for job in jobs if job.delivery is None]
        for job in jobs:
            self.send_back(job, 0.0 if caps.delay is Support.NO else delay)

    def send_back(self, job: Job, delay: float = 0.0) -> None:
        """Queue: send a message anew, then acknowledge it, if it was not for a start that did not come."""
        header: Header = job.header
        name = f"{envelope.message_id(header)}.back{time.time_ns():x}"
        self.forward(job, (envelope.outbound(header, name, job.queue, job.payload, delay),))

    def _commit(self, job: Job, outcome: Outcome) -> Commit:
        """Turn an outcome into what must happen: record, follow-ups, settlement."""
        header: Header | None = job.header
        if outcome.kind == RELEASED:
            settlement = _settlement(job)
            settlement.kind = RELEASE
            self.released += 1
            self.ended -= 1
            return Commit(settlement)
        follow_ups = outcome.follow_ups
        longest = self._max_delay
        if longest is not None and any(o.delay > longest for o in follow_ups):  # legs: see Admission
            follow_ups = tuple(msgspec.structs.replace(o, delay=min(o.delay, longest)) for o in follow_ups)
        if outcome.kind == DEAD:
            follow_ups = (*follow_ups, self.dead_letter(job, outcome))
            self.dead += 1
        if outcome.state == RETRY:
            self.retried += 1
        elif outcome.reason is not None:
            self.failed += 1
        record = None
        if header is not None and self._store is not None:
            # Without fusion the record also carries the follow-ups over a crash before the acknowledgement.
            kept = _encode_follow_ups(list(follow_ups)) if follow_ups and self._committer is None else None
            if outcome.result is not None or (kept is not None and job.delivery is not None):
                record = Record(
                    header.id, outcome.state, outcome.result or b"", outcome.terminal, header.attempt,
                    int(header.get(envelope.EPOCH, 0)), self._ttl, header.reply or None, kept,
                )  # fmt: skip
        return Commit(_settlement(job), record, follow_ups)

    def dead_letter(self, job: Job, outcome: Outcome) -> Outbound:
        """Return the message for the dead-letter queue: what is known, then the payload unchanged."""
        header: Header | None = job.header
        # by its bytes, so that it has the same id wherever it is tried again
        message = header.id if header is not None else f"undecodable-{blake2b(job.payload, digest_size=8).hexdigest()}"
        info = DeadInfo(
            id=message,
            queue=job.queue,
            reason=outcome.reason or outcome.state,
            died_at=time.time(),
            task=header.task if header is not None else "",
            state=outcome.state,
            detail=outcome.detail or "",
            attempts=header.attempt if header is not None else 0,
            deliveries=job.deliveries,
            epoch=int(header.get(envelope.EPOCH, 0)) if header is not None else 0,
            worker=self._worker,
            history=list(header.get(HISTORY) or []) if header is not None else [],
        )
        name = envelope.message_id(header) if header is not None else message
        return Outbound(f"{name}.dead", job.queue + DEAD_SUFFIX, envelope.encode_dead(info, job.payload))

    def _emit(self, jobs: Sequence[Job], batch: Sequence[Finished]) -> None:
        now = time.time()
        self._events.emit([
            Event(
                f.outcome.state, now, job.header.id if job.header is not None else "", job.task, job.queue,
                job.header.attempt if job.header is not None else 0, f.elapsed, f.outcome.reason,
            )
            for job, f in zip(jobs, batch, strict=True)
        ])  # fmt: skip

    # -------------------------------------------------------------------------------------------------- carrying out

    def receipts(self) -> list[Any]:
        """Return what is finished and not yet settled, whose leases must be kept like those of running tasks."""
        batches = list(self._waiting)
        return [
            s.receipt for b in batches for s in (*b.acks, *(c.settlement for c in b.commits)) if s.receipt is not None
        ]

    def abandon(self) -> None:
        """Release what could not be settled, as started: whoever gets it next looks for its outcome first."""
        with self._turn, self.lock:
            held = [Settlement(receipt, RELEASE, 0.0, True) for receipt in self.receipts()]
            if held:
                self._consumer.settle(held)

    @property
    def records_waiting(self) -> int:
        """How many outcomes of the batch queued last are more than an acknowledgement."""
        try:
            return len(self._waiting[-1].commits)
        except IndexError:
            return 0

    @property
    def waiting(self) -> bool:
        """Whether something is queued that has not been carried out."""
        return bool(self._waiting)

    def pump(self) -> float:
        """Carry out what is queued; return 0 when all is through, else seconds to wait before the next try.

        Any thread may call it; the order of queueing is kept.
        """
        waiting = self._waiting
        with self._turn:
            while waiting:
                batch = waiting[0]
                if not batch.tried:
                    while len(waiting) > 1 and batch.takes_in(waiting[1]):
                        del waiting[1]
                try:
                    lost = self._carry_out(batch)
                except (TransportError, StoreError) as error:
                    return self._wait_after(batch, error)
                except Exception as error:
                    logger.exception("finished tasks cannot be settled: an unexpected error of broker or result store")
                    self.fatal, self.blocked = error, True
                    return _LONGEST_PAUSE
                waiting.popleft()
                self.turns += 1
                if self.blocked:
                    logger.info("broker and result store are back; finished tasks are settled, intake goes on")
                    self.blocked = False
                    self._pause = _FIRST_PAUSE
                if lost:
                    self._report(lost, batch.tried)
        return 0.0

    def _carry_out(self, batch: _Batch) -> Sequence[Lost]:
        held = [c for c in batch.commits if c.settlement.receipt is not None]
        fused, stepwise = self._committer, batch.commits
        if fused is not None:
            if held and len(held) == len(stepwise):  # as nearly always
                return self._commit_fused(fused, batch.acks, held)
            # Only what was acknowledged before goes step by step: a fused record does not carry its follow-ups, so what
            # led to them must not be stored apart from sending them.
            stepwise = [c for c in stepwise if c.settlement.receipt is None]
        if batch.stage == 0:
            self._put([c.record for c in stepwise if c.record is not None])
            batch.stage = 1
        if batch.stage == 1:
            self._send(stepwise)
            batch.stage = 2
        if fused is not None and held:
            return self._commit_fused(fused, batch.acks, held)
        settlements = [*batch.acks, *(c.settlement for c in held)]
        self._give_way()
        with self.lock:
            return self._consumer.settle(settlements) if settlements else ()

    def _give_way(self) -> None:
        """Let the lease keeper in; not every kind of lock is fair to who waits."""
        if self.urgent:
            time.sleep(0.001)

    def _commit_fused(
        self, committer: Committer, acks: Sequence[Settlement], commits: Sequence[Commit]
    ) -> Sequence[Lost]:
        self._give_way()
        with self.lock:
            try:
                return committer.commit([*map(Commit, acks), *commits])
            except ResultTooLarge as error:
                # find it one by one; what an interrupted repeat finds settled already is reported as lost
                lost = [*committer.commit([*map(Commit, acks)])]
                for commit in commits:
                    try:
                        lost += committer.commit([commit])
                    except ResultTooLarge:
                        assert commit.record is not None
                        commit.record = self._without_result(commit.record, error)
                        lost += committer.commit([commit])
                return lost

    def _without_result(self, record: Record, error: ResultTooLarge) -> Record:
        """Return a record that tells the caller why there is no result."""
        logger.error("the result of task [%s] is lost: %s", record.id, error)
        info = ErrorInfo("taskq.errors", "ResultTooLarge", str(error))
        payload = encode_payload(ResultPayload("json", None, info, None, time.time(), self._worker))
        state = FAILURE if record.state == SUCCESS else record.state
        return msgspec.structs.replace(record, state=state, payload=payload)

    def _put(self, records: list[Record]) -> None:
        if not records or self._store is None:
            return
        try:
            self._store.put(records)
        except ResultTooLarge as error:
            # one record is too large for this store: tell its caller instead, one by one to find it
            for record in records:
                try:
                    self._store.put([record])
                except ResultTooLarge:
                    self._store.put([self._without_result(record, error)])

    def _send(self, commits: Sequence[Commit]) -> None:
        origin = [(c, o) for c in commits for o in c.follow_ups]
        if not origin:
            return
        failures = self._transport.send([o for _, o in origin])
        for failure in failures:
            commit, outbound = origin[failure.index]
            if failure.retryable:
                raise TransportError(
                    f"a follow-up message for queue {outbound.queue!r} was not accepted: {failure.reason}"
                )
            logger.error(
                "message [%s] for queue %r cannot be sent (%s); what led to it stays queued and runs again in %d s",
                outbound.id, outbound.queue, failure.reason, _UNSENDABLE_DELAY,
            )  # fmt: skip
            commit.settlement.kind = RELEASE
            commit.settlement.counted = True
            if self._transport.capabilities.release_delay:
                commit.settlement.delay = _UNSENDABLE_DELAY

    def _wait_after(self, batch: _Batch, error: TransportError | StoreError) -> float:
        batch.tried = True
        if not error.retryable:
            self.fatal = error
            logger.critical(
                "finished tasks cannot be settled; they stay unacknowledged and run again elsewhere: %s", error
            )
        elif not self.blocked:
            logger.error(
                "finished tasks cannot be settled now: %s. They are kept and settled when the server is back; "
                "no new messages are taken until then",
                error,
            )
        self.blocked = True
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE)
        return pause

    def _report(self, lost: Sequence[Lost], repeated: bool) -> None:
        if repeated:
            return  # the first try may have gone through before its answer was lost
        logger.warning(
            "%d finished message(s) had lost their lease (%s); whoever holds them now decides",
            len(lost),
            lost[0].reason,
        )


def _id(job: Job) -> str:
    return job.header.id if job.header is not None else "?"


def _settlement(job: Job) -> Settlement:
    """Return the acknowledgement of a job; without a receipt where it was acknowledged at its start."""
    return Settlement(job.delivery.receipt if job.delivery is not None else None, ACK)


def pump_until(settler: Settler, deadline: float) -> bool:
    """Carry out what is queued, trying again until the deadline (monotonic); whether all went through."""
    while True:
        pause = settler.pump()
        if not settler.waiting:
            return True
        left = deadline - time.monotonic()
        if left <= 0 or settler.fatal is not None:
            return False
        time.sleep(min(pause, left))
