"""Options and promises of the ZeroMQ result store; asking for them imports no client library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taskq.spi import Durable, ReadableBy, StoreCapabilities, Support, option

SCHEMES = ("zeromq",)


@dataclass(frozen=True)
class ZeroMQStoreOptions:
    """Options of ``zeromq://`` as a result store."""

    hub: str = option(
        "connect",
        help="connect: to a hub that runs somewhere; embed: the first process to come runs the hub, others connect",
        choices=("connect", "embed"),
    )
    journal: str = option("", help="file that makes an embedded hub durable; empty for none")
    connect_timeout: float = option(5.0, help="longest time to connect to one hub", minimum=0.05, unit="s")
    timeout: float = option(10.0, help="longest time to wait for an answer", minimum=0.05, unit="s")
    heartbeat: float = option(
        5.0,
        help="how often to look whether a connection that is waited on stands; after three it is given up",
        minimum=0.1,
        unit="s",
    )
    curve_server_key: str = option("", help="the hub's public key, for an encrypted connection", secret=True)
    curve_public_key: str = option(
        "", help="this client's public key; empty to make a pair for each process", secret=True
    )
    curve_secret_key: str = option("", help="this client's secret key", secret=True)


def capabilities(options: Any) -> StoreCapabilities:
    """Return what the store promises."""
    return StoreCapabilities(
        cross_process=True,
        network=True,
        keeps=Durable.DURABLE,
        readable_by=ReadableBy.ANYONE,
        push=True,
        ttl=Support.NATIVE,
        supersede_exact=True,
        coordination=True,
        max_record_bytes=1 << 30,
        max_batch=1000,
        notes=(
            "Results survive the hub's death only if it has a journal.",
            "Evictable unless the hub runs with --results-full refuse: beyond its cap the oldest results go.",
        ),
    )
