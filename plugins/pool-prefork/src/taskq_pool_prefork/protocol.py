"""What crosses between the worker's process, the fork server and the children: frames, and a board of shared memory.

Each child has two stream sockets to the worker's process. *Data* carries jobs one way and ends the other, many per
frame; only the child's main thread uses it. *Control* carries what must be answered while a task runs; the child's
control thread sees to it. Beside them lies the *board*, a piece of shared memory with one writer per slot. It tells
the parent at any moment, also after a kill -9, what has started and how what has ended did, and costs the child no
system call.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import tempfile
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from taskq.spi import Job, Outcome

HEADER: Final = struct.Struct(">IB")
"""Length of what follows, kind of frame."""
MAX_FRAME: Final = (1 << 32) - 1

# data, to the child
JOBS, DROP, EXIT = range(1, 4)
# data, from the child
ENDS, DROPPED, BYE = range(4, 7)
# control: requests and their answers; the child's word that it can take jobs, or why not
REQUEST, REPLY, PING, PONG, STACKS, READY, FAILED = range(7, 14)
# from the fork server
PRELOADED, FORKED, FORK_FAILED, DIED, BROKEN, ALIVE = range(14, 20)

ENDS_HEAD: Final = struct.Struct(">QBI")
"""Index of the first job that ended, then the head of a msgpack array of ``Ended``."""
ARRAY32: Final = 0xDD
PLAIN_END: Final = struct.Struct(">BBQBd")
"""An ``Ended`` of key and elapsed alone: a success without a result."""
NUMBERS: Final = struct.Struct(">QQ")
ORDER: Final = struct.Struct(">BQ")
"""An order to the fork server: FORK, REAP or ASK, and the child's number or process id."""
FORK, REAP, ASK = 1, 2, 3


class ChildJob(Job, array_like=True, gc=False):
    """A job as it arrives in a child: what only the worker's process needs is left out."""


class Ended(Struct, array_like=True, gc=False):
    """How a job ended in a child; ``outcome`` None is ``taskq.message.FINISHED`` unless there is a ``fault``.

    ``fault``: what ended it was not the task; which of the words below, and a text.
    """

    key: int
    elapsed: float
    outcome: Outcome | None = None
    fault: tuple[str, str] | None = None


SOFT_LIMIT, REVOKED, BROKE = "soft limit", "revoked", "broke"


class Control(Struct, array_like=True):
    """A frame of the control socket: ``number`` pairs requests and answers."""

    number: int
    data: bytes = b""


class Setup(Struct):
    """What a child process must know; ``runtime`` is pickled, ``main`` tells where the program's main module is."""

    parent: int
    runtime: bytes
    main: dict[str, Any] | None
    arguments: list[str]
    spawn: bool
    own_connections: bool
    max_tasks: int | None
    max_memory: int | None


class Report(Struct):
    """A frame of the fork server."""

    number: int = 0
    pid: int = 0
    status: int = 0
    text: str = ""
    names: list[str] = []


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_jobs = msgspec.msgpack.Decoder(list[ChildJob]).decode
decode_ends = msgspec.msgpack.Decoder(list[Ended]).decode
decode_control = msgspec.msgpack.Decoder(Control).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
decode_setup = msgspec.msgpack.Decoder(Setup).decode


def frame(kind: int, payload: bytes = b"") -> bytes:
    """Return a frame of the data or control socket."""
    return HEADER.pack(len(payload), kind) + payload


def encoded_frame(kind: int, value: Any) -> bytearray:
    """Return a frame with a value as msgpack, written once."""
    buffer = bytearray(HEADER.size)
    _encoder.encode_into(value, buffer, HEADER.size)
    HEADER.pack_into(buffer, 0, len(buffer) - HEADER.size, kind)
    return buffer


def jobs_frame(jobs: Sequence[Job]) -> bytearray:
    """Return jobs as one frame; their headers and deliveries stay here."""
    return encoded_frame(JOBS, [(j.key, j.payload, j.task, j.queue, j.deliveries, j.body) for j in jobs])


class Frames:
    """Cuts a stream into frames."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return what is complete: kinds and payloads."""
        rest = self._rest
        rest += data
        found: list[tuple[int, bytes]] = []
        at, size, head = 0, len(rest), HEADER.size
        while size - at >= head:
            length, kind = HEADER.unpack_from(rest, at)
            end = at + head + length
            if end > size:
                break
            found.append((kind, bytes(memoryview(rest)[at + head : end])))
            at = end
        if at:
            del rest[:at]
        return found


