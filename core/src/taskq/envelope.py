"""The wire format, version 1: how a task becomes payload bytes. Described for other languages in ``docs/protocol.md``.

A frame is ``0xC1``, a kind byte, a big-endian length, the header in MessagePack, then the body bytes. The header can be
read without touching the body. 0xC1 is a byte that MessagePack never uses and that cannot begin UTF-8 text, so a
frame is told from JSON or pickle at its first byte.

The header is an array of seven fields; everything rarer lives in a map under short keys, absent unless set. Readers
keep map entries that they do not know; a new field is therefore a new map key, never an eighth element.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from taskq.errors import DecodeError, EncodeError
from taskq.message import Outbound

MAGIC: Final = 0xC1
KIND_TASK: Final = 0x01
"""A task, protocol version 1; the length is two bytes."""
KIND_DEAD: Final = 0x44
"""A dead letter: information about a message, then that message's payload unchanged; the length is four bytes."""

# keys of the header's map
NOT_BEFORE: Final = "nb"  # float, epoch seconds
EXPIRES: Final = "ex"  # float, epoch seconds
PRIORITY: Final = "p"  # int, absent for 5
GROUP: Final = "g"  # str
EPOCH: Final = "ep"  # int, how often the message was replayed from a dead-letter queue
TRANSFORMS: Final = "t"  # list of [name, …parameters], applied in this order when sending
STORE: Final = "st"  # str, the result store that the caller reads, without secrets
PARENT: Final = "pa"  # str, task id
ROOT: Final = "ro"  # str, task id
WORKFLOW: Final = "wf"  # reserved for workflow references
CONTRACT: Final = "cv"  # reserved for the task's contract version
TRACE: Final = "tr"  # map, trace context
HEADERS: Final = "h"  # map, the user's headers
PARKED: Final = "pk"  # float, epoch seconds since which the message waits for a worker that knows its task
MAX_RETRIES: Final = "mr"  # int, overrides the task's
STARTS: Final = "sc"  # int, starts without an outcome, on brokers whose own count cannot tell
GUARD: Final = "gd"  # int, number of the copy that guards a run longer than the broker lets a message be held
HISTORY: Final = "hi"  # list of [epoch, died at, reason], of earlier deaths

ANEW: Final[Mapping[str, None]] = {PARKED: None, STARTS: None, GUARD: None}
"""The change that drops what was noted about the deliveries of one run, for a message that starts another."""


class Header(Struct, array_like=True, gc=False):
    """What is known of a task without its body.

    ``attempt`` counts retries (0 at first); ``enqueued_at`` is the sender's clock in epoch seconds; ``reply`` is None
    when nobody expects a result, "" when it is to be stored, else the address to push it to as well.
    """

    id: str
    task: str
    content_type: str = "json"
    attempt: int = 0
    enqueued_at: float = 0.0
    reply: str | None = None
    extra: dict[str, Any] | None = None

    def get(self, key: str, default: Any = None) -> Any:
        """Return an entry of the map."""
        extra = self.extra
        return default if extra is None else extra.get(key, default)


class DeadInfo(Struct, omit_defaults=True):
    """Why and where a message died; travels in front of its unchanged payload."""

    id: str
    queue: str
    reason: str
    died_at: float
    task: str = ""
    state: str = "DEAD"
    detail: str = ""
    attempts: int = 0
    deliveries: int = 0
    epoch: int = 0
    worker: str = ""
    history: list[list[Any]] = []


_NUMBER: Final = (int, float)
_TYPES: Final[Mapping[str, Any]] = {
    NOT_BEFORE: _NUMBER, EXPIRES: _NUMBER, PARKED: _NUMBER, PRIORITY: int, EPOCH: int, MAX_RETRIES: int, GROUP: str,
    STORE: str, PARENT: str, ROOT: str, TRANSFORMS: list, HISTORY: list, TRACE: dict, HEADERS: dict,
}  # fmt: skip
_LATEST: Final = 1e11
"""Epoch seconds beyond which no time can be meant; infinity and NaN are beyond it too."""

_encode_header = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode_dead = msgspec.msgpack.Decoder(DeadInfo).decode


