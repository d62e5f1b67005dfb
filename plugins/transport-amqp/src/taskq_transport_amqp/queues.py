"""What a queue is declared with: its type, its way for dead messages, its exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pika.spec as spec
from msgspec import Struct

from taskq.errors import NotSupported
from taskq.message import QueueSpec
from taskq.spi import Capabilities
from taskq_lib_amqp.channel import Channel
from taskq_transport_amqp.options import CLASSIC, QUORUM, AmqpOptions, capabilities

DEAD = ".dead"
EXCHANGES = ("topic", "fanout", "direct", "headers")
_LONGEST_NAME = 200
_OPTIONS = ("type", "delivery_limit", "exchange", "exchange_type", "routing_keys", "arguments")


class QueuePlan(Struct, frozen=True, kw_only=True):
    """How a queue is to be made. ``create`` False: by others."""

    name: str
    classic: bool
    durable: bool
    create: bool
    arguments: Mapping[str, Any]
    exchange: str = ""
    exchange_type: str = "topic"
    routing_keys: tuple[str, ...] = ()
    capabilities: Capabilities | None = None

    @classmethod
    def of(cls, queue: QueueSpec, options: AmqpOptions, *, create: bool = True) -> QueuePlan:
        """Read a queue's options. Raises: NotSupported."""
        own = dict(queue.options)
        if unknown := sorted(set(own) - set(_OPTIONS)):
            raise NotSupported(
                f"queue {queue.name!r} has options {unknown} that the AMQP transport does not know; it knows "
                f"{', '.join(_OPTIONS)}"
            )
        if queue.ordered:
            raise NotSupported(
                f"queue {queue.name!r} is declared ordered, which the AMQP transport cannot keep per group; use a "
                "sqlite or postgresql broker for it"
            )
        if len(queue.name.encode()) > _LONGEST_NAME:
            raise NotSupported(f"queue {queue.name!r} has a name of more than {_LONGEST_NAME} bytes")
        kind = own.get("type", options.queue_type)
        if kind not in (QUORUM, CLASSIC):
            raise NotSupported(f"queue {queue.name!r} is to be of type {kind!r}; there are {QUORUM!r} and {CLASSIC!r}")
        classic = kind == CLASSIC
        if not queue.durable and not classic:
            raise NotSupported(
                f"queue {queue.name!r} is not to be durable: only queues of type {CLASSIC!r} can be that"
            )
        exchange, exchange_type = own.get("exchange", ""), own.get("exchange_type", "topic")
        if exchange_type not in EXCHANGES:
            raise NotSupported(f"queue {queue.name!r}: {exchange_type!r} is none of {', '.join(EXCHANGES)}")
        keys = own.get("routing_keys", ("",) if exchange_type == "fanout" else (queue.name,))
        keys = (keys,) if isinstance(keys, str) else tuple(keys)
        if not exchange and ("routing_keys" in own or "exchange_type" in own):
            raise NotSupported(f"queue {queue.name!r} has routing keys, but no exchange: set the option 'exchange'")
        limit = own.get("delivery_limit", options.delivery_limit)
        if classic and "delivery_limit" in own:
            raise NotSupported(f"queue {queue.name!r} is of type {CLASSIC!r}, which has no delivery_limit")
        return cls(
            name=queue.name,
            classic=classic,
            durable=queue.durable,
            create=create,
            arguments={**_arguments(queue.name, limit, classic=classic), **own.get("arguments", {})},
            exchange=exchange,
            exchange_type=exchange_type,
            routing_keys=keys,
            capabilities=None if kind == options.queue_type else capabilities(replace(options, queue_type=kind)),
        )

    def declare(self, channel: Channel) -> None:
        """Make the queue, its exchange and its bindings, where they are not there."""
        channel.ask(spec.Queue.Declare(queue=self.name, durable=self.durable, arguments=dict(self.arguments)))
        if self.exchange:
            channel.ask(spec.Exchange.Declare(exchange=self.exchange, type=self.exchange_type, durable=True))
            for key in self.routing_keys:
                channel.ask(spec.Queue.Bind(queue=self.name, exchange=self.exchange, routing_key=key))


def _arguments(name: str, limit: int, *, classic: bool) -> dict[str, Any]:
    if classic:
        return {"x-queue-type": CLASSIC, "x-max-priority": 9}
    if name.endswith(DEAD):
        return {"x-queue-type": QUORUM}
    # With a limit, what is given back goes to the head; without one, to the tail. The limit is far above the kernel's,
    # and what exceeds it is not dropped: it goes where the kernel's dead letters are.
    return {
        "x-queue-type": QUORUM,
        "x-delivery-limit": limit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": name + DEAD,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
