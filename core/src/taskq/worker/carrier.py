"""The carrier: runs that last longer than the broker lets a message be held.

Some brokers take a message back after a fixed time, however often its lease is renewed (RabbitMQ's consumer timeout,
half an hour by default; twelve hours on SQS). Well before that, the worker takes a place in the result store's
``Coordination`` for the run, sends a delayed copy of the message as its guard, and acknowledges the message. Whoever
gets the guard looks for the run: while its place is kept, the guard is sent on; when the run has ended, it is
acknowledged; when the place is free and there is no end, the run has died, and the guard is the message that runs.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from taskq import envelope
from taskq.envelope import GUARD, Header
from taskq.errors import NotSupported, StoreError, TransportError
from taskq.message import Job, Outbound
from taskq.spi.capabilities import Support
from taskq.spi.store import Coordination, Op, OpKind

if TYPE_CHECKING:
    from taskq.worker.lane import Lane

logger = logging.getLogger("taskq.worker")
_SHARE = 0.5
"""Share of the longest hold after which a message is replaced by its guard."""
_RETRY = 1.0
"""Seconds after which a run is tried to be carried again, when a server is away."""
_GUARD_PERIOD = 60.0
"""Longest time in seconds between two looks of a guard: what a crash of a long run costs at most."""


class Carrier:
    """Carries the long runs of one lane; ``tick``, ``renew`` and ``finish`` are called by one thread at a time.

    ``lock`` is held while a job leaves ``Lane.held`` and by the step that takes its message from it, so that a run
    either ends with its receipt or is carried, never both.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        caps = lane.transport.capabilities
        self._max_hold = caps.max_hold_s
        store: Any = lane.store
        able = store is not None and store.capabilities.coordination and caps.delay is not Support.NO
        self._coordination: Coordination | None = store if able and isinstance(store, Coordination) else None
        self._since: dict[int, float] = {}
        self._carried: dict[int, tuple[Job, str]] = {}
        self._ended: list[tuple[Job, str]] = []
        self._tried: Job | None = None
        self._over = False
        self._again = 0.0
        """When to try again, by ``time.monotonic``, what a server that was away has prevented."""
        self._settle_at = 0.0
        self.lock = threading.RLock()
        self.carries = self._max_hold is not None and self._coordination is not None
        """Whether this worker carries runs at all."""
        if self._max_hold is not None:
            self._ttl = 3 * lane.lease
            self._period = max(0.5, min(_GUARD_PERIOD, self._max_hold / 4))
            self._check()

    def _check(self) -> None:
        """Refuse tasks that are known to last longer than can be held or carried."""
        if self._coordination is not None:
            return
        longest = self._max_hold or 0.0
        tasks = self._lane.app.tasks.values()
        over = [t.name for t in tasks if t.time_limit is not None and t.time_limit > longest]
        why = f"the broker takes a message back after {longest:g} s"
        what = (
            "a result store with coordination (redis, postgresql, …) carries longer runs; or raise the broker's limit"
        )
        if over:
            raise NotSupported(f"task {over[0]} may run longer than its message can be held: {why}. {what}")
        if any(t.time_limit is None for t in tasks):
            logger.warning("a task that runs longer is run twice: %s; %s, or give tasks a time_limit", why, what)

    def ended(self, job: Job) -> None:
        """Take note that a run has an outcome, which is queued to be settled; with the lock held."""
        carried = self._carried.pop(job.key, None)
        if carried is not None:
            self._ended.append(carried)
        elif job is self._tried:
            self._over = True

    def carried(self, job: Job) -> bool:
        """Whether a run's message was acknowledged because a guard has taken its place."""
        return job.key in self._carried

    def forget(self, job: Job) -> bool:
        """Take note that a run will not end here: its guard is free to run. Return whether it was carried."""
        carried = self._carried.pop(job.key, None)
        if carried is None:
            return False
        self._give_up(*carried)
        return True

    def _give_up(self, job: Job, message: str) -> None:
        assert self._coordination is not None
        try:
            self._coordination.release(_run(message), self._owner(job))
        except StoreError as error:
            logger.debug("the place of a run is given up when its time ends: %s", error)

    def tick(self, now: float) -> None:
        """Look for runs that have lasted long, and clean up after those that have ended; ``now`` is monotonic."""
        if not self.carries or self._max_hold is None:
            return
        since = self._since
        held = {key: job for key, job in list(self._lane.held.items()) if job.delivery is not None}
        for key in [key for key in since if key not in held]:
            del since[key]
        for key, job in held.items():
            if now - since.setdefault(key, now) > self._max_hold * _SHARE and now >= self._again:
                self._carry(job)
        if self._lane.settler.blocked and self._lane.worker.inline and now >= self._settle_at:
            # the thread that would try again is in the task
            self._settle_at = now + self._lane.settler.pump()
        self.finish()

    def renew(self) -> None:
        """Keep the places of the runs that are carried, until their ends are settled; every third of the lease."""
        if self._coordination is None:
            return
        for job, message in [*self._carried.values(), *self._ended]:
            try:
                self._coordination.renew(_run(message), self._owner(job), ttl=self._ttl)
            except StoreError as error:
                logger.warning("the place of a long run cannot be renewed now: %s", error)

    def _owner(self, job: Job) -> str:
        return f"{self._lane.name}:{job.key}"

    def _carry(self, job: Job) -> None:
        header: Header = job.header
        message, coordination = envelope.message_id(header), self._coordination
        assert coordination is not None
        self._tried, self._over = job, False
        try:
            if not coordination.acquire(_run(message), self._owner(job), ttl=self._ttl):
                return
            failures = self._lane.transport.send([self.guard(job)])
            if failures:
                raise TransportError(failures[0].reason)
            with self.lock:
                delivery = job.delivery
                held = self._lane.held.get(job.key) is job and delivery is not None
                if held:
                    job.delivery = None
                    self._carried[job.key] = job, message
                elif self._over:
                    self._ended.append((job, message))
            if not held:  # it ended meanwhile, by its receipt
                if not self._over:
                    self._give_up(job, message)
                return
            self._since.pop(job.key, None)
            self._lane.settler.acknowledge(delivery.receipt)  # as often as it takes: it must not run beside its guard
            self._lane.engine.settle_soon()
        except (StoreError, TransportError) as error:
            self._again = time.monotonic() + _RETRY
            logger.warning("task %s [%s] runs long and cannot be carried yet: %s", job.task, header.id, error)
            return
        finally:
            self._tried = None
        logger.info("task %s [%s] runs long: a guard takes its message's place", job.task, header.id)

    def guard(self, job: Job) -> Outbound:
        """Return the next guard of a message: a delayed copy."""
        header: Header = job.header
        number = int(header.get(GUARD) or 0) + 1
        payload = envelope.with_changes(header, job.payload[job.body :], changes={GUARD: number})
        # its number alone would repeat where a guard that ran is carried in turn
        name = f"{envelope.message_id(header)}.guard{number}.{int(time.time() * 1000):x}"
        return envelope.outbound(header, name, job.queue, payload, self._period)

    def finish(self) -> None:
        """Tell guards of runs that have ended, once that is settled; the guards are gone after two of their periods."""
        with self.lock:
            if not self._ended or self._coordination is None or self._lane.settler.waiting:
                return
            ended, self._ended = self._ended, []
        ttl = 4 * self._period + self._ttl
        try:
            self._coordination.apply([Op(kind=OpKind.PUT, key=_done(m), value=b"1", ttl=ttl) for _, m in ended])
        except StoreError as error:
            with self.lock:
                self._ended += ended
            logger.warning("guards of long runs cannot be told yet that they have ended: %s", error)

    def may_run(self, job: Job) -> bool:
        """Decide on a guard that was delivered: send it on, end it, or let it run; True for the last.

        Raises:
            StoreError: nothing is known; the guard must wait.
        """
        message = envelope.message_id(job.header)
        coordination = self._coordination
        if coordination is None:
            return True
        (done,) = coordination.apply([Op(kind=OpKind.GET, key=_done(message))])
        if done.current is not None:
            self._lane.settler.forward(job, ())
            return False
        owner = f"{self._lane.name}:guard:{job.key}"
        if not coordination.acquire(_run(message), owner, ttl=self._ttl):
            self._lane.settler.forward(job, (self.guard(job),))
            return False
        coordination.release(_run(message), owner)
        return True


def _run(message: str) -> str:
    return f"taskq:run:{message}"[:200]


def _done(message: str) -> str:
    return f"taskq:done:{message}"[:200]
