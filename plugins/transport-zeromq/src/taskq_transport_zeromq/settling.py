"""A consumer's settling, and its lease.

Settlements are numbered and not waited for. What the hub has not confirmed is sent again, with its number, when the
connection or the hub has to be found again; ``flush`` waits for all of it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from taskq.errors import AuthenticationFailed, StorageFull, TransportError
from taskq_lib_zeromq.link import Link
from taskq_lib_zeromq.protocol import Answer, Beat, Confirm, Detach, Reset, encode
from taskq_lib_zeromq.wire import Broken

if TYPE_CHECKING:
    from taskq_lib_zeromq.target import Target
    from taskq_transport_zeromq.holdings import Batch, Holdings
    from taskq_transport_zeromq.membership import Membership

_SETTLE = 7
_UNCONFIRMED = 32
"""Batches of settlements that may be under way."""
_ASK_EVERY = 8
"""How many batches may be open before the hub is asked to confirm one; mostly a delivery has told by then."""
_REFUSED_PAUSE = 0.1


class Settling:
    """The connection to settle and to renew the lease on. Who uses it holds ``lock``."""

    def __init__(self, target: Target, member: Membership, holdings: Holdings) -> None:
        self.lock = threading.RLock()
        self._link = Link(target)
        self._member = member
        self._holdings = holdings
        self._attached = False
        self._unflushed = False
        """Whether something was settled since ``flush``."""

    @property
    def _ready(self) -> bool:
        return self._attached and self._link.connected

    def submit(self, batch: Batch) -> None:
        """Send a batch to the hub. Raises: TransportError: all of it is held still."""
        if not batch.entries:
            return
        self._unflushed = True
        n = self._enter(batch)
        link = self._link
        try:
            if self._ready:
                try:
                    link.send(batch.data)
                    self._read_confirmations()
                except Broken as error:
                    self._reattach(error)
            else:
                self._reattach()
            if batch.commits and link.welcome is not None and not link.welcome.evicts:
                self._await_confirmation(n)
        except BaseException:
            self._holdings.undo(n)
            raise

    def _enter(self, batch: Batch) -> int:
        welcome = self._link.welcome
        batch.explicit = bool(batch.commits) and (welcome is None or welcome.durable or not welcome.evicts)
        answer = batch.explicit or len(self._holdings.unconfirmed) % _ASK_EVERY == _ASK_EVERY - 1
        n = self._holdings.number(batch)
        batch.data = encode((_SETTLE, n, batch.acks, batch.back, batch.commits, answer))
        return n

    def _reattach(self, why: Broken | None = None) -> None:
        """Find the hub again, and send it what it has not confirmed. Raises: TransportError."""
        self._attached = False
        link = self._link
        for again in (False, True):
            try:
                if why is not None or not link.connected:
                    link.connect()
                self._announce()
                self._read_confirmations()
                return
            except Broken as error:
                link.close()
                self._attached = False
                if again:
                    raise link.lost(error) from error

    def _announce(self) -> None:
        self._member.announce(self._link, intake=False)
        self._attached = True
        for batch in list(self._holdings.unconfirmed.values()):
            self._link.send(batch.data)

    def _read_confirmations(self) -> None:
        """Take in what the hub has confirmed, waiting only where too much is open. Raises: Broken."""
        unconfirmed, link = self._holdings.unconfirmed, self._link
        end = time.monotonic() + self._member.timeout
        if len(unconfirmed) > _UNCONFIRMED:
            link.send(encode(Beat(-link.number())))
        while unconfirmed:
            enough = len(unconfirmed) <= _UNCONFIRMED
            left = 0.0 if enough else max(0.0, end - time.monotonic())
            if link.poll(left, wakes=False):
                self._take_in(link.receive())
            elif enough:
                return
            elif left <= 0:
                raise Broken("the hub does not confirm")

    def _take_in(self, frame: object) -> None:
        """Take in a frame. Raises: Broken: the hub does not know us any more."""
        if isinstance(frame, Reset) or (isinstance(frame, Confirm) and not frame.known):
            self._attached = False
            raise Broken("the hub does not know this consumer any more")
        if isinstance(frame, Confirm):
            self._holdings.confirmed(frame)

    def _await_confirmation(self, n: int) -> None:
        """Wait until one batch is confirmed. Raises: TransportError."""
        unconfirmed, link = self._holdings.unconfirmed, self._link
        end = time.monotonic() + self._member.timeout
        while (batch := unconfirmed.get(n)) is not None:
            if batch.refused:
                raise StorageFull(f"the hub {link.target.name} has no room for a result: {batch.refused}")
            left = end - time.monotonic()
            if left <= 0:
                raise link.lost("a settlement was not confirmed")
            try:
                if link.poll(left, wakes=False):
                    self._take_in(link.receive())
            except Broken as error:
                self._reattach(error)

    def _beat(self, timeout: float) -> None:
        """Renew the lease, and offer again what was refused; when it is answered, so is every settlement before."""
        for batch in self._holdings.refused():
            batch.refused = ""
            self._enter(batch)
            self._link.send(batch.data)
        n = -self._link.number()
        self._link.send(encode(Beat(n)))
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            if self._link.poll(left, wakes=False):
                frame = self._link.receive()
                self._take_in(frame)
                if isinstance(frame, Confirm) and frame.n == n:
                    return
        raise Broken("the hub does not answer")

    def flush(self, timeout: float) -> None:
        """Wait until all is confirmed. Raises: TransportError."""
        end = time.monotonic() + timeout
        while self._unflushed:
            left = end - time.monotonic()
            if left <= 0:
                raise self._link.lost(f"{len(self._holdings.unconfirmed)} batches of settlements are not confirmed")
            try:
                if not self._ready:
                    self._reattach()
                self._beat(left)
                self._unflushed = bool(self._holdings.unconfirmed)
                if self._unflushed:
                    time.sleep(min(left, _REFUSED_PAUSE))
            except Broken as error:
                if time.monotonic() < end:
                    self._reattach(error)

    def extend(self) -> None:
        """Renew the lease. Raises: TransportError."""
        try:
            if self._ready:
                self._beat(self._member.timeout)
            else:
                self._reattach()
        except Broken as error:
            self._reattach(error)

    def leave(self, timeout: float) -> None:
        """Have the hub take back what is held; what cannot be told it does when the lease ends."""
        end = time.monotonic() + timeout
        link = self._link
        for _ in range(2):  # the connection may have broken while it was idle
            try:
                if not self._ready:
                    link.connect(max(0.05, end - time.monotonic()))
                    self._announce()
                n = link.number()
                link.send(encode(Detach(n, self._member.id)))
                while (left := end - time.monotonic()) > 0:
                    if not link.poll(left, wakes=False):
                        continue
                    frame = link.receive()
                    if isinstance(frame, Answer) and frame.n == n:
                        return
                    if isinstance(frame, Reset):
                        raise Broken("the hub does not know this connection any more")
                return
            except Broken:
                link.close()
                self._attached = False
            except (TransportError, AuthenticationFailed):
                return

    def close(self) -> None:
        self._link.close()
