"""What hub and clients say to each other, version 1.

A message is one ZeroMQ frame of MessagePack: an array whose first item is the kind. Batches travel as one message.
Every request has a number; the hub answers it with ``Answer`` or ``Failed`` of the same number. A request that is
repeated with its number, in the same session, is answered again and not carried out again.

Messages, records and settlements are maps with the field names of ``taskq.message``: both sides ignore names that they
do not know, and take defaults for those that are missing.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from taskq.message import Record, Settlement
from taskq.spi import Op

VERSION = 1
DEFAULT_PORT = 7311
ANSWER_KEPT_BYTES = 1 << 16


class Message(Struct, gc=False):
    """A message as the hub keeps it; its first fields are those of ``taskq.message.Outbound``."""

    id: str
    queue: str
    payload: bytes
    priority: int = 5
    delay: float = 0.0
    group: str | None = None
    ended: int = 0
    """Deliveries that ended neither acknowledged nor handed back."""
    seq: int = 0
    at: float = 0.0
    """When it became ready or will, on the hub's monotonic clock."""
    segment: int = 0
    """Part of the journal that tells of it."""


class HubCommit(Struct, gc=False):
    """``taskq.message.Commit`` as the hub reads it."""

    settlement: Settlement
    record: Record | None = None
    follow_ups: list[Message] = []


class Adopted(Struct, array_like=True, gc=False):
    """A message that a consumer holds and the hub has forgotten, announced after the hub's restart."""

    receipt: int
    message: Message


# ------------------------------------------------------------------------------------------------ from clients


class _Request(Struct, array_like=True, gc=False):
    pass


class Hello(_Request, tag=1):
    """Opens a connection, or names it again to a hub that does not know it. ``session`` is kept over reconnections."""

    version: int
    session: str
    who: str = ""


class Send(_Request, tag=2):
    n: int
    batch: list[Message]


class Attach(_Request, tag=3):
    """Makes the hub know a consumer, from its intake connection (to which is delivered) or its settling one.

    ``holds`` are the receipts that the consumer has, those included whose settlement is not confirmed: from the intake
    connection, what else the hub has delivered never arrived and goes back. Answered by the receipts that are lost.
    """

    n: int
    consumer: str
    intake: bool
    lease_ms: int
    order: str
    queues: list[tuple[str, int]]
    credit: int
    max_bytes: int
    holds: list[int]


class Adopt(_Request, tag=4):
    """Gives back to a hub that has lost its memory what a consumer holds; answered by the receipts that are lost."""

    n: int
    consumer: str
    held: list[Adopted]


class Credit(_Request, tag=5):
    """Changes a consumer's limits. Not answered."""

    credit: int
    max_bytes: int


class Demand(_Request, tag=6):
    """Asks for up to ``limit`` messages, on the intake connection; replaces what was asked before.

    With ``park`` it is answered when there is one, else at once. Answered by ``Deliver``.
    """

    n: int
    limit: int
    park: bool


class Settle(_Request, tag=7):
    """Ends deliveries, on the settling connection. Numbers rise per consumer.

    Answered by ``Confirm`` with ``answer``, or where something is lost or refused; the next ``Deliver`` or ``Confirm``
    tells all the same that it is done.
    """

    n: int
    acks: list[int]
    back: list[Settlement] = []
    commits: list[HubCommit] = []
    answer: bool = False


class Beat(_Request, tag=8):
    """Renews a consumer's lease, on the settling connection; answered by ``Confirm``. Numbers are negative."""

    n: int


class Detach(_Request, tag=9):
    """Ends a consumer; what it holds goes back."""

    n: int
    consumer: str


class Declare(_Request, tag=10):
    """Makes queues; ``ordered`` ones in strict order per group. Answered by the names that are new."""

    n: int
    names: list[str]
    ordered: list[str] = []


class Stats(_Request, tag=11):
    n: int
    names: list[str]


