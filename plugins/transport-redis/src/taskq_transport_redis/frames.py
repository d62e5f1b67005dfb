"""How a message looks on the server: deliveries so far and priority, one byte each, then the payload."""

from __future__ import annotations

import os

from taskq.errors import PayloadTooLarge
from taskq.message import Outbound
from taskq_transport_redis.options import MAX_PAYLOAD_BYTES

_HEADS = [b"\0%c" % priority for priority in range(10)]
_UID = 8


def frame(outbound: Outbound) -> bytes:
    """Return a message that is ready."""
    return _HEADS[outbound.priority] + outbound.payload


def delayed_member(outbound: Outbound) -> bytes:
    """Return a message that waits: random bytes in front keep it apart from its equals."""
    return os.urandom(_UID) + _HEADS[outbound.priority] + outbound.payload


def read_frame(raw: bytes, priority: int) -> tuple[bytes, int, int]:
    """Return payload, deliveries so far and priority; what another program wrote is all payload."""
    if len(raw) >= 2 and raw[1] == priority:
        return raw[2:], raw[0], priority
    return raw, 0, priority


def read_member(raw: bytes) -> tuple[bytes, int, int]:
    """Return payload, deliveries so far and priority of a delayed message."""
    if len(raw) >= _UID + 2 and raw[_UID + 1] <= 9:
        return raw[_UID + 2 :], raw[_UID], raw[_UID + 1]
    return raw, 0, 5


def check_size(outbound: Outbound) -> None:
    """Refuse what is too large. Raises: PayloadTooLarge."""
    if len(outbound.payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(
            f"message [{outbound.id}] takes {len(outbound.payload)} bytes, at most {MAX_PAYLOAD_BYTES} fit"
        )
