"""The memory store has no options; its promises stand here so that asking for them imports no driver."""

from __future__ import annotations

from taskq.spi import Durable, ReadableBy, StoreCapabilities, Support

CAPABILITIES = StoreCapabilities(
    keeps=Durable.DURABLE,
    readable_by=ReadableBy.ANYONE,
    push=True,
    ttl=Support.NATIVE,
    supersede_exact=True,
    coordination=True,
    notes=(
        "memory:// is private to the store object; memory://NAME is shared by all of this process with that name.",
        "A forked child starts empty.",
    ),
)