class Channel:
    """The parent's end of a socket: writes and reads without ever waiting; what does not fit waits here."""

    __slots__ = ("_frames", "_waiting", "broken", "socket")

    READ_BYTES: Final = 1 << 18

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.broken = False
        self._waiting: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._frames = Frames()

    @property
    def pending(self) -> bool:
        """Whether something waits for the other side to read."""
        return bool(self._waiting)

    def send(self, data: bytes | bytearray, descriptors: Sequence[int] = ()) -> None:
        """Send now what fits, the rest later; to a side that is gone nothing is sent."""
        if self.broken:
            return
        self._waiting.append((memoryview(data), descriptors))
        if len(self._waiting) == 1:
            self.flush()

    def flush(self) -> None:
        """Send what waits, as far as it fits."""
        waiting = self._waiting
        try:
            while waiting:
                data, descriptors = waiting[0]
                sent = socket.send_fds(self.socket, [data], descriptors) if descriptors else self.socket.send(data)
                if sent < len(data):
                    waiting[0] = data[sent:], ()
                else:
                    waiting.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self.broken = True
            waiting.clear()

    def receive(self) -> list[tuple[int, bytes]] | None:
        """Return the frames that have come; None when the other side has closed."""
        try:
            data = self.socket.recv(self.READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        return self._frames.feed(data) if data else None

    def drain(self) -> list[tuple[int, bytes]]:
        """Return all that a side that has ended left."""
        found: list[tuple[int, bytes]] = []
        while True:
            try:
                data = self.socket.recv(self.READ_BYTES)
            except OSError:
                return found
            if not data:
                return found
            found += self._frames.feed(data)

    def close(self) -> None:
        """Close the socket."""
        self._waiting.clear()
        self.broken = True
        self.socket.close()


# -------------------------------------------------------------------------------------------------------- the board

STARTED: Final = 0
"""Child: how many jobs it has started. Written before it looks at STOP, so that one of both sides sees the other."""
SINCE: Final = 1
"""Child, a float: when the last one started, by ``time.monotonic``; written before STARTED."""
STAGED: Final = 2
"""Child: index of the first job whose end is staged, its low 32 bits << 32 | bytes staged << 16 | ends staged; written
after the bytes."""
ACTED: Final = 3
"""Child: the last request to interrupt that it has carried out."""
STOP: Final = 16
"""Parent: how often it has recalled what had not started."""
TARGET: Final = 17
"""Parent: which job is to be interrupted: the value of STARTED while it runs."""
WHY: Final = 18
"""Parent: CANCEL or INTERRUPT."""
REQUESTED: Final = 19
"""Parent: the number of the request to interrupt; written last."""
TAKEN: Final = 20
"""Parent: how many jobs' ends it has; what the child has staged of them need not be sent."""
CANCEL, INTERRUPT = 1, 2

_HALF: Final = 1 << 31
STAGE: Final = 256
"""Where staged ends begin."""
SIZE: Final = 1 << 16
RECALL_S: Final = 0.002
"""After this time whoever wrote to the board before can rely on the other's having seen it, or stopped writing.

Stores become visible within microseconds; a process that is preempted has them visible, too.
"""


class Board:
    """Shared memory of parent and child: aligned 8-byte slots, each with one writer, and a stage for ends."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, SIZE)
        self.bytes = memoryview(self._map)
        self.slots = self.bytes.cast("Q")
        self.times = self.bytes.cast("d")

    @staticmethod
    def create() -> int:
        """Return a descriptor of fresh shared memory. Errors: OSError."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("taskq-prefork")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, SIZE)
        return descriptor

    def ended(self, received: int) -> int:
        """Return how many ends beyond the first ``received`` jobs' the child has staged and not sent."""
        word: int = self.slots[STAGED]
        return self._beyond(word, received) if word & 0xFFFF else 0

    def staged(self, received: int, word: int | None = None) -> list[Ended]:
        """Return the ends beyond the first ``received`` jobs' that the child has staged and not sent.

        Args:
            received: how many jobs' ends have come.
            word: the value of STAGED up to which to read, if it is not the present one.
        """
        slots = self.slots
        if word is None:
            word = slots[STAGED]
        beyond = self._beyond(word, received) if word & 0xFFFF else 0
        if not beyond:
            return []
        count = word & 0xFFFF
        data = ARRAY32.to_bytes() + count.to_bytes(4, "big") + bytes(self.bytes[STAGE : STAGE + (word >> 16 & 0xFFFF)])
        if slots[STAGED] >> 32 != word >> 32:
            return []  # sent meanwhile
        return decode_ends(data)[count - beyond :]

    def _beyond(self, word: int, received: int) -> int:
        """Return how many of the staged ends are beyond the first ``received`` ones; none where some are under way."""
        lead = ((word >> 32) - received + _HALF) % (2 * _HALF) - _HALF
        return max(0, lead + (word & 0xFFFF)) if lead <= 0 else 0

    def close(self) -> None:
        """Give the memory back."""
        self.slots.release()
        self.times.release()
        self.bytes.release()
        self._map.close()