def encode(header: Header, body: bytes) -> bytes:
    """Return the frame of a task.

    Raises:
        EncodeError: the header exceeds 65,535 bytes (too many or too long user headers), or holds what MessagePack
            cannot write.
    """
    try:
        head = _encode_header(header)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EncodeError(
            f"the header of task {header.task} [{header.id}] cannot be written: {error}; user headers hold plain data"
        ) from error
    size = len(head)
    if size > 0xFFFF:
        raise EncodeError(
            f"the header of task {header.task} [{header.id}] takes {size} bytes, at most 65535 fit; "
            "user headers are for short facts: pass large values as arguments"
        )
    return b"\xc1\x01%c%c%b%b" % (size >> 8, size & 0xFF, head, body)


def decode(payload: bytes) -> tuple[Header, int]:
    """Return a frame's header and the offset of its body.

    Raises:
        DecodeError: not a task frame of a version that this release reads (1).
    """
    try:
        if payload[0] != MAGIC or payload[1] != KIND_TASK:
            raise DecodeError(describe_foreign(payload))
        end = 4 + (payload[2] << 8 | payload[3])
        if end > len(payload):
            raise DecodeError(f"the message is cut off: its header should end at byte {end}, it has {len(payload)}")
        header = _decode_header(payload[4:end])
        if header.extra is not None:
            _check(header.extra)
        return header, end
    except (IndexError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DecodeError(f"the message's header cannot be read: {error}") from error


def _check(extra: dict[str, Any]) -> None:
    """Refuse entries that this release would trip over; those that it does not know pass."""
    for key, value in extra.items():
        wanted = _TYPES.get(key)
        if wanted is None:
            continue
        if not isinstance(value, wanted) or (
            not 0 <= value <= 9 if key == PRIORITY else wanted is _NUMBER and not -_LATEST < value < _LATEST
        ):
            raise DecodeError(f"the message's header cannot be read: {key} = {value!r:.100}")


def describe_foreign(payload: bytes) -> str:
    """Return a sentence on what bytes that are not a task frame seem to be."""
    start = bytes(payload[:24])
    if payload[:2] == bytes((MAGIC, KIND_DEAD)):
        return "the message is a dead letter; use `taskq dead` to read or replay it"
    if payload[:1] == bytes((MAGIC,)) and len(payload) > 1:
        return f"the message is of protocol version {payload[1]}, this release reads 1; upgrade taskq-core here"
    if start[:1] in (b"{", b"["):
        return (
            f"the message is not a taskq message (it looks like JSON: {start!r}); another program sends to this queue"
        )
    return f"the message is not a taskq message (it starts with {start!r})"


def message_id(header: Header, attempt: int | None = None, epoch: int | None = None) -> str:
    """Return the id of the message that carries a task's run: the task id, with epoch and attempt where not zero."""
    attempt = header.attempt if attempt is None else attempt
    epoch = int(header.get(EPOCH, 0)) if epoch is None else epoch
    return f"{header.id}.{epoch}.{attempt}" if attempt or epoch else header.id


def outbound(header: Header, name: str, queue: str, payload: bytes, delay: float = 0.0) -> Outbound:
    """Return a message that goes on its way again: under this name, with the priority and group of its header."""
    return Outbound(name, queue, payload, int(header.get(PRIORITY, 5)), delay, header.get(GROUP))


def with_changes(header: Header, body: bytes, *, changes: Mapping[str, Any], attempt: int | None = None) -> bytes:
    """Return the frame again with map entries changed (None removes one) and everything else kept."""
    extra = dict(header.extra or {})
    for key, value in changes.items():
        if value is None:
            extra.pop(key, None)
        else:
            extra[key] = value
    return encode(
        Header(
            header.id,
            header.task,
            header.content_type,
            header.attempt if attempt is None else attempt,
            header.enqueued_at,
            header.reply,
            extra or None,
        ),
        body,
    )


def encode_dead(info: DeadInfo, payload: bytes) -> bytes:
    """Return a dead letter: the information, then the message unchanged."""
    head = _encode_header(info)
    return b"\xc1\x44" + len(head).to_bytes(4, "big") + head + payload


def decode_dead(payload: bytes) -> tuple[DeadInfo, bytes]:
    """Return a dead letter's information and the original payload.

    Raises:
        DecodeError: not a dead letter.
    """
    if payload[:2] != b"\xc1\x44":
        raise DecodeError(f"not a dead letter of taskq: {describe_foreign(payload)}")
    end = 6 + int.from_bytes(payload[2:6], "big")
    try:
        return _decode_dead(payload[6:end]), payload[end:]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DecodeError(f"the dead letter's information cannot be read: {error}") from error
