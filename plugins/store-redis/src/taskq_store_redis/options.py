"""Options and promises of the Redis result store; asking for them imports no client library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taskq.spi import Durable, ReadableBy, StoreCapabilities, Support, option

CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
SCHEMES = ("redis", "rediss", "valkey", "valkeys", "redis+sentinel", "rediss+sentinel", *CLUSTER_SCHEMES)
MAX_RECORD_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class RedisStoreOptions:
    """Options of ``redis://`` as a result store."""

    key_prefix: str = option("taskq:", help="beginning of every key; transport and store may share it")
    connect_timeout: float = option(5.0, help="longest time to connect to one server", minimum=0.05, unit="s")
    timeout: float = option(10.0, help="longest time to wait for an answer", minimum=0.05, unit="s")
    sentinel_service: str = option(
        "", help="name of the service that the sentinels watch; needed with redis+sentinel:// and only there"
    )
    tls_ca_file: str = option("", help="file with the authorities to trust, for rediss://; empty for the system's own")
    tls_cert_file: str = option("", help="client certificate, for rediss://")
    tls_key_file: str = option("", help="key of the client certificate, for rediss://")
    tls_verify: bool = option(True, help="check the server's certificate and host name, for rediss://")


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
        max_record_bytes=MAX_RECORD_BYTES,
        max_batch=1000,
        notes=("Durable under maxmemory-policy noeviction, else evictable: read when it is opened.",),
    )
