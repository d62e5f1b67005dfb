"""What a consumer holds, by receipt: what is not settled, and what is settled and not confirmed by the hub."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from msgspec import Struct

from taskq.message import ACK, Commit, Delivery, Lost, Settlement
from taskq_lib_zeromq.protocol import Confirm, Message

_NOT_HELD = "not held: it was settled before, or the lease ended"
_GONE = "the lease ended, or the hub was started anew, and the message was given back"


class Batch(Struct):
    """Settlements that go to the hub as one."""

    acks: list[int]
    back: list[Settlement]
    commits: list[Commit]
    entries: dict[int, Delivery]
    """What they end."""
    data: bytes = b""
    explicit: bool = False
    """The hub may refuse its records, so only an answer of its own confirms it."""
    refused: str = ""


class Holdings:
    """Safe on any thread; the lock is never held over a call of the hub."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, Delivery] = {}
        """What ``fetch`` has returned and nobody has settled."""
        self._marks: dict[int, int] = {}
        """Receipt to priority, where that is not 5."""
        self.unconfirmed: dict[int, Batch] = {}
        """By number, rising."""
        self.losses: list[Lost] = []
        self._n = 0

    def __len__(self) -> int:
        return len(self._held)

    # ---------------------------------------------------------------------------------------------------- taking

    def hold(self, deliveries: Iterable[Delivery]) -> None:
        with self._lock:
            self._held.update((d.receipt, d) for d in deliveries)

    def mark(self, first: int, priorities: Iterable[int]) -> None:
        """Remember priorities of deliveries in a row."""
        with self._lock:
            self._marks.update((first + i, p) for i, p in enumerate(priorities) if p != 5)

    def all(self, waiting: Iterable[Delivery] = ()) -> dict[int, Delivery]:
        """Return all that the hub should think is here, ``waiting`` included."""
        with self._lock:
            found = {**self._held, **{d.receipt: d for d in waiting}}
            for batch in self.unconfirmed.values():
                found.update(batch.entries)
        return found

    def message(self, delivery: Delivery) -> Message:
        """Return a delivery as the message that a hub without memory takes back."""
        priority = self._marks.get(delivery.receipt, 5)
        return Message("", delivery.queue, delivery.payload, priority, 0.0, delivery.group, delivery.deliveries - 1)

    # -------------------------------------------------------------------------------------------------- settling

    def settled(self, settlements: Sequence[Settlement]) -> Batch:
        """Return a batch that ends what of these is held; the rest is lost."""
        batch = Batch([], [], [], {})
        with self._lock:
            for settlement in settlements:
                if self._take(settlement.receipt, batch):
                    _add(batch, settlement)
        return batch

    def committed(self, commits: Sequence[Commit]) -> Batch:
        """As ``settled``, with records and follow-ups."""
        batch = Batch([], [], [], {})
        with self._lock:
            for commit in commits:
                if self._take(commit.settlement.receipt, batch):
                    if commit.record is None and not commit.follow_ups:
                        _add(batch, commit.settlement)
                    else:
                        batch.commits.append(commit)
        return batch

    def _take(self, receipt: int, batch: Batch) -> bool:
        delivery = self._held.pop(receipt, None)
        if delivery is None:
            self.losses.append(Lost(receipt, _NOT_HELD))
            return False
        batch.entries[receipt] = delivery
        return True

    def number(self, batch: Batch) -> int:
        """Enter a batch as sent and not confirmed, under the next number."""
        with self._lock:
            self._n += 1
            self.unconfirmed[self._n] = batch
            return self._n

    def undo(self, n: int) -> None:
        """Hold again what a batch ends that cannot be sent."""
        with self._lock:
            batch = self.unconfirmed.pop(n, None)
            if batch is not None:
                self._held.update(batch.entries)

    def refused(self) -> list[Batch]:
        """Take out what the hub had no room for."""
        with self._lock:
            numbers = [n for n, batch in self.unconfirmed.items() if batch.refused]
            return [self.unconfirmed.pop(n) for n in numbers]

    # ------------------------------------------------------------------------------------------------- confirmed

    def confirmed(self, frame: Confirm) -> None:
        """Take in an answer to a settlement or a beat."""
        with self._lock:
            self.losses += [Lost(receipt, _GONE) for receipt in frame.lost]
            batch = self.unconfirmed.get(frame.n)
            if batch is not None and frame.full:
                batch.refused = frame.full
            elif batch is not None:
                batch.explicit = False
            self._forget_up_to(frame.settled)

    def confirmed_up_to(self, number: int) -> None:
        """Forget batches that the hub has seen."""
        if self.unconfirmed:
            with self._lock:
                self._forget_up_to(number)

    def _forget_up_to(self, number: int) -> None:
        for n in list(self.unconfirmed):
            if n > number:
                break
            if not self.unconfirmed[n].explicit:
                batch = self.unconfirmed.pop(n)
                if self._marks:
                    for receipt in batch.entries:
                        self._marks.pop(receipt, None)

    # ------------------------------------------------------------------------------------------------------ lost

    def lose(self, receipts: Iterable[int]) -> None:
        """Note that the hub does not know these any more."""
        with self._lock:
            self.losses += [Lost(r, _GONE) for r in receipts if self._held.pop(r, None) is not None]

    def take_losses(self) -> Sequence[Lost]:
        """Return what was lost since it was asked last."""
        if not self.losses:
            return ()
        with self._lock:
            losses, self.losses = self.losses, []
        return losses

    def clear(self) -> None:
        self._held.clear()


def _add(batch: Batch, settlement: Settlement) -> None:
    if settlement.kind == ACK:
        batch.acks.append(settlement.receipt)
    else:
        batch.back.append(settlement)
