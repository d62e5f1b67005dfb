"""Broadcast, sending within a transaction, committing with the store, and what works though undeclared."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest

from taskq.errors import NotSupported, TransportError
from taskq.message import RELEASE, Commit, Delivery, Outbound, QueueSpec, Record, Settlement
from taskq.spi import (
    Committer,
    Consumer,
    ResultStore,
    StoreConfig,
    Support,
    SupportsBroadcast,
    SupportsFuse,
    SupportsTransactionalSend,
    Transport,
    parse_urls,
)
from taskq.testing.base import UndeclaredAbility, select, unique
from taskq.testing.transport_rig import TransportRig
from taskq.testing.transports_base import ABILITIES, TransportBase


class ExtraTests(TransportBase):
    """Broadcast, sending within a transaction, committing with the store, and what works undeclared."""

    def test_broadcast_reaches_all_who_listen(self, rig: TransportRig) -> None:
        """Check that every transport that listens gets every broadcast, in order, and late ones get nothing old."""
        rig.need(rig.caps.broadcast, "broadcast")
        channel = unique("channel")
        listeners = [self._listening(rig.open()) for _ in range(2)]
        for listener in listeners:
            assert not listener.listen(channel, 0.0)
        speaker = self._listening(rig.main)
        for payload in (b"\x00one", b"two"):
            speaker.broadcast(channel, payload)
        speaker.broadcast(f"{channel}-other", b"not for you")
        for listener in listeners:
            heard: list[bytes] = []
            deadline = time.monotonic() + self.patience_s
            while len(heard) < 2 and time.monotonic() < deadline:
                heard += listener.listen(channel, 0.5)
            assert heard == [b"\x00one", b"two"]
            assert not listener.listen(channel, 0.05)
        assert not self._listening(rig.open()).listen(channel, 0.05), "a late listener was sent old broadcasts"

    def _listening(self, transport: Transport) -> SupportsBroadcast:
        assert isinstance(transport, SupportsBroadcast)
        return transport

    def test_send_in_a_transaction(self, rig: TransportRig, url: str) -> None:
        """Check that ``send_in`` sends if and when the caller commits, and nothing on rollback."""
        rig.need(rig.caps.transactional_send, "transactional_send")
        assert isinstance(rig.main, SupportsTransactionalSend)
        rig.main.declare([QueueSpec(name=rig.queue)])
        consumer = rig.consumer(transport=rig.open())
        with self.database(url) as connection:
            rig.main.send_in(connection, [rig.outbound("rolled back")])
            connection.rollback()
            rig.main.send_in(connection, [rig.outbound("kept", priority=7)])
            rig.nothing(consumer, why="its transaction is not committed")
            connection.commit()
        (delivery,) = rig.collect(consumer, 1)
        assert delivery.payload == b"kept"
        rig.nothing(consumer, why="its transaction was rolled back")

    def test_send_in_refuses_a_stranger(self, rig: TransportRig) -> None:
        """Check that ``send_in`` with something that is no connection of this database raises NotSupported."""
        rig.need(rig.caps.transactional_send, "transactional_send")
        assert isinstance(rig.main, SupportsTransactionalSend)
        with pytest.raises(NotSupported):
            rig.main.send_in(object(), [rig.outbound("x")])

    # --------------------------------------------------------------------------------------------------- fusing

    def _fused(self, rig: TransportRig) -> tuple[Consumer, Committer, ResultStore]:
        rig.need(rig.caps.fused_stores, "fused_stores")
        urls = parse_urls(self.store_url(rig.url))
        spec = select("result_store", urls[0].scheme)
        assert spec.name in rig.caps.fused_stores
        config = StoreConfig(urls=tuple(u.without_query() for u in urls), options=spec.options(), app="kit")
        store: ResultStore = spec.factory(config)
        store.open()
        rig.on_close(store.close)
        consumer = rig.consumer()
        assert isinstance(consumer, SupportsFuse)
        committer = consumer.fuse(store)
        assert committer is not None, "fuse() found no common server, though store_url names it"
        return consumer, committer, store

    def _record(self, delivery: Delivery, **fields: Any) -> Record:
        return Record(f"r-{delivery.payload.decode()}-{id(self)}", "SUCCESS", b"result", **fields)

    def _commit(self, rig: TransportRig, delivery: Delivery, *follow_ups: Outbound) -> Commit:
        return Commit(Settlement(delivery.receipt), self._record(delivery), follow_ups)

    def test_commit_does_all_three(self, rig: TransportRig) -> None:
        """Check that a commit stores the record, sends the follow-ups and acknowledges."""
        consumer, committer, store = self._fused(rig)
        rig.send("a", "b")
        a, b = rig.collect(consumer, 2)
        next_queue = f"{rig.queue}-next"
        commits = [self._commit(rig, a, rig.outbound("next", queue=next_queue)), self._commit(rig, b)]
        assert not committer.commit(commits)
        assert not consumer.flush(self.patience_s)
        stored = store.get([self._record(d).id for d in (a, b)])
        assert [r.payload if r else None for r in stored] == [b"result", b"result"]
        assert rig.collect(rig.consumer(next_queue), 1)[0].payload == b"next"
        consumer.close()
        rig.empty()

    def test_commit_for_a_lost_receipt_does_nothing(self, rig: TransportRig) -> None:
        """Check that neither record nor follow-ups exist for a receipt that is not held; its neighbours are done."""
        consumer, committer, store = self._fused(rig)
        rig.send("a", "b")
        a, b = rig.collect(consumer, 2)
        rig.ack(consumer, [a])
        next_queue = f"{rig.queue}-next"
        follow_ups = [rig.outbound(f"after {n}", queue=next_queue) for n in "ab"]
        lost = [*committer.commit([self._commit(rig, a, follow_ups[0]), self._commit(rig, b, follow_ups[1])])]
        lost += consumer.flush(self.patience_s)
        assert rig.is_lost(consumer, a.receipt, lost)
        assert not any(entry.receipt == b.receipt for entry in lost)
        stored = store.get([self._record(a).id, self._record(b).id])
        assert [r is not None for r in stored] == [False, True]
        follower = rig.consumer(next_queue)
        assert rig.collect(follower, 1)[0].payload == b"after b"
        rig.nothing(follower, why="it is the follow-up of a lost receipt")

    def test_commit_may_release_or_carry_nothing(self, rig: TransportRig) -> None:
        """Check commits without a record, without follow-ups, with a release, and an empty batch."""
        consumer, committer, _ = self._fused(rig)
        assert not committer.commit([])
        rig.send("a", "b")
        a, b = rig.collect(consumer, 2)
        assert not committer.commit([Commit(Settlement(a.receipt)), Commit(Settlement(b.receipt, RELEASE))])
        assert not consumer.flush(self.patience_s)
        (again,) = rig.collect(consumer, 1)
        assert again.payload == b"b"
        rig.ack(consumer, [again])
        rig.nothing(consumer)

    def test_commit_keeps_a_better_record(self, rig: TransportRig) -> None:
        """Check that a commit obeys the store's rule: a terminal record is not replaced, and the message still ends."""
        consumer, committer, store = self._fused(rig)
        rig.send("a")
        (a,) = rig.collect(consumer, 1)
        better = self._record(a, attempt=5)
        better.payload = b"better"
        assert not store.put([better])
        assert not committer.commit([self._commit(rig, a)])
        assert not consumer.flush(self.patience_s)
        (kept,) = store.get([better.id])
        assert kept is not None
        assert kept.payload == b"better"
        consumer.close()
        rig.empty()

    def test_commit_of_many(self, rig: TransportRig) -> None:
        """Check that a large batch of commits is split as needed and done completely."""
        consumer, committer, store = self._fused(rig)
        rig.send(*(f"{i}" for i in range(300)))
        deliveries = rig.collect(consumer, 300)
        assert not committer.commit([self._commit(rig, d) for d in deliveries])
        assert not consumer.flush(self.patience_s)
        assert all(store.get([self._record(d).id for d in deliveries]))
        consumer.close()
        rig.empty()

    # ------------------------------------------------------------------------------------------ works undeclared

    @pytest.mark.filterwarnings("always::taskq.testing.UndeclaredAbility")
    def test_what_works_is_declared(self, rig: TransportRig) -> None:
        """Declare what this warns of, if it is meant to work: what is not declared, the kernel does not use."""
        caps = rig.caps
        found = [name for name, ability in ABILITIES if isinstance(rig.main, ability) and not getattr(caps, name)]
        if caps.priority is Support.NO and self._reorders(rig):
            found.append("priority")
        if caps.delay is Support.NO and self._delays(rig):
            found.append("delay")
        if found:
            text = f"{rig.spec.name} can do what it does not declare: {', '.join(found)}"
            warnings.warn(text, UndeclaredAbility, stacklevel=1)

    def _reorders(self, rig: TransportRig) -> bool:
        queue = f"{rig.queue}-p"
        batch = [rig.outbound(f"{p}", priority=p, queue=queue) for p in (0, 5, 9, 0, 9)]
        try:
            if rig.main.send(batch):
                return False
        except (NotSupported, TransportError):
            return False
        order = [d.payload for d in rig.collect(rig.consumer(queue, credit=1000), 5)]
        return order == [b"9", b"9", b"5", b"0", b"0"]

    def _delays(self, rig: TransportRig) -> bool:
        queue = f"{rig.queue}-d"
        try:
            if rig.main.send([rig.outbound("x", delay=0.3, queue=queue)]):
                return False
        except (NotSupported, TransportError):
            return False
        started = time.monotonic()
        found, _ = rig.gather(rig.consumer(queue), 1, seconds=1.5)
        return bool(found) and time.monotonic() - started > 0.25
