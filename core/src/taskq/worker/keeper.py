"""The keeper: a thread that renews leases, hands back what waits behind a slow task, and does the broker's chores.

It runs beside every pool, solo included, so that a task of any length keeps its message.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskq.errors import StoreError, TransportError
from taskq.spi.capabilities import HandBack, LeaseScope
from taskq.spi.store import SupportsStoreMaintenance
from taskq.spi.transport import SupportsMaintenance

if TYPE_CHECKING:
    from taskq.worker.engine import Engine
    from taskq.worker.lane import Lane

logger = logging.getLogger("taskq.worker")
_TICK = 0.1
_IDLE_TICK = 0.5
_SLOW_TICKS = 2
"""Ticks without progress after which waiting messages are handed back."""
_MAINTENANCE_BUDGET = 0.2
_MAINTENANCE_RETRY = 5.0


class Keeper:
    """Keeps the leases of one lane."""

    def __init__(self, lane: Lane, engine: Engine) -> None:
        self._lane = lane
        self._engine = engine
        caps = lane.transport.capabilities
        self._scope = caps.lease_scope
        self._interval = max(0.05, lane.lease / 3)
        self._hands_back = caps.hand_back is not HandBack.NO
        self._stop = threading.Event()
        self._renewed = time.monotonic()
        self._failing = False
        self._seen_progress = -1
        self._still = 0
        self._threads = [threading.Thread(target=self._run, name="taskq-keeper", daemon=True)]
        if lane.settings.maintenance:
            self._threads.append(threading.Thread(target=self._maintain, name="taskq-maintenance", daemon=True))
        if lane.carrier.carries:  # asks servers, which leases must not wait for
            self._threads.append(threading.Thread(target=self._carry, name="taskq-carrier", daemon=True))

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=5)

    def _run(self) -> None:
        next_beat = time.monotonic() + self._interval
        while not self._stop.wait(min(_TICK if self._lane.held else _IDLE_TICK, self._interval)):
            now = time.monotonic()
            try:
                if now >= next_beat:
                    next_beat = now + self._interval
                    self._renew(now)
                self._hand_back_waiting()
            except Exception:
                logger.exception("the lease keeper met an unexpected error; it goes on")

    def _carry(self) -> None:
        carrier, next_beat = self._lane.carrier, 0.0
        while not self._stop.wait(min(_TICK, self._interval)):
            now = time.monotonic()
            try:
                if now >= next_beat:
                    next_beat = now + self._interval
                    carrier.renew()
                carrier.tick(now)
            except Exception:
                logger.exception("carrying a long run met an unexpected error; it goes on")

    # ---------------------------------------------------------------------------------------------------- leases

    def _renew(self, now: float) -> None:
        lane = self._lane
        if self._scope in (LeaseScope.NONE, LeaseScope.CONNECTION):
            return
        receipts = None
        if self._scope is LeaseScope.MESSAGE:
            receipts = [job.delivery.receipt for job in list(lane.held.values()) if job.delivery is not None]
            receipts += lane.settler.receipts()
        try:
            lane.settler.urgent = True
            with lane.settler.lock:
                lane.settler.urgent = False
                lost = lane.consumer.extend(receipts)
        except TransportError as error:
            self._renewal_failed(now, error)
            return
        if self._failing:
            logger.info("leases are renewed again")
            self._failing = False
        self._renewed = now
        if lost:
            self._engine.lost(lost)

    def _renewal_failed(self, now: float, error: TransportError) -> None:
        if not self._failing:
            logger.error(
                "leases cannot be renewed: %s; what is held here is given to others %.1f s after the last renewal",
                error, self._lane.lease,
            )  # fmt: skip
            self._failing = True

    # ------------------------------------------------------------------------------------------------- hand-back

    def _hand_back_waiting(self) -> None:
        """Give back what was taken ahead when the jobs before it turn out slow, so that another worker can start it."""
        lane = self._lane
        progress = lane.progress
        if progress != self._seen_progress or not self._hands_back:
            self._seen_progress, self._still = progress, 0
            return
        if lane.worker.held_count() <= lane.worker.slots:
            return
        self._still += 1
        if self._still < _SLOW_TICKS:
            return
        self._still = 0
        waiting = self._engine.unstarted()
        if waiting:
            logger.debug("%d waiting message(s) handed back behind a slow task", len(waiting))
            self._engine.take.stalled = True
            self._engine.give_back(waiting)
        self._engine.settle_soon()

    # ----------------------------------------------------------------------------------------------- maintenance

    def _maintain(self) -> None:
        lane = self._lane
        parts: list[Any] = [lane.transport, lane.store]
        kinds = (SupportsMaintenance, SupportsStoreMaintenance)
        chores: list[Callable[[float], float]] = [part.maintain for part in parts if isinstance(part, kinds)]
        due = [0.0] * len(chores)
        while chores:
            for i, chore in enumerate(chores):
                if due[i] <= time.monotonic():
                    try:
                        pause = chore(_MAINTENANCE_BUDGET)
                    except (TransportError, StoreError) as error:
                        logger.debug("maintenance failed and is tried again: %s", error)
                        pause = _MAINTENANCE_RETRY
                    except Exception:
                        logger.exception("maintenance met an unexpected error and is tried again")
                        pause = _MAINTENANCE_RETRY
                    due[i] = time.monotonic() + max(0.05, pause)
            if self._stop.wait(max(0.01, min(due) - time.monotonic())):
                return