class Purge(_Request, tag=12):
    n: int
    names: list[str]


class Peek(_Request, tag=13):
    n: int
    queue: str
    limit: int
    after: str | None = None


class Broadcast(_Request, tag=14):
    n: int
    channel: str
    payload: bytes


class Listen(_Request, tag=15):
    n: int
    channel: str


class Put(_Request, tag=16):
    n: int
    records: list[Record]


class Get(_Request, tag=17):
    n: int
    ids: list[str]


class Delete(_Request, tag=18):
    n: int
    ids: list[str]


class Watch(_Request, tag=19):
    """Has results for an address pushed to this connection."""

    n: int
    address: str


class Apply(_Request, tag=20):
    n: int
    ops: list[Op]


class Slot(_Request, tag=21):
    """Takes, renews or gives back a place of a semaphore: ``what`` is acquire, renew or release."""

    n: int
    what: str
    key: str
    owner: str
    slots: int = 1
    ttl: float = 0.0


class IndexPut(_Request, tag=22):
    n: int
    index: str
    entries: dict[str, float]


class IndexDue(_Request, tag=23):
    n: int
    index: str
    now: float
    limit: int


class IndexRemove(_Request, tag=24):
    n: int
    index: str
    members: list[str]


class Keys(_Request, tag=25):
    """Asks for the names of all that the hub keeps, for tests and ``taskq zeromq``."""

    n: int


Request = (
    Hello | Send | Attach | Adopt | Credit | Demand | Settle | Beat | Detach | Declare | Stats | Purge | Peek
    | Broadcast | Listen | Put | Get | Delete | Watch | Apply | Slot | IndexPut | IndexDue | IndexRemove | Keys
)  # fmt: skip

# ------------------------------------------------------------------------------------------------- from the hub


class _FromHub(Struct, array_like=True, gc=False):
    pass


class Welcome(_FromHub, tag=1):
    """``epoch`` is new with every start of a hub; ``session_known`` says that a repeated request would be noticed."""

    version: int
    epoch: int
    durable: bool
    evicts: bool
    max_payload: int
    max_record: int
    session_known: bool
    name: str = ""


class Refused(_FromHub, tag=2):
    """The hub does not speak this version."""

    version: int
    text: str


class Reset(_FromHub, tag=3):
    """The hub does not know this connection: say hello again."""


class Answer(_FromHub, tag=4):
    n: int
    value: msgspec.Raw


class Failed(_FromHub, tag=5):
    """``code``: full, refused."""

    n: int
    code: str
    text: str


class Deliver(_FromHub, tag=6):
    """Answers a demand. Receipts count up from ``first``; ``runs`` are queue names with how many come from each.

    ``ended`` and ``priorities`` are empty where all are 0 and 5.
    """

    n: int
    first: int = 0
    runs: list[tuple[str, int]] = []
    payloads: list[bytes] = []
    ended: list[int] = []
    priorities: list[int] = []
    groups: list[str | None] = []
    settled: int = 0
    """The last settlement that the hub has seen."""


class Confirm(_FromHub, tag=7):
    """A settlement or beat is done; ``lost`` are the receipts that were not held. ``known`` False: attach again."""

    n: int
    settled: int = 0
    """The last settlement that the hub has seen."""
    lost: list[int] = []
    known: bool = True
    full: str = ""
    """Why the records of the settlement were refused; then none of its commits was done."""


class Gone(_FromHub, tag=8):
    """Tells a consumer, on its intake connection, that its lease has ended."""

    consumer: str


class Push(_FromHub, tag=9):
    records: list[Record]


class Heard(_FromHub, tag=10):
    channel: str
    payload: bytes


FromHub = Welcome | Refused | Reset | Answer | Failed | Deliver | Confirm | Gone | Push | Heard

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_from_hub = msgspec.msgpack.Decoder(FromHub).decode
decode_any = msgspec.msgpack.Decoder(Any).decode
