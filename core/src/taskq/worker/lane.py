"""A lane: what a worker has once per broker, from the subscription to the settling.

Most workers have one. Where an application's queues are on several brokers, each broker has a lane with threads of its
own, so that one that is away holds up nothing but its own messages; the lanes share the pool and the result store.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import StoreError, TransportError
from taskq.events import EventBus
from taskq.message import Job, QueueSpec, Subscription
from taskq.routing import DEAD_SUFFIX
from taskq.spi.pool import Finished
from taskq.spi.transport import Committer, Consumer, SupportsFuse, Transport
from taskq.worker.admission import Admission
from taskq.worker.carrier import Carrier
from taskq.worker.engine import Engine
from taskq.worker.inline import InlineEngine
from taskq.worker.keeper import Keeper
from taskq.worker.pooled import PoolEngine
from taskq.worker.settler import Settler
from taskq.worker.sharing import PoolShare
from taskq.worker.shutdown import StartStopped

if TYPE_CHECKING:
    from taskq.worker.worker import Worker

logger = logging.getLogger("taskq.worker")


class Lane:
    """One broker of one worker; its parts are made when the broker is there."""

    transport: Transport
    consumer: Consumer
    settler: Settler
    admission: Admission
    carrier: Carrier
    engine: Engine
    keeper: Keeper

    def __init__(self, worker: Worker, broker: str, queues: Sequence[Subscription]) -> None:
        self.worker = worker
        self.app = worker.app
        self.settings = worker.settings
        self.name = worker.name
        self.broker = broker
        """The broker's name in the settings, "" for the application's own."""
        self.label = worker.app.components.label(broker)
        self.queues = queues
        self.lease = 0.0
        self.held: dict[int, Job] = {}
        self.finished_orphans: dict[int, Finished] = {}
        self.progress = 0
        self.broker_down = False
        self.waits_for_store = 0.0
        """When a start had to wait for the result store last, by ``time.monotonic``."""
        self.fused = False
        self.up = False
        """Whether its parts are made and it takes messages, or did."""

    @property
    def store(self) -> Any:
        """The result store that all lanes share, None where results are off."""
        return self.worker.store

    @property
    def prefetch(self) -> int | None:
        """This lane's part of ``worker.prefetch``, None where that is adaptive."""
        limit = self.settings.prefetch
        return None if limit is None else limit // len(self.worker.lanes)

    @property
    def prefetch_bytes(self) -> int:
        """This lane's part of ``worker.prefetch_bytes``."""
        return max(1, self.settings.prefetch_bytes // len(self.worker.lanes))

    # ------------------------------------------------------------------------------------------------- starting

    def open(self) -> None:
        """Open the broker; one try.

        Raises:
            TransportError: it is away (``retryable``), or will never have us.
        """
        self.transport = self.app.components.broker(self.broker)
        self.lease = self.app.settings.lease or self.transport.capabilities.lease_default_s

    def subscribe(self) -> None:
        """Declare and subscribe to the queues; one try. Raises as ``open``, and QueueMissing, NotSupported."""
        names = [q.queue for q in self.queues]
        dead = [QueueSpec(name=name + DEAD_SUFFIX) for name in names]
        self.app.components.declare([*map(self.app.queue_spec, names), *dead])
        consumer = self.transport.consumer()
        try:
            consumer.subscribe(self.queues, order=self.settings.queue_order)
        except BaseException:
            consumer.close()
            raise
        self.consumer = consumer

    def build(self, pool: Any) -> None:
        """Make the parts that take, run and settle messages.

        Raises:
            NotSupported: a task's option cannot be kept on this broker.
        """
        worker, app, store = self.worker, self.app, self.store
        committer: Committer | None = None
        if store is not None and isinstance(self.consumer, SupportsFuse):
            committer = self.consumer.fuse(store)
        self.fused = committer is not None
        self.settler = Settler(
            transport=self.transport, consumer=self.consumer, store=store, committer=committer,
            events=EventBus(app.plugins.event_sinks(app)), result_ttl=app.settings.result_ttl, worker=self.name,
        )  # fmt: skip
        self.admission = Admission(
            app, self.transport.capabilities, self.settler, worker=self.name, keys=worker.job_keys
        )
        self.carrier = Carrier(self)
        self.admission.may_run = self.carrier.may_run
        if worker.inline:
            self.engine = InlineEngine(self, pool)
        else:
            self.engine = PoolEngine(self, pool, worker.slots)
            if isinstance(pool, PoolShare):
                pool.engine = self.engine
        self.keeper = Keeper(self, self.engine)
        self.up = True

    def run(self) -> None:
        """Work until the worker is told to stop; wait for the broker first where it was away."""
        if not self.up:
            try:
                self.worker.bring_up(self)
            except StartStopped:
                return
        self.engine.run()

    def leave(self) -> None:
        """Close the subscription, if there is one."""
        consumer = getattr(self, "consumer", None)
        if consumer is not None:
            consumer.close()

    # -------------------------------------------------------------------------------------------- for the engine

    def broker_failed(self, error: TransportError) -> None:
        """Say once that the broker is away; raise when trying again is pointless."""
        if not error.retryable:
            raise error
        if not self.broker_down:
            logger.error("the broker%s is not available: %s; trying again until it is back", self._which(), error)
            self.broker_down = True

    def broker_back(self) -> None:
        """Say that the broker is back."""
        if self.broker_down:
            logger.info("the broker%s is back", self._which())
            self.broker_down = False

    def _which(self) -> str:
        return f" {self.broker or self.label}" if self.app.settings.brokers else ""

    def store_failed(self, error: StoreError | TransportError) -> None:
        """Say that a careful start has to wait."""
        self.waits_for_store = time.monotonic()
        logger.error("a task waits to be started: %s; trying again", error)

    def wake(self) -> None:
        """Have the intake look up from whatever it waits for; any thread or signal handler."""
        consumer = getattr(self, "consumer", None)
        if consumer is not None:
            consumer.wake()
        engine = getattr(self, "engine", None)
        if engine is not None:
            engine.room_made()
