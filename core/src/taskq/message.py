"""The data that passes between kernel and plugins, message by message.

These are ``msgspec.Struct`` types because a worker makes several of them per message: creating one costs about a tenth
of a microsecond. Transports see opaque payload bytes and routing facts only; they never decode a payload.

Times: a *delay*, *ttl* or *age* is in seconds from now; an *at* is seconds since the epoch, UTC.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

Receipt = Hashable
"""What a consumer hands out with a delivery and takes back in a settlement; opaque to the kernel."""

ACK: Final = 0
"""Settlement kind: the message is finished and leaves the queue."""
RELEASE: Final = 1
"""Settlement kind: the message goes back to its queue, unchanged."""


class Outbound(Struct, gc=False):
    """A message on its way to a broker.

    ``id`` is unique per message and the same whenever that message is sent again: the task id for a first run, with
    epoch and attempt added for later ones, so that a server that drops repeated ids never drops a retry. ``delay``
    counts from the call of ``send``; ``priority`` is 0–9, higher first; ``group`` is the ordering key of ordered
    queues; ``routing_key`` overrides the queue's name for transports that route (topic, fan-out) and is None
    elsewhere.
    """

    id: str
    queue: str
    payload: bytes
    priority: int = 5
    delay: float = 0.0
    group: str | None = None
    routing_key: str | None = None


class SendFailure(Struct, gc=False):
    """One message of a batch that was not accepted. ``maybe_sent``: the broker may have it all the same."""

    index: int
    reason: str
    maybe_sent: bool = False
    retryable: bool = True


class Delivery(Struct, gc=False):
    """A message handed to this consumer, held under its lease until settled.

    ``deliveries`` counts how often the server has handed the message out, this time included, without a later uncounted
    release; 0 where the server cannot tell.
    """

    payload: bytes
    receipt: Any
    queue: str
    deliveries: int = 1
    group: str | None = None


class Lost(Struct, gc=False):
    """A receipt that no longer holds its message (the lease ended, the connection broke, the queue was purged)."""

    receipt: Any
    reason: str = "lease lost"


class Fetched(Struct, gc=False):
    """What one ``fetch`` brings: deliveries in the order to start them, and receipts found lost since the last call."""

    deliveries: Sequence[Delivery] = ()
    lost: Sequence[Lost] = ()


class Settlement(Struct, gc=False):
    """How one delivery ends. ``delay`` and ``counted`` matter for RELEASE only; uncounted is as if never delivered."""

    receipt: Any
    kind: int = ACK
    delay: float = 0.0
    counted: bool = False


class Record(Struct, gc=False):
    """A result store's entry for one task.

    Keyed by ``id``; ``epoch`` then ``attempt`` order the entries of one id: a store never replaces a terminal entry by
    one of the same or an earlier (epoch, attempt), nor any entry by an older one. ``payload`` is opaque;
    ``follow_ups`` holds encoded messages still to be sent, until the message is acknowledged. ``ttl`` in seconds.
    ``reply`` is the address that the waiting caller gave (``ResultStore.reply_address``), to push to.
    """

    id: str
    state: str
    payload: bytes
    terminal: bool = True
    attempt: int = 0
    epoch: int = 0
    ttl: float = 86400.0
    reply: str | None = None
    follow_ups: bytes | None = None


class Commit(Struct, gc=False):
    """One delivery's end with all that must happen with it, for a fused committer: record, follow-ups, settlement."""

    settlement: Settlement
    record: Record | None = None
    follow_ups: Sequence[Outbound] = ()


class Peeked(Struct, gc=False):
    """A message looked at without taking it. ``cursor`` continues a listing after this message."""

    cursor: str
    payload: bytes
    queue: str
    id: str = ""
    priority: int = 5
    delay: float = 0.0
    deliveries: int = 0
    age: float | None = None
    in_flight: bool = False


class QueueStats(Struct, gc=False):
    """Counts of one queue.

    None where the server cannot tell. ``oldest_age``: seconds the oldest ready message waited.
    """

    ready: int | None = None
    in_flight: int | None = None
    delayed: int | None = None
    oldest_age: float | None = None


class Job(Struct):
    """A message admitted by the worker and handed to a pool.

    ``key`` is the worker's number for it; ``header`` is the decoded header where worker and pool share a process, None
    where the job crossed a process boundary (the runtime then decodes ``payload`` itself). ``body`` is the offset of
    the body in ``payload``.
    """

    key: int
    payload: bytes
    task: str
    queue: str
    deliveries: int
    body: int = 0
    header: Any = None
    delivery: Any = None


class Outcome(Struct, array_like=True):
    """How a run ended, as bytes and plain data so that it can cross a process boundary.

    ``kind`` is one of DONE, DEAD, RELEASED below; ``state`` the task's state; ``result`` the encoded result record
    payload or None when nothing is to be stored; ``follow_ups`` messages to send before the acknowledgement (a retry,
    the next of a chain); ``reason`` says why it failed or is dead, ``detail`` is the traceback's text.
    """

    kind: int
    state: str
    result: bytes | None = None
    follow_ups: tuple[Outbound, ...] = ()
    reason: str | None = None
    detail: str | None = None
    terminal: bool = True


DONE: Final = 0
DEAD: Final = 1
RELEASED: Final = 2

FINISHED: Final = Outcome(DONE, "SUCCESS")
"""The outcome of a success whose result nobody keeps: one object for all, told by identity."""


class QueueSpec(Struct, frozen=True, kw_only=True):
    """A queue to declare. ``ordered``: strict order per group (FIFO); ``options`` are the transport's own.

    ``durable`` False allows a queue that a broker restart empties.
    """

    name: str
    durable: bool = True
    ordered: bool = False
    options: Mapping[str, Any] = {}


class QueueFacts(Struct, frozen=True, kw_only=True):
    """What ``declare`` found or made.

    ``created``, and the capabilities where this queue differs from the transport's.
    """

    created: bool = False
    capabilities: Any = None


class Subscription(Struct, frozen=True):
    """A queue to fetch from. ``weight`` matters for the order ``weighted``."""

    queue: str
    weight: int = 1
