"""Random sequences of calls, checked against a model of what the broker must hold."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from taskq.message import ACK, RELEASE, Delivery, Settlement, Subscription
from taskq.spi import Consumer, DeliveryCount, HandBack, Ordering, SupportsStats
from taskq.testing.base import SOAK, seed, unique
from taskq.testing.transport_rig import TransportRig
from taskq.testing.transports_base import TransportBase

_CONSUMERS = 3
_TIME_BOX_S = 600.0 if SOAK else 4.0


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
    """Sends, fetches, settles, releases, closes and reopens with several consumers, and remembers all of it."""

    rig: TransportRig
    until: float

    def __init__(self) -> None:
        super().__init__()
        self.queues = [unique("a"), unique("b")]
        self.messages: list[Message] = []
        self.consumers: dict[int, Consumer] = {}
        self.held: dict[int, dict[int, Delivery]] = {i: {} for i in range(_CONSUMERS)}
        self.credit: dict[int, int] = {}
        self.settled: list[tuple[int, Any]] = []
        self.transport = self.rig.open()
        caps = self.transport.capabilities
        self.caps = caps
        self.can_release = caps.hand_back is not HandBack.NO
        self.step = min(20, caps.max_send_batch)

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until

    # -------------------------------------------------------------------------------------------------- rules

    @initialize(which=st.integers(0, _CONSUMERS - 1))
    def first_consumer(self, which: int) -> None:
        self._open(which, 10)

    @rule(which=st.integers(0, 1), n=st.integers(1, 8), priorities=st.lists(st.integers(0, 9), min_size=8, max_size=8))
    def send(self, which: int, n: int, priorities: list[int]) -> None:
        if self.over:
            return
        batch = []
        for i in range(n):
            message = Message(len(self.messages), self.queues[which], priorities[i] if self.caps.priority_strict else 5)
            self.messages.append(message)
            payload = str(message.number)
            batch.append(self.rig.outbound(payload, queue=message.queue, priority=message.priority))
        assert not self.transport.send(batch)

    @rule(which=st.integers(0, _CONSUMERS - 1), limit=st.integers(1, 6), ahead=st.integers(0, 4))
    def fetch(self, which: int, limit: int, ahead: int) -> None:
        if self.over or which not in self.consumers:
            return
        self._fetch(which, limit, 0.01, ahead)

    def _fetch(self, which: int, limit: int, wait: float, ahead: int = 0) -> int:
        fetched = self.consumers[which].fetch(limit, wait, ahead=ahead)
        assert not fetched.lost, f"a receipt was lost although no lease has ended: {fetched.lost}"
        assert len(fetched.deliveries) <= limit, "more than the limit"
        ranks: dict[str, list[int]] = {}
        for delivery in fetched.deliveries:
            message = self.messages[int(delivery.payload)]
            assert not message.done, f"message {message.number} was acknowledged, and is delivered again"
            assert message.holder is None, f"message {message.number} is held by consumer {message.holder}"
            assert delivery.queue == message.queue
            if self.caps.delivery_count is DeliveryCount.EXACT:
                assert delivery.deliveries == message.ended + 1
            message.holder = which
            self.held[which][message.number] = delivery
            ranks.setdefault(message.queue, []).append(message.priority)
        for order in ranks.values() if self.caps.priority_strict and self.caps.priority_levels == 10 else ():
            assert order == sorted(order, reverse=True), f"priorities within one fetch: {order}"
        held = len(self.held[which])
        assert held <= max(self.credit[which], held - len(fetched.deliveries)), (
            f"consumer {which} holds {held} with a credit of {self.credit[which]}"
        )
        return len(fetched.deliveries)

    @rule(which=st.integers(0, _CONSUMERS - 1), choice=st.randoms(use_true_random=False), part=st.floats(0.2, 1.0))
    def acknowledge(self, which: int, choice: Any, part: float) -> None:
        chosen = self._choose(which, choice, part)
        self._settle(which, [Settlement(d.receipt, ACK) for d in chosen])
        for delivery in chosen:
            message = self._end(which, delivery)
            message.done = True

    @precondition(lambda self: self.can_release)
    @rule(
        which=st.integers(0, _CONSUMERS - 1),
        choice=st.randoms(use_true_random=False),
        part=st.floats(0.2, 1.0),
        counted=st.booleans(),
    )
    def release(self, which: int, choice: Any, part: float, counted: bool) -> None:
        chosen = self._choose(which, choice, part)
        self._settle(which, [Settlement(d.receipt, RELEASE, counted=counted) for d in chosen])
        for delivery in chosen:
            message = self._end(which, delivery)
            message.ended += counted
            message.releases += 1

    @precondition(lambda self: self.settled)
    @rule(kind=st.sampled_from([ACK, RELEASE]), choice=st.randoms(use_true_random=False))
    def settle_again(self, kind: int, choice: Any) -> None:
        """Repeat a settlement: it must be reported by somebody and change nothing."""
        which, receipt = choice.choice(self.settled)
        if self.over or which not in self.consumers:
            return
        consumer = self.consumers[which]
        lost = [*consumer.settle([Settlement(receipt, kind)]), *consumer.flush(5.0)]
        assert all(entry.receipt == receipt for entry in lost), f"another receipt was reported: {lost}"
        self.settled.remove((which, receipt))

    @rule(which=st.integers(0, _CONSUMERS - 1), credit=st.integers(1, 12))
    def change_credit(self, which: int, credit: int) -> None:
        if which in self.consumers and not self.over:
            self.credit[which] = credit
            self.consumers[which].credit(credit, 1 << 30)

    @rule(which=st.integers(0, _CONSUMERS - 1), both=st.booleans())
    def change_subscription(self, which: int, both: bool) -> None:
        if which in self.consumers and not self.over:
            queues = self.queues if both else self.queues[:1]
            self.consumers[which].subscribe([Subscription(q) for q in queues])

    @rule(which=st.integers(0, _CONSUMERS - 1))
    def extend(self, which: int) -> None:
        if which in self.consumers and not self.over:
            receipts = [d.receipt for d in self.held[which].values()]
            assert not self.consumers[which].extend(receipts)

    @rule(which=st.integers(0, _CONSUMERS - 1), credit=st.integers(1, 12))
    def open_consumer(self, which: int, credit: int) -> None:
        if which not in self.consumers and not self.over:
            self._open(which, credit)

    @precondition(lambda self: self.can_release)
    @rule(which=st.integers(0, _CONSUMERS - 1))
    def close_consumer(self, which: int) -> None:
        if which in self.consumers and not self.over:
            self._close(which)

    @precondition(lambda self: self.can_release)
    @rule()
    def reopen(self) -> None:
        if self.over:
            return
        self.transport.close(timeout=2.0)
        self.rig.forget(self.transport)
        for which in list(self.consumers):
            self._returned(which)
        self.transport = self.rig.open()

    # ----------------------------------------------------------------------------------------------- workings

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

    def _choose(self, which: int, choice: Any, part: float) -> list[Delivery]:
        if self.over or which not in self.consumers or not self.held[which]:
            return []
        held = list(self.held[which].values())
        chosen: list[Delivery] = choice.sample(held, max(1, int(len(held) * part)))
        return chosen

    def _settle(self, which: int, settlements: Sequence[Settlement]) -> None:
        if settlements:
            consumer = self.consumers[which]
            lost = [*consumer.settle(settlements), *consumer.flush(5.0)]
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
        machine = type("Machine", (TransportMachine,), {"rig": rig, "until": time.monotonic() + _TIME_BOX_S})
        run_state_machine_as_test(
            hypothesis.seed(number)(machine),
            settings=settings(
                max_examples=3_000 if SOAK else 25,
                stateful_step_count=60 if SOAK else 30,
                deadline=None,
                database=None,
                print_blob=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
