"""The AMQP transport: queues, sending, counting."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pika.spec as spec

from taskq.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionLost,
    NotSupported,
    QueueMissing,
    StorageFull,
    TransportClosed,
    TransportError,
)
from taskq.message import Outbound, QueueFacts, QueueSpec, QueueStats, SendFailure
from taskq.spi import Capabilities, DeclareMode, TransportConfig
from taskq_lib_amqp.channel import Channel, ChannelClosed
from taskq_lib_amqp.keeper import Keeper
from taskq_lib_amqp.link import Link, connect
from taskq_lib_amqp.publisher import Item, Publisher, Refused, Why
from taskq_lib_amqp.servers import Errors, make_target
from taskq_transport_amqp import delays
from taskq_transport_amqp.consumer import AmqpConsumer
from taskq_transport_amqp.options import CLASSIC, AmqpOptions, capabilities
from taskq_transport_amqp.queues import QueuePlan

ERRORS = Errors(ConnectionFailed, ConnectionLost, AuthenticationFailed, StorageFull)
T = TypeVar("T")
_REMAKE_S = 0.5
_REFUSED_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds before what the server refused is published again: a quorum queue that elects its leader refuses."""


class AmqpTransport:
    """One RabbitMQ server or cluster; further URLs are further nodes of it."""

    def __init__(self, config: TransportConfig) -> None:
        self.options: AmqpOptions = config.options
        self.classic = self.options.queue_type == CLASSIC
        self._capabilities = capabilities(self.options)
        lease = config.lease_s or self._capabilities.lease_default_s
        self._target = make_target(
            config.urls, self.options, ERRORS, product=config.app, heartbeat=max(1, int(lease / 2))
        )
        self.keeper = Keeper("taskq-amqp-keeper")
        self._pid = os.getpid()
        self._opened = False
        self._consumers: set[AmqpConsumer] = set()
        self._publisher = Publisher(lambda: self.connect("publisher"), self.keeper)
        self._control: Channel | None = None
        self._controlling = threading.RLock()
        self._plans: dict[str, QueuePlan] = {}
        self._known: set[str] = set()
        """Queues that were seen to exist."""
        self._gone: set[str] = set()
        """Queues that were there once and seem to have been deleted."""
        self._ways: set[tuple[str, delays.Edge]] = set()
        """Steps of delays that were seen to exist."""

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def owned(self) -> bool:
        """Whether this process opened it, not its parent."""
        return self._pid == os.getpid()

    # ---------------------------------------------------------------------------------------------- connections

    def open(self) -> None:
        if self._opened:
            return
        self.check_process()
        try:
            self._ask(lambda channel: None)
        except BaseException:
            self.keeper.close()
            raise
        self._opened = True

    def close(self, *, timeout: float = 5.0) -> None:
        self._opened = False
        if not self.owned:
            return
        end = time.monotonic() + timeout
        for consumer in list(self._consumers):
            consumer.close(max(0.1, (end - time.monotonic()) / 3))
        self._publisher.close(max(0.1, (end - time.monotonic()) / 2))
        with self._controlling:
            self._leave(max(0.1, end - time.monotonic()))
        self.keeper.close()

    def connect(self, role: str) -> Link:
        """Return a new connection. Raises: TransportError."""
        return connect(self._target, role)

    def check_process(self) -> None:
        """Refuse to work on what a parent process opened. Raises: TransportClosed."""
        if self._pid != os.getpid():
            raise TransportClosed(
                f"this transport belongs to process {self._pid}; open a new one in process {os.getpid()}"
            )

    def _check(self) -> None:
        self.check_process()
        if not self._opened:
            raise TransportClosed("the transport is not open; call open() first")

    def _ask(self, call: Callable[[Channel], T]) -> T:
        """Do something on the channel for questions; a refusal closes it, the next question opens another.

        It has a connection of its own: the server does not read from one that publishes while it is out of memory.
        """
        with self._controlling:
            channel = asked = self._control
            if channel is not None:
                channel.link.read_now()
                if channel.link.error is not None:
                    self._leave(0.1)
                    channel = None
            if channel is None:
                link = self.connect("control")
                channel = self._control = Channel(link, 1)
                self.keeper.add(link)
            elif channel.closed is not None:
                channel = self._control = Channel(channel.link, channel.number)
            if channel is not asked:
                try:
                    channel.open()
                except BaseException:
                    self._leave(0.1)  # nobody knows whether it is open: the next question gets another connection
                    raise
            return call(channel)

    def _leave(self, timeout: float) -> None:
        channel, self._control = self._control, None
        if channel is not None:
            self.keeper.remove(channel.link)
            channel.link.close(timeout)

    # --------------------------------------------------------------------------------------------------- queues

    def declare(self, queues: Sequence[QueueSpec], *, mode: DeclareMode = "create") -> Mapping[str, QueueFacts]:
        self._check()
        facts: dict[str, QueueFacts] = {}
        for queue in queues:
            plan = QueuePlan.of(queue, self.options, create=mode == "create")
            created = False
            if mode == "create":
                created = self._find(queue.name) is None
                self._make(plan)
            elif mode == "verify" and self._find(queue.name) is None:
                raise QueueMissing(
                    f"{self._target.name} has no queue {queue.name!r}; declare it with mode 'create' once, or correct "
                    "the name"
                )
            self._plans[queue.name] = plan
            self._known.add(queue.name)
            facts[queue.name] = QueueFacts(created=created, capabilities=plan.capabilities)
        return facts

    def ensure(self, queue: str) -> None:
        """Make a queue if it is not there and may be made. Raises: QueueMissing."""
        if queue in self._known:
            return
        if self._find(queue) is None:
            plan = self._plans.get(queue)
            if plan is not None and not plan.create:
                raise QueueMissing(
                    f"{self._target.name} has no queue {queue!r} (any more), and it was declared as made by others"
                )
            if queue in self._gone:
                # RabbitMQ 3 forgets to tell the consumers of a quorum queue that is deleted and made again at once
                time.sleep(_REMAKE_S)
            self._make(plan or QueuePlan.of(QueueSpec(name=queue), self.options))
        self._gone.discard(queue)
        self._known.add(queue)

    def forget_queue(self, queue: str) -> None:
        """Take note that a queue may be gone, with all that leads to it."""
        if queue in self._known:
            self._known.discard(queue)
            self._gone.add(queue)
        self._ways = {way for way in self._ways if way[0] != queue}

    def is_classic(self, queue: str) -> bool:
        """Whether a queue has priorities."""
        plan = self._plans.get(queue)
        return self.classic if plan is None else plan.classic

    def _find(self, queue: str) -> Any:
        """Return what the server says of a queue, None where there is none."""
        try:
            return self._ask(lambda channel: channel.ask(spec.Queue.Declare(queue=queue, passive=True)))
        except ChannelClosed as closed:
            if closed.code == 404:
                return None
            if closed.code == 405:  # somebody's own, exclusive queue
                raise NotSupported(f"queue {queue!r} cannot be used: {closed}") from closed
            raise self._refused(closed) from closed

    def _make(self, plan: QueuePlan) -> None:
        try:
            self._ask(plan.declare)
        except ChannelClosed as closed:
            if closed.code == 406:
                raise NotSupported(
                    f"queue {plan.name!r} exists with other properties: {closed}; delete it once it is empty, declare "
                    "it with its own (option 'type'), or use declare mode 'verify'"
                ) from closed
            raise self._refused(closed) from closed

    def _refused(self, closed: ChannelClosed) -> TransportError:
        if closed.code == 403:
            return AuthenticationFailed(f"{self._target.name} refuses this user: {closed}; give the user the right")
        return TransportError(f"{self._target.name} refused: {closed}")

    # -------------------------------------------------------------------------------------------------- sending

    def send(self, batch: Sequence[Outbound]) -> Sequence[SendFailure]:
        self._check()
        failures: list[SendFailure] = []
        items: list[Item] = []
        add = items.append
        most = self.options.max_payload_bytes
        plain = not self.classic and not self._plans
        for i, o in enumerate(batch):
            if len(o.payload) > most or o.group is not None or o.delay > 0 or o.routing_key is not None:
                item = self._special(i, o)
                if isinstance(item, SendFailure):
                    failures.append(item)
                    continue
                add(item)
            elif plain or not self.is_classic(o.queue):
                add(Item(i, "", o.queue, o.payload, o.id))
            else:
                add(Item(i, "", o.queue, o.payload, o.id, o.priority))
        if items:
            refused = self._publisher.publish(items)
            if refused:
                failures += self._second_try(refused, batch)
            else:
                self._known.update([item.key for item in items if not item.exchange])
        return failures

    def _special(self, index: int, o: Outbound) -> Item | SendFailure:
        """Return how to publish a message that is not simply for a queue."""
        most = self.options.max_payload_bytes
        if len(o.payload) > most:
            text = f"message [{o.id}] takes {len(o.payload)} bytes, at most {most} are allowed (max_payload_bytes)"
            return SendFailure(index, text, retryable=False)
        if o.group is not None:
            return SendFailure(index, "the AMQP transport keeps no order per group", retryable=False)
        priority = o.priority if self.is_classic(o.queue) else None
        if o.routing_key is not None:
            plan = self._plans.get(o.queue)
            exchange = (plan.exchange if plan is not None else "") or self.options.exchange
            if not exchange:
                text = (
                    f"message [{o.id}] has a routing key, but queue {o.queue!r} was declared without an exchange; set "
                    "the queue's option 'exchange' or the broker's option 'exchange'"
                )
                return SendFailure(index, text, retryable=False)
            if o.delay > 0:
                text = f"message [{o.id}] has a routing key and a delay; only what goes to one queue can be delayed"
                return SendFailure(index, text, retryable=False)
            return Item(index, exchange, o.routing_key, o.payload, o.id, priority)
        if o.delay > 0:
            longest = self._capabilities.max_delay_s
            if longest is not None and o.delay > longest:
                text = f"message [{o.id}] is delayed by {o.delay:g} s, at most {longest:g} s are possible"
                return SendFailure(index, text, retryable=False)
            levels = delays.levels_of(o.delay)
            self._pave(o.queue, levels)
            return Item(index, delays.ENTRY, delays.key(levels, o.queue), o.payload, o.id, priority)
        return Item(index, "", o.queue, o.payload, o.id, priority)

    def _pave(self, queue: str, levels: tuple[int, ...]) -> None:
        """Make the queues and bindings of a delay that are not there."""
        missing = [edge for edge in delays.edges(levels) if (queue, edge) not in self._ways]
        if not missing:
            return
        self.ensure(queue)

        def make(channel: Channel) -> None:
            for edge in missing:
                exchange, pattern = delays.binding(edge, queue)
                channel.ask(spec.Exchange.Declare(exchange=exchange, type="topic", durable=True))
                sink = queue
                if edge[1] is not None:
                    sink = delays.level_queue(edge[1], queue)
                    channel.ask(spec.Exchange.Declare(exchange=delays.exchange(edge[1]), type="topic", durable=True))
                    channel.ask(spec.Queue.Declare(queue=sink, durable=True, arguments=delays.arguments(edge[1])))
                channel.ask(spec.Queue.Bind(queue=sink, exchange=exchange, routing_key=pattern))

        try:
            self._ask(make)
        except ChannelClosed as closed:
            raise self._refused(closed) from closed
        self._ways.update((queue, edge) for edge in missing)

    def copy(self, messages: Sequence[tuple[str, bytes]]) -> set[int]:
        """Publish messages again, each to its queue; return which of them the server has. Nothing is raised."""
        if self._publisher.blocked:
            return set()
        items = [Item(n, "", queue, payload, f"copy-{n}") for n, (queue, payload) in enumerate(messages)]
        try:
            refused = self._publisher.publish(items)
        except TransportError:
            return set()
        return {item.index for item in items} - {entry.item.index for entry in refused}

    def _second_try(self, refused: Sequence[Refused], batch: Sequence[Outbound]) -> list[SendFailure]:
        """Publish again what nobody got for certain; return the failures that remain."""
        failures: list[Refused] = []
        for pause in (0.0, *_REFUSED_PAUSES):
            again: list[Item] = []
            for entry in refused:
                if entry.why is Why.UNROUTABLE and pause == 0.0:
                    if self._restored(entry, batch[entry.item.index]):
                        again.append(entry.item)
                        continue
                elif entry.why is Why.REJECTED:
                    again.append(entry.item)
                    continue
                failures.append(entry)
            if not again:
                break
            time.sleep(pause)
            try:
                refused = self._publisher.publish(again)
            except TransportError as error:
                refused = []
                failures += [Refused(item, str(error)) for item in again]
        else:
            failures += refused
        return [SendFailure(r.item.index, r.reason, r.maybe_sent, r.retryable) for r in failures]

    def _restored(self, entry: Refused, outbound: Outbound) -> bool:
        """Make the queue that a message found missing; say in the entry why it cannot be."""
        if outbound.routing_key is not None:
            entry.retryable = False
            return False
        self.forget_queue(outbound.queue)
        try:
            self.ensure(outbound.queue)
            if outbound.delay > 0:
                self._pave(outbound.queue, delays.levels_of(outbound.delay))
        except QueueMissing as missing:
            entry.reason, entry.retryable = str(missing), False
            return False
        except TransportError as error:
            entry.reason = str(error)
            return False
        return True

    def consumer(self) -> AmqpConsumer:
        self._check()
        consumer = AmqpConsumer(self)
        self._consumers.add(consumer)
        return consumer

    def forget(self, consumer: AmqpConsumer) -> None:
        """Take a closed consumer off the list of those to close."""
        self._consumers.discard(consumer)

    # -------------------------------------------------------------------------------------------------- looking

    def stats(self, queues: Sequence[str]) -> Mapping[str, QueueStats]:
        self._check()
        counts: dict[str, QueueStats] = {}
        for queue in queues:
            found = self._find(queue)
            if found is not None:
                counts[queue] = QueueStats(ready=found.message_count)
        return counts

    def purge(self, queues: Sequence[str]) -> Mapping[str, int]:
        self._check()
        return {
            queue: self._purge(queue) + sum(self._purge(delays.level_queue(n, queue)) for n in range(delays.LEVELS))
            for queue in queues
        }

    def _purge(self, queue: str) -> int:
        try:
            return int(self._ask(lambda channel: channel.ask(spec.Queue.Purge(queue=queue))).message_count)
        except ChannelClosed as closed:
            if closed.code == 404:
                return 0
            raise self._refused(closed) from closed
