"""Options and promises of the AMQP result store; asking for them imports no client library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taskq.spi import Durable, ReadableBy, StoreCapabilities, Support, option

SCHEMES = ("amqp", "amqps")
MAX_RECORD_BYTES = 15 * 1024 * 1024
"""What fits into one message of a server with default settings, whatever its version."""


@dataclass(frozen=True)
class AmqpStoreOptions:
    """Options of ``amqp://`` as a result store."""

    reply_expires: float = option(
        300.0, minimum=1, unit="s", help="how long a process's reply queue outlives its connection"
    )
    max_kept: int = option(
        100_000, minimum=1,
        help="most results that a process keeps which nobody has asked for; beyond it the oldest are dropped",
    )  # fmt: skip
    heartbeat: int = option(30, minimum=0, unit="s", help="interval of heartbeats; 0 for none")
    connect_timeout: float = option(5.0, help="longest time to connect to one server", minimum=0.05, unit="s")
    timeout: float = option(10.0, help="longest time to wait for an answer or a confirm", minimum=0.05, unit="s")
    tls_ca_file: str = option("", help="file with the authorities to trust, for amqps://; empty for the system's own")
    tls_cert_file: str = option("", help="client certificate, for amqps://")
    tls_key_file: str = option("", help="key of the client certificate, for amqps://")
    tls_verify: bool = option(True, help="check the server's certificate and host name, for amqps://")


def capabilities(options: Any) -> StoreCapabilities:
    """Return what a way back to the caller can do."""
    return StoreCapabilities(
        cross_process=True,
        network=True,
        keeps=Durable.EVICTABLE,
        readable_by=ReadableBy.CALLER,
        push=True,
        ttl=Support.EMULATED,
        max_record_bytes=MAX_RECORD_BYTES,
        max_batch=1000,
        notes=(
            "Only the process that sent a task can read its result: no other process, no CLI, no worker.",
            "A result is lost when its caller ends, or stays away longer than reply_expires, or the server restarts.",
            "Without a store that the worker can read, a redelivered message runs again.",
        ),
    )
