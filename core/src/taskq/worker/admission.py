"""Admission: from deliveries to jobs, by their headers alone.

What cannot or need not run is ended here: undecodable, unknown task, expired, too early. What needs care before it
starts is told apart: a redelivered message may be the one that killed its worker, so such messages start one at a
time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from taskq import envelope
from taskq.envelope import EXPIRES, GUARD, NOT_BEFORE, PARKED, STARTS, STORE, Header
from taskq.errors import DecodeError, StoreError, TaskDead, TaskExpired, UnknownTask
from taskq.failure import encode_error
from taskq.message import DEAD, DONE, Delivery, Job, Outbound, Outcome
from taskq.spi.capabilities import Capabilities, DeliveryCount, ReadableBy, Support
from taskq.spi.store import Coordination, Op, OpKind, ResultStore
from taskq.states import DEAD as STATE_DEAD
from taskq.states import EXPIRED
from taskq.worker.settler import Settler, decode_follow_ups

if TYPE_CHECKING:
    from taskq.app import TaskQ

logger = logging.getLogger("taskq.worker")
_EARLY = 0.5
"""Seconds before its time at which a message counts as due: less than clocks differ."""
_PARK_DELAY = 1.0
_FORGIVEN = 3
"""Times ``max_deliveries`` after which a message is given up that neither broker nor store could count starts of."""

RunKey = tuple[str, int, int]


class Admission:
    """Turns deliveries into jobs for one lane; ``keys`` number the jobs of all lanes."""

    def __init__(
        self, app: TaskQ, capabilities: Capabilities, settler: Settler, *, worker: str, keys: Iterator[int]
    ) -> None:
        self._app = app
        self._settler = settler
        self._worker = worker
        self._now = app.clock.now
        self._keys = keys
        self._max_deliveries = app.settings.max_deliveries
        self._park_for = app.settings.unknown_task_wait
        store: Any = app.store
        self._can_delay = capabilities.delay is not Support.NO
        self._max_delay = capabilities.max_delay_s
        self._store: ResultStore | None = store
        self._store_label = app.store_label
        counts = store is not None and store.capabilities.coordination and isinstance(store, Coordination)
        self._coordination: Coordination | None = store if counts else None
        self.exact = capabilities.delivery_count is DeliveryCount.EXACT
        """Whether ``Delivery.deliveries`` counts starts, hand-backs not included."""
        self._careful_tasks = {n for n, t in app.tasks.items() if t.at_most_once or self._tracks(t)}
        self._expected = set(app.tasks)
        self._warned_stores: set[str] = set()
        self.may_run: Callable[[Job], bool] = lambda job: True
        """What decides on a guard of a long run; see ``Carrier``."""
        self.orphans: dict[RunKey, Job] = {}
        """Jobs that still run here although their lease was lost; a redelivery of one is adopted, not run twice."""
        self.adopted: list[Job] = []
        self.innocent: dict[RunKey, bool] = {}
        """Messages whose lease was lost before they started here: that they come back says nothing against them."""

    def _tracks(self, task: Any) -> bool:
        return bool(self._app.settings.track_started if task.track_started is None else task.track_started)

    @property
    def counts_starts(self) -> bool:
        """Whether starts of redelivered messages are counted here, in a store or in the message itself.

        Else the broker's count of deliveries is all there is to go by.
        """
        return self._coordination is not None or not self.exact

    def admit(self, deliveries: Sequence[Delivery]) -> tuple[list[Job], list[Job], list[Job]]:
        """Return (jobs to run, jobs that need a step before their start, suspects); the rest is ended."""
        jobs: list[Job] = []
        careful: list[Job] = []
        suspects: list[Job] = []
        decode, known, careful_tasks, keys = envelope.decode, self._expected, self._careful_tasks, self._keys
        now, label = self._now(), self._store_label
        add = jobs.append
        for delivery in deliveries:
            payload = delivery.payload
            try:
                header, body = decode(payload)
            except DecodeError as error:
                self._undecodable(delivery, error)
                continue
            task = header.task
            job = Job(next(keys), payload, task, delivery.queue, delivery.deliveries, body, header, delivery)
            if task not in known:
                self._unknown(job, now)
                continue
            extra = header.extra
            if extra is not None and self._ended_early(job, header, extra, now):
                continue
            if header.reply is not None and (label or (extra is not None and STORE in extra) or self._store is None):
                self._check_store(header)
            if delivery.deliveries > 1 or (extra is not None and (STARTS in extra or GUARD in extra)):  # as is_suspect
                if not self.orphans or not self._adopt(job, header):
                    suspects.append(job)
            elif task in careful_tasks:
                careful.append(job)
            else:
                add(job)
        return jobs, careful, suspects

    # ------------------------------------------------------------------------------------------ ended right here

    def _undecodable(self, delivery: Delivery, error: DecodeError) -> None:
        job = Job(next(self._keys), delivery.payload, "", delivery.queue, delivery.deliveries, 0, None, delivery)
        self._settler.end(job, Outcome(DEAD, STATE_DEAD, None, (), f"undecodable: {error}"))

    def _unknown(self, job: Job, now: float) -> None:
        """Offer a message to workers that know its task for a while, then give it up.

        During a deployment, old workers meet tasks of the new release; the message must outlive that.
        """
        header: Header = job.header
        since = header.get(PARKED) or now
        if now - since < self._park_for and self._can_delay:
            payload = envelope.with_changes(header, job.payload[job.body :], changes={PARKED: since})
            delay = min(_PARK_DELAY, self._park_for)
            name = f"{envelope.message_id(header)}.parked{int((now - since) * 1000)}"
            again = envelope.outbound(header, name, job.queue, payload, delay)
            logger.warning("task %s [%s] is not known here; offered to other workers again", job.task, header.id)
            self._settler.forward(job, (again,))
            return
        reason = f"unknown task {job.task!r}: no worker that knows it took it within {self._park_for:g} s"
        self._settler.end(job, Outcome(DEAD, STATE_DEAD, self.error_record(header, UnknownTask(reason)), (), reason))

    def _ended_early(self, job: Job, header: Header, extra: dict[str, Any], now: float) -> bool:
        expires = extra.get(EXPIRES)
        if expires is not None and expires <= now:
            reason = f"expired {now - expires:.1f} s before a worker took it"
            self._settler.end(job, Outcome(DONE, EXPIRED, self.error_record(header, TaskExpired(reason)), (), reason))
            return True
        not_before = None if self._max_delay is None else extra.get(NOT_BEFORE)
        if not_before is not None and self._max_delay is not None and not_before - now > _EARLY:
            # A leg of a delay that is longer than the broker can hold. One that holds any delay has kept it by its own
            # clock: this machine's, which may be wrong, is not asked.
            delay = min(not_before - now, self._max_delay)
            name = f"{envelope.message_id(header)}.leg{int(not_before - now)}"
            self._settler.forward(job, (envelope.outbound(header, name, job.queue, job.payload, delay),))
            return True
        return False

    def error_record(self, header: Header, error: Exception) -> bytes | None:
        """Return the result record's payload for a message that is not run, None where nobody expects one."""
        if header.reply is None:
            return None
        codec = self._app.codec
        return encode_error(error, codec.serializer(codec.settings.result_serializer), "", self._worker)

    def _check_store(self, header: Header) -> None:
        """Make it seen when a caller waits for a result in a store that this worker does not write to."""
        wanted = header.get(STORE) or ""
        if self._store is not None and wanted == self._store_label:
            return
        if wanted in self._warned_stores:
            return
        self._warned_stores.add(wanted)
        logger.error(
            "callers of task %s wait for results in %s, but this worker writes to %s; they will time out. "
            "Give worker and callers the same result_store",
            header.task,
            wanted or "the broker's own store",
            self._store_label or ("none" if self._store is None else "the broker's own store"),
        )

    # -------------------------------------------------------------------------------------------------- adoption

    def _adopt(self, job: Job, header: Header) -> bool:
        """Give a redelivered message to the run of it that never stopped here; whether there is one."""
        running = self.orphans.pop(run_key(header), None)
        if running is None:
            return False
        logger.info("task %s [%s] came back while it still runs here; the run goes on", job.task, header.id)
        running.delivery = job.delivery
        self.adopted.append(running)
        return True

    def orphan(self, key: int) -> Job | None:
        """Return a job that still runs here although its lease was lost."""
        return next((job for job in list(self.orphans.values()) if job.key == key), None)

    def bury(self, key: int) -> None:
        """Forget a run that has died after its lease was lost, so that its message is not taken for still running."""
        job = self.orphan(key)
        if job is not None:
            self.orphans.pop(run_key(job.header), None)

    # -------------------------------------------------------------------------------------------------- suspects

    @staticmethod
    def is_suspect(job: Job) -> bool:
        """Whether a message may have been started before, and so may be what killed its worker."""
        return job.deliveries > 1 or bool(job.header.get(STARTS)) or bool(job.header.get(GUARD))

    def clear(self, job: Job) -> bool:
        """Decide on one redelivered message right before its start; True to run it.

        A message whose outcome is stored already is ended without a run. One that was started too often without an
        outcome goes to the dead-letter queue. Starts are counted where there is a store to count in; else the broker's
        count of deliveries is taken, which unstarted hand-backs do not raise.

        Raises:
            StoreError: the store cannot be asked; the message is neither run nor ended.
        """
        header: Header = job.header
        epoch = int(header.get(envelope.EPOCH, 0))
        if self._store is not None and self._store.capabilities.readable_by is ReadableBy.ANYONE:
            record = self._store.get([header.id])[0]
            if record is not None and (record.epoch, record.attempt) >= (epoch, header.attempt):
                same = (record.epoch, record.attempt) == (epoch, header.attempt)
                if not same or record.terminal or record.state == "RETRY":
                    self._settler.forward(job, self._stored_follow_ups(record.follow_ups) if same else ())
                    logger.info("task %s [%s] had ended before it came back; it is not run again", job.task, header.id)
                    return False
        if header.get(GUARD) and not self.may_run(job):
            return False
        if self.innocent.pop(run_key(header), False):
            return True
        if self._coordination is None and not self.exact:
            if job.deliveries <= 1:
                return True  # this very start is counted in the message already
            starts = int(header.get(STARTS) or 0) + 1
            # what was merely held by a worker that died counts here, too, so more is forgiven
            if starts < self._max_deliveries * _FORGIVEN:
                self._count_in_message(job, header, starts)
                return False
        else:
            starts = self._count_start(header, job)
        if starts < self._max_deliveries:
            return True
        reason = (
            f"it was started {starts} times without an outcome (max_deliveries is {self._max_deliveries}): "
            "it probably kills its worker"
        )
        outcome = Outcome(DEAD, STATE_DEAD, self.error_record(header, TaskDead(reason)), (), reason)
        self._settler.end(job, outcome)
        return False

    def _count_in_message(self, job: Job, header: Header, starts: int) -> None:
        """Replace a message by a copy that says how often it was started; the copy runs when it is delivered.

        The broker tells "again" at most, and there is no store to count in.
        """
        payload = envelope.with_changes(header, job.payload[job.body :], changes={STARTS: starts})
        name = f"{envelope.message_id(header)}.start{starts}"
        self._settler.forward(job, (envelope.outbound(header, name, job.queue, payload),))

    def _count_start(self, header: Header, job: Job) -> int:
        """Return how often the message was started before, by what can count it here."""
        if self._coordination is None:
            return job.deliveries - 1
        key = f"taskq:starts:{envelope.message_id(header)}"
        ttl = max(86400.0, self._app.settings.result_ttl)
        try:
            result = self._coordination.apply([Op(kind=OpKind.INCREMENT, key=key[:200], ttl=ttl)])[0]
        except StoreError:
            return job.deliveries - 1
        # the first delivery is not counted in the store: it may or may not have been started
        count = int(result.current or b"1")
        return min(count, job.deliveries - 1) if self.exact and not header.get(GUARD) else count

    @staticmethod
    def _stored_follow_ups(data: bytes | None) -> Sequence[Outbound]:
        if not data:
            return ()
        try:
            return decode_follow_ups(data)
        except msgspec.MsgspecError as error:
            logger.error("the follow-ups of a stored outcome cannot be read (%s); they are lost", error)
            return ()


def run_key(header: Header) -> RunKey:
    """Return what names one run of one task: id, epoch, attempt."""
    return header.id, int(header.get(envelope.EPOCH, 0)), header.attempt
