"""Random sequences of calls, checked against a model of what the broker must hold."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from taskq.message import ACK, RELEASE, Delivery, Settlement, Subscription
from taskq.spi import Consumer, DeliveryCount, HandBack, Ordering, SupportsStats
from taskq.testing.base import SOAK, seed, unique
from taskq.testing.transport_rig import TransportRig
from taskq.testing.transports_base import TransportBase

_CONSUMERS = 3


_AT_A_TIME = 6
_PICK = st.integers(0, 7)
_MASK = st.integers(1, 2**12 - 1)
_CREDIT = st.integers(1, 7)


class Message:
    """What the model knows of one message."""

    def __init__(self, number: int, queue: str, priority: int) -> None:
        self.number = number
        self.queue = queue
        self.priority = priority
        self.ended = 0
        """Deliveries that ended counted."""
        self.releases = 0
        self.holder: int | None = None
        self.done = False


class TransportMachine(RuleBasedStateMachine):
    """Sends, fetches, settles, releases, closes and reopens with several consumers, and remembers all of it.

    Preconditions may depend on earlier choices only, not on what the broker happened to deliver in time: hypothesis
    takes it for a fault of the test when the same choices lead elsewhere.
    """

    rig: TransportRig

    def __init__(self) -> None:
        super().__init__()
        self.queues = [unique("a"), unique("b")]
        self.messages: list[Message] = []
        self.consumers: dict[int, Consumer] = {}
        self.held: dict[int, dict[int, Delivery]] = {i: {} for i in range(_CONSUMERS)}
        self.credit: dict[int, int] = {}
        self.settled: list[tuple[int, Any]] = []
        self.dead: set[Any] = set()
        self.transport = self.rig.open()
        caps = self.transport.capabilities
        self.caps = caps
        self.can_release = caps.hand_back is not HandBack.NO
        self.step = min(20, caps.max_send_batch)

    # -------------------------------------------------------------------------------------------------- rules

    @initialize(credit=_CREDIT)
    def begin(self, credit: int) -> None:
        self._open(0, credit)
        self._open(1, 4)
        self.send(0, [5, 5, 9, 0, 5])

    @rule(which=st.integers(0, 1), priorities=st.lists(st.integers(0, 9), min_size=1, max_size=12))
    def send(self, which: int, priorities: list[int]) -> None:
        batch = []
        for priority in priorities:
            message = Message(len(self.messages), self.queues[which], priority if self.caps.priority_strict else 5)
            self.messages.append(message)
            payload = str(message.number)
            batch.append(self.rig.outbound(payload, queue=message.queue, priority=message.priority))
        assert not self.transport.send(batch)

    @precondition(lambda self: self.consumers)
    @rule(pick=_PICK, limit=st.integers(1, 6), ahead=st.integers(0, 4))
    def fetch(self, pick: int, limit: int, ahead: int) -> None:
        self._fetch(self._picked(pick), limit, 0.02 if self._waiting() else 0.0, ahead)

    @precondition(lambda self: self.consumers)
    @rule(pick=_PICK)
    def fetch_all(self, pick: int) -> None:
        self._fetch(self._picked(pick), 50, 0.02 if self._waiting() else 0.0)

    @precondition(lambda self: self.consumers)
    @rule(pick=_PICK, mask=_MASK)
    def acknowledge(self, pick: int, mask: int) -> None:
        which, chosen = self._choose(pick, mask)
        self._settle(which, [Settlement(d.receipt, ACK) for d in chosen])
        for delivery in chosen:
            self._end(which, delivery).done = True

    @precondition(lambda self: self.can_release and self.consumers)
    @rule(pick=_PICK, mask=_MASK, counted=st.booleans())
    def release(self, pick: int, mask: int, counted: bool) -> None:
        which, chosen = self._choose(pick, mask)
        self._settle(which, [Settlement(d.receipt, RELEASE, counted=counted) for d in chosen])
        for delivery in chosen:
            message = self._end(which, delivery)
            message.ended += counted
            message.releases += 1

    @rule(kind=st.sampled_from([ACK, RELEASE]), pick=_PICK)
    def settle_again(self, kind: int, pick: int) -> None:
        """Repeat a settlement: it may be reported, and changes nothing."""
        if not self.settled:
            return
        which, receipt = self.settled.pop(pick % len(self.settled))
        consumer = self.consumers[which]
        lost = [*consumer.settle([Settlement(receipt, kind)]), *consumer.flush(5.0)]
        assert all(entry.receipt == receipt for entry in lost), f"another receipt was reported: {lost}"
        self.dead.add(receipt)

    @precondition(lambda self: self.consumers)
    @rule(pick=_PICK, credit=_CREDIT)
    def change_credit(self, pick: int, credit: int) -> None:
        which = self._picked(pick)
        self.credit[which] = credit
        self.consumers[which].credit(credit, 1 << 30)

    @precondition(lambda self: self.consumers)
    @rule(pick=_PICK, both=st.booleans())
    def change_subscription(self, pick: int, both: bool) -> None:
        queues = self.queues if both else self.queues[:1]
        self.consumers[self._picked(pick)].subscribe([Subscription(q) for q in queues])

    @precondition(lambda self: self.consumers)
    @rule(pick=_PICK)
    def extend(self, pick: int) -> None:
        which = self._picked(pick)
        assert not self.consumers[which].extend([d.receipt for d in self.held[which].values()])

    @precondition(lambda self: len(self.consumers) < _CONSUMERS)
    @rule(credit=_CREDIT)
    def open_consumer(self, credit: int) -> None:
        self._open(min(set(range(_CONSUMERS)) - set(self.consumers)), credit)

    @precondition(lambda self: self.can_release and self.consumers)
    @rule(pick=_PICK)
    def close_consumer(self, pick: int) -> None:
        self._close(self._picked(pick))

    @precondition(lambda self: self.can_release)
    @rule()
    def reopen(self) -> None:
        self.transport.close(timeout=2.0)
        self.rig.forget(self.transport)
        for which in list(self.consumers):
            self._returned(which)
        self.transport = self.rig.open()
        self._open(0, 10)

    # ----------------------------------------------------------------------------------------------- workings

    def _picked(self, pick: int) -> int:
        return sorted(self.consumers)[pick % len(self.consumers)]

    def _waiting(self) -> bool:
        return any(m.holder is None and not m.done for m in self.messages)

    def _fetch(self, which: int, limit: int, wait: float, ahead: int = 0) -> int:
        before = len(self.held[which])
        fetched = self.consumers[which].fetch(limit, wait, ahead=ahead)
        lost = [entry for entry in fetched.lost if entry.receipt not in self.dead]
        assert not lost, f"a receipt was lost although no lease has ended: {lost}"
        assert len(fetched.deliveries) <= limit, "more than the limit"
        ranks: dict[str, list[int]] = {}
        for delivery in fetched.deliveries:
            message = self.messages[int(delivery.payload)]
            assert not message.done, f"message {message.number} was acknowledged, and is delivered again"
            assert message.holder is None, f"message {message.number} is held by consumer {message.holder}"
            assert delivery.queue == message.queue
            if self.caps.delivery_count is DeliveryCount.EXACT:
                assert delivery.deliveries == message.ended + 1, (
                    f"message {message.number} has deliveries {delivery.deliveries}, not {message.ended + 1}"
                )
            message.holder = which
            self.held[which][message.number] = delivery
            ranks.setdefault(message.queue, []).append(message.priority)
        if self.caps.priority_strict and self.caps.priority_levels == 10:
            for order in ranks.values():
                assert order == sorted(order, reverse=True), f"priorities within one fetch: {order}"
        held = len(self.held[which])
        # A credit that was lowered takes nothing back, and allows nothing more.
        assert held <= max(self.credit[which], before), f"{held} are held with a credit of {self.credit[which]}"
        return len(fetched.deliveries)

    def _open(self, which: int, credit: int) -> None:
        self.credit[which] = credit
        self.consumers[which] = self.rig.consumer(*self.queues, transport=self.transport, credit=credit)

    def _close(self, which: int) -> None:
        self.consumers[which].close()
        self._returned(which)

    def _returned(self, which: int) -> None:
        del self.consumers[which]
        for number in self.held[which]:
            self.messages[number].holder = None
            self.messages[number].releases += 1
        self.held[which].clear()
        self.settled = [(w, r) for w, r in self.settled if w != which]

    def _choose(self, pick: int, mask: int) -> tuple[int, list[Delivery]]:
        """Return a consumer that holds something, and some of what it holds."""
        if not any(self.held.values()):
            self._fetch(self._picked(pick), 6, 0.02 if self._waiting() else 0.0)
        holders = [which for which in sorted(self.consumers) if self.held[which]]
        if not holders:
            return 0, []
        which = holders[pick % len(holders)]
        held = list(self.held[which].values())
        return which, [d for i, d in enumerate(held) if mask >> (i % 12) & 1]

    def _settle(self, which: int, settlements: Sequence[Settlement]) -> None:
        if settlements:
            consumer = self.consumers[which]
            reported = [*consumer.settle(settlements), *consumer.flush(5.0)]
            lost = [entry for entry in reported if entry.receipt not in self.dead]
            assert not lost, f"settling what is held was refused: {lost}"

    def _end(self, which: int, delivery: Delivery) -> Message:
        message = self.messages[int(delivery.payload)]
        message.holder = None
        del self.held[which][message.number]
        self.settled.append((which, delivery.receipt))
        return message

    def teardown(self) -> None:
        """Nothing is lost, nothing comes twice: one last consumer gets exactly what was not acknowledged."""
        try:
            for which in list(self.consumers):
                if self.can_release:
                    self._close(which)
                else:
                    self._settle(which, [Settlement(d.receipt, ACK) for d in self.held[which].values()])
                    for delivery in list(self.held[which].values()):
                        self._end(which, delivery).done = True
            left = [m for m in self.messages if not m.done]
            self._open(0, 10_000)
            deadline = time.monotonic() + self.rig.suite.patience_s
            while len(self.held[0]) < len(left) and time.monotonic() < deadline:
                self._fetch(0, 100, 0.1)
            missing = [m.number for m in left if m.holder is None]
            assert not missing, f"lost: messages {missing} of {len(self.messages)}"
            self._check_order()
            assert self._fetch(0, 100, 0.0) == 0
            self._settle(0, [Settlement(d.receipt) for d in self.held[0].values()])
            if self.caps.stats and isinstance(self.transport, SupportsStats):
                counts = self.transport.stats(self.queues)
                assert not any(s.ready or s.in_flight or s.delayed for s in counts.values()), f"left over: {counts}"
        finally:
            self.transport.close(timeout=2.0)
            self.rig.forget(self.transport)

    def _check_order(self) -> None:
        """What was never handed back comes in the order sent."""
        if self.caps.ordering is Ordering.NONE:
            return
        lines: dict[tuple[str, int], list[int]] = {}
        for number in self.held[0]:
            message = self.messages[number]
            if not message.releases:
                lines.setdefault((message.queue, message.priority), []).append(number)
        for line in lines.values():
            assert line == sorted(line), f"sent in another order than delivered: {line}"


class StatefulTests(TransportBase):
    """The state machine."""

    def test_random_sequences_keep_every_promise(self, rig: TransportRig) -> None:
        """Check the printed sequence step by step; ``TASKQ_SEED`` repeats it, ``TASKQ_SOAK=1`` runs thousands.

        Invariants: nothing lost, nothing delivered that is held or acknowledged, settlements are idempotent, never more
        than the credit or the limit, exact counts, priorities and order as declared.
        """
        number = seed()
        machine = type("Machine", (TransportMachine,), {"rig": rig})
        steps = settings(
            max_examples=_AT_A_TIME,
            stateful_step_count=60 if SOAK else 40,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink] if self.shrink else [Phase.generate],
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        )
        # A few at a time, to stop between them when the time is up.
        until = time.monotonic() + (600.0 if SOAK else self.random_s)
        for part in range((3_000 if SOAK else 30) // _AT_A_TIME):
            run_state_machine_as_test(hypothesis.seed(number + part)(machine), settings=steps)
            if time.monotonic() > until:
                break
