"""How names, groups and payloads look on the server.

SQS allows letters, digits, ``-`` and ``_`` in a queue's name. taskq's names also have dots (``orders.dead``), which are
written ``_-``; what cannot be told apart from that is refused, never changed silently. A FIFO queue's name ends in
``.fifo`` there; here the ending may be left out.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import string
from urllib.parse import quote, unquote

from taskq.errors import NotSupported

FIFO = ".fifo"
_DOT = "_-"
_LONGEST = 80
_PLAIN = re.compile(r"[A-Za-z0-9_.\-]+\Z")
_GROUP_SAFE = string.punctuation.replace("%", "")
_LONGEST_ID = 128
_EMPTY = "="


def server_name(prefix: str, queue: str, *, fifo: bool) -> str:
    """Return a queue's name on the server.

    Raises:
        NotSupported: it has characters that SQS cannot have, would be read as another queue's, or is too long.
    """
    base = f"{prefix}{queue.removesuffix(FIFO)}"
    if _DOT in base or not _PLAIN.match(base) or not queue.removesuffix(FIFO):
        raise NotSupported(
            f"queue {queue!r} cannot be named on SQS: use letters, digits, '.', '-' and '_' (prefix {prefix!r} "
            f"included), but not {_DOT!r}, which is how a dot is written there"
        )
    name = base.replace(".", _DOT) + (FIFO if fifo else "")
    if len(name) > _LONGEST:
        raise NotSupported(
            f"queue {queue!r} is {name!r} on SQS, {len(name)} characters; at most {_LONGEST} are allowed: "
            "shorten the name or queue_prefix"
        )
    return name


def queue_name(prefix: str, name: str) -> str:
    """Return the queue that a name on the server stands for."""
    return name.removesuffix(FIFO).removeprefix(prefix).replace(_DOT, ".")


def is_fifo(queue: str) -> bool:
    """Whether a queue's name alone says that it is FIFO."""
    return queue.endswith(FIFO)


def group_id(group: str) -> str:
    """Return a group's id on the server: what SQS cannot have is percent-encoded.

    Raises:
        NotSupported: it is empty or too long.
    """
    encoded = quote(group, safe=_GROUP_SAFE)
    if not 0 < len(encoded) <= _LONGEST_ID:
        raise NotSupported(
            f"group {group[:40]!r} has {len(encoded)} characters as SQS writes it; 1 to {_LONGEST_ID} are allowed"
        )
    return encoded


def group_name(encoded: str | None) -> str | None:
    """Return the group of an id on the server."""
    return encoded if encoded is None or "%" not in encoded else unquote(encoded)


def deduplication_id(message_id: str) -> str:
    """Return what SQS recognises a message by that is sent again."""
    encoded = quote(message_id, safe=_GROUP_SAFE)
    return encoded if 0 < len(encoded) <= _LONGEST_ID else hashlib.sha256(message_id.encode()).hexdigest()


def to_body(payload: bytes) -> str:
    """Return a payload as the text of a message, which may not be empty."""
    return binascii.b2a_base64(payload, newline=False).decode("ascii") or _EMPTY


def to_payload(body: str) -> bytes:
    """Return the payload of a message; a text that taskq did not write is handed on as it is, for the dead letters."""
    if body == _EMPTY:
        return b""
    try:
        return binascii.a2b_base64(body, strict_mode=True)
    except ValueError:
        return body.encode("utf-8", "surrogatepass")
