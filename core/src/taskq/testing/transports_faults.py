"""Crashes, forks, leaks and broken networks."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from taskq.errors import AuthenticationFailed, ConnectionFailed, TransportError
from taskq.message import SendFailure, Settlement
from taskq.spi import Consumer, DeliveryCount, Durability, LeaseScope, SupportsPurge, Transport, Url
from taskq.testing.base import SOAK, as_plain, seed, within
from taskq.testing.faults import ChildProcess, in_a_fork
from taskq.testing.leaks import Held, new_keys
from taskq.testing.proxy import TcpProxy
from taskq.testing.transport_rig import TransportRig
from taskq.testing.transports_base import TransportBase

T = TypeVar("T")
_CHILDS_LEASE_S = 3.0


class ProcessTests(TransportBase):
    """Several processes on one broker, and what a kill -9 leaves."""

    def _child(self, rig: TransportRig, action: str, **task: Any) -> ChildProcess:
        rig.need(rig.caps.cross_process, "cross_process")
        # A lease that outlives a busy machine's pauses; the kill must return the work by the lease all the same.
        return ChildProcess(
            action,
            scheme=self.scheme,
            url=rig.url,
            options=as_plain(rig.options()),
            queue=rig.queue,
            lease_s=max(_CHILDS_LEASE_S, rig.lease_s),
            **task,
        )

    def test_messages_cross_processes(self, rig: TransportRig) -> None:
        """Check that a message of another process arrives, and ends the wait of a fetch that runs already."""
        with self._child(rig, "send", payloads=["a", "b", "c"]) as child:
            consumer = rig.consumer()
            deliveries = rig.collect(consumer, 3, seconds=self.patience_s * 2)
            child.said()
        assert [d.payload for d in deliveries] == [b"a", b"b", b"c"]

    def test_killing_a_consumer_returns_its_work(self, rig: TransportRig) -> None:
        """Check that all that a killed worker had not settled comes back within the lease, and nothing else.

        Counted, so that a task that kills its worker ends in the dead-letter queue.
        """
        rig.need(rig.caps.lease_scope is not LeaseScope.NONE, "leases")
        rig.send(*(f"{i}" for i in range(12)))
        with self._child(rig, "hold", n=10, ack=3) as child:
            said = child.said()
            consumer = rig.consumer()
            others = rig.collect(consumer, 2)
            assert not {d.payload.decode() for d in others} & {*said["held"], *said["acked"]}
            rig.nothing(consumer, why="a living process holds it")
            child.kill()
            back = rig.collect(consumer, 7, seconds=max(_CHILDS_LEASE_S, rig.lease_s) + self.slack_s)
        assert {d.payload.decode() for d in back} == set(said["held"])
        for delivery in back:
            rig.counts(delivery, 2)
        rig.ack(consumer, back + others)
        rig.nothing(consumer, why="the killed process had acknowledged it")

    def test_killing_a_sender_loses_nothing_accepted(self, rig: TransportRig) -> None:
        """Check that ``send`` returns when the broker has the message, not when it is on its way."""
        rig.need(rig.caps.durability is not Durability.PROCESS, "durability")
        payloads = [f"{i}" for i in range(50)]
        with self._child(rig, "send", payloads=payloads) as child:
            child.said()
            child.kill()
        assert sorted(d.payload.decode() for d in rig.collect(rig.consumer(), 50)) == sorted(payloads)

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_fork_after_open(self, rig: TransportRig) -> None:
        """Check that a forked child can open its own transport, and that the parent's goes on unharmed.

        The child drops the inherited objects: closing or even destroying one must not touch the parent's connection.
        """
        rig.send("from the parent")
        consumer = rig.consumer()
        held = rig.collect(consumer, 1)

        def child() -> None:
            nonlocal consumer
            del consumer
            rig.abandon()
            gc.collect()
            own = rig.open()
            if rig.caps.cross_process:
                rig.send("from the child", transport=own)
            else:
                rig.empty()
            own.close(timeout=2.0)

        parent_consumer = consumer
        error = in_a_fork(self.patience_s * 2, child)
        assert not error, f"the forked child failed: {error}"
        rig.send("after the fork")
        expected = {b"after the fork"} | ({b"from the child"} if rig.caps.cross_process else set())
        deliveries = rig.collect(parent_consumer, len(expected))
        assert {d.payload for d in deliveries} == expected
        rig.ack(parent_consumer, held + deliveries)
        parent_consumer.close()
        rig.empty()

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_an_inherited_transport_does_no_harm(self, rig: TransportRig) -> None:
        """Check that the parent's transport, used in a forked child, is refused or opens a connection of its own.

        Two processes that talk on one connection get each other's answers. It must not hang either.
        """
        rig.send("a")
        consumer = rig.consumer()
        held = rig.collect(consumer, 1)
        rig.empty()

        def child() -> None:
            calls: tuple[Callable[[], object], ...] = (
                lambda: rig.main.send([rig.outbound("from the child")]),
                lambda: consumer.fetch(1, 0.0),
                consumer.close,
            )
            for call in calls:
                try:
                    call()
                except TransportError:
                    pass
            rig.main.close(timeout=1.0)

        error = in_a_fork(self.patience_s * 2, child)
        assert not error, f"something else than a TransportError left an inherited transport: {error}"
        again, _ = rig.gather(consumer, 2, seconds=self.quiet_s * 2)
        assert {d.payload for d in again} <= {b"from the child"}, "the child gave back, or lost, what the parent holds"
        rig.ack(consumer, [*held, *again])
        rig.nothing(consumer)


class LeakTests(TransportBase):
    """What is not given back."""

    def _cycle(self, rig: TransportRig) -> None:
        transport = rig.open()
        consumer = rig.consumer(transport=transport)
        rig.send("a", transport=transport)
        rig.ack(consumer, rig.collect(consumer, 1))
        consumer.close()
        transport.close(timeout=2.0)
        rig.forget(transport)

    def test_closing_gives_everything_back(self, rig: TransportRig) -> None:
        """Check that ``close`` ends threads and closes sockets and files: a worker that reconnects must not grow."""
        self._cycle(rig)  # libraries keep some things for the life of the process
        held = Held()
        for _ in range(4):
            self._cycle(rig)
        held.check(self.patience_s / 2, "opening and closing a transport four times")

    def test_consumers_give_everything_back(self, rig: TransportRig) -> None:
        """Check that closing a consumer frees what it alone used, while the transport stays open."""
        transport = rig.open()

        def churn() -> None:
            consumer = rig.consumer(transport=transport)
            consumer.fetch(1, 0.0)
            consumer.close()

        churn()
        held = Held()
        for _ in range(10):
            churn()
        held.check(self.patience_s / 2, "opening and closing ten consumers")

    def test_a_failed_open_gives_everything_back(self, rig: TransportRig, url: str) -> None:
        """Check that an ``open`` that fails leaves nothing open: it is tried again and again while a server is down."""
        rig.need(rig.caps.network, "network")
        dead = self._dead_url(rig)

        def attempt() -> None:
            transport = rig.new(url=dead, **self.fault_options)
            with pytest.raises(TransportError):
                transport.open()
            transport.close(timeout=1.0)

        attempt()
        held = Held()
        for _ in range(3):
            attempt()
        held.check(self.patience_s / 2, "three failed attempts to connect")

    def _dead_url(self, rig: TransportRig) -> str:
        with TcpProxy(*self.proxy_target(rig.urls[0])) as proxy:
            port = proxy.port
        return self.through_proxy(rig.urls[0], port).raw()

    def test_no_keys_are_left_on_the_server(self, rig: TransportRig, url: str) -> None:
        """Check that consumers and transports take their keys, queues and rows along when they close."""
        self._cycle(rig)
        before = self.server_keys(url)
        rig.need(before is not None, "server_keys")
        for _ in range(4):
            self._cycle(rig)
        left = new_keys(before, self.server_keys(url))
        assert not left, f"left on the server: {sorted(left)[:10]}"

    def test_a_killed_consumers_keys_go_with_its_lease(self, rig: TransportRig, url: str) -> None:
        """Check that what a killed process leaves on the server is removed once its work was taken back."""
        rig.need(rig.caps.cross_process and rig.caps.lease_scope is not LeaseScope.NONE, "cross_process leases")
        self._cycle(rig)
        before = self.server_keys(url)
        rig.need(before is not None, "server_keys")
        rig.send("a")
        lease = max(1.0, rig.lease_s)
        options = as_plain(rig.options())
        task = {"scheme": self.scheme, "url": url, "options": options, "queue": rig.queue, "lease_s": lease}
        with ChildProcess("hold", n=1, ack=0, **task) as child:
            child.said()
        consumer = rig.consumer()
        rig.ack(consumer, rig.collect(consumer, 1, seconds=lease + self.slack_s))
        consumer.close()
        deadline = time.monotonic() + lease + self.slack_s
        while left := new_keys(before, self.server_keys(url)):
            assert time.monotonic() < deadline, f"left on the server by a killed process: {sorted(left)[:10]}"
            rig.nothing(rig.consumer(), 0.1)
            if isinstance(rig.main, SupportsPurge) and rig.caps.purge:
                rig.main.purge([rig.queue])


class NetworkTests(TransportBase):
    """A proxy between the plugin and its server. Only for transports that declare ``network``."""

    @contextmanager
    def _proxied(self, rig: TransportRig) -> Iterator[tuple[TcpProxy, Transport]]:
        rig.need(rig.caps.network, "network")
        with TcpProxy(*self.proxy_target(rig.urls[0])) as proxy:
            transport = rig.open(url=self._url(rig, proxy.port), **self.fault_options)
            yield proxy, transport
            proxy.heal()
            within(self.give_up_s, "close after a fault", lambda: transport.close(timeout=2.0))
            rig.forget(transport)

    def _url(self, rig: TransportRig, port: int) -> str:
        changed: Url = self.through_proxy(rig.urls[0], port)
        return changed.raw()

    def _persistently(self, what: str, call: Callable[[], T]) -> T:
        """Do what the kernel does: repeat after retryable errors, until it works or takes too long."""
        deadline = time.monotonic() + self.give_up_s
        while True:
            try:
                return within(self.give_up_s, what, call)
            except TransportError as error:
                if not error.retryable:
                    pytest.fail(f"{what} failed for good after a network fault: {error!r}")
                if time.monotonic() > deadline:
                    pytest.fail(f"{what} does not recover from a network fault: {error!r}")
                time.sleep(0.05)

    def _drain(self, rig: TransportRig, consumer: Consumer, wanted: set[bytes]) -> None:
        """Fetch and acknowledge until every wanted payload was seen."""
        missing = set(wanted)
        deadline = time.monotonic() + self.give_up_s * 2
        while missing:
            deliveries = self._persistently("fetch", lambda: consumer.fetch(10, 0.2)).deliveries
            missing -= {d.payload for d in deliveries}
            settlements = [Settlement(d.receipt) for d in deliveries]
            self._persistently("settle", lambda s=settlements: consumer.settle(s))  # type: ignore[misc]
            assert time.monotonic() < deadline, f"lost after a network fault: {sorted(missing)[:10]}"
        self._persistently("flush", lambda: consumer.flush(self.patience_s))

    def _send(self, rig: TransportRig, transport: Transport, payloads: list[str]) -> tuple[set[bytes], set[bytes]]:
        """Send through a fault; return what was accepted for certain, and what was refused for certain."""
        batch = [rig.outbound(p) for p in payloads]
        everything = {o.payload for o in batch}
        try:
            failures: list[SendFailure] = list(within(self.give_up_s, "send", lambda: transport.send(batch)))
        except TransportError:
            return set(), everything
        failed = {batch[f.index].payload for f in failures}
        return everything - failed, {batch[f.index].payload for f in failures if not f.maybe_sent}

    def _judge(self, rig: TransportRig, accepted: set[bytes], refused: set[bytes]) -> None:
        """Look on a sound connection at what has arrived."""
        consumer = rig.consumer()
        arrived = [*rig.gather(consumer, len(accepted))[0]]  # what was accepted must come: with patience
        arrived += rig.gather(consumer, 100, seconds=max(0.5, self.quiet_s * 4))[0]
        payloads = {d.payload for d in arrived}
        assert accepted <= payloads, f"accepted by send and lost: {sorted(accepted - payloads)[:5]}"
        both = refused & payloads
        assert not both, f"send said for certain that it did not send {sorted(both)[:5]}: it must say maybe_sent"
        rig.ack(consumer, arrived)
        consumer.close()

    # ------------------------------------------------------------------------------------------------- not there

    def test_a_server_that_is_not_there(self, rig: TransportRig) -> None:
        """Check that ``open`` without a server raises ConnectionFailed, retryable, naming the server, in time."""
        with self._proxied(rig) as (proxy, _):
            port = proxy.port
        transport = rig.new(url=self._url(rig, port), **self.fault_options)
        with pytest.raises(ConnectionFailed, match=f"{port}") as caught:
            within(self.give_up_s, "open", transport.open)
        assert caught.value.retryable

    def test_a_server_that_does_not_answer(self, rig: TransportRig) -> None:
        """Check that ``open`` gives up on a server that accepts and never says a word."""
        with self._proxied(rig) as (proxy, _):
            proxy.stall()
            transport = rig.new(url=self._url(rig, proxy.port), **self.fault_options)
            with pytest.raises(TransportError):
                within(self.give_up_s, "open", transport.open)

    def test_a_wrong_password(self, rig: TransportRig) -> None:
        """Check that refused credentials raise AuthenticationFailed, not retryable, without showing the password."""
        url = rig.urls[0]
        rig.need(rig.caps.network and url.password, "password in the url fixture")
        wrong = Url(url.scheme, url.username, "kit-wrong-password", url.host, url.port, url.path, url.query)
        transport = rig.new(url=wrong.raw())
        failed: AuthenticationFailed | None = None
        try:
            transport.open()
        except AuthenticationFailed as error:
            failed = error
        if failed is None:
            transport.close(timeout=1.0)
            pytest.skip("the server takes any password")
        assert "kit-wrong-password" not in f"{failed} {failed!r}"
        assert not failed.retryable

    # ------------------------------------------------------------------------------------------------ faults

    def test_a_slow_network(self, rig: TransportRig) -> None:
        """Check that nothing but speed changes when every packet takes 30 ms more."""
        with self._proxied(rig) as (proxy, transport):
            proxy.delay(0.03)
            consumer = rig.consumer(transport=transport)
            rig.send(*"abc", transport=transport)
            rig.ack(consumer, rig.collect(consumer, 3, seconds=self.give_up_s))
            consumer.close()
        rig.empty()

    @pytest.mark.parametrize("fault", ["cut", "half_close"])
    def test_a_connection_that_broke_while_idle(self, rig: TransportRig, fault: str) -> None:
        """Check that after a broken connection ``send``, ``fetch`` and ``settle`` reconnect by themselves."""
        with self._proxied(rig) as (proxy, transport):
            consumer = rig.consumer(transport=transport)
            rig.send("before", transport=transport)
            rig.ack(consumer, rig.collect(consumer, 1))
            getattr(proxy, fault)()
            time.sleep(0.05)

            def send() -> None:
                failures = transport.send([rig.outbound("after")])
                if failures:
                    assert failures[0].retryable
                    raise ConnectionFailed(failures[0].reason)

            self._persistently("send", send)
            self._drain(rig, consumer, {b"after"})

    @pytest.mark.parametrize("after", [0, 40, 700, 3000])
    def test_cut_in_the_middle_of_sending(self, rig: TransportRig, after: int) -> None:
        """Check that a connection cut while a batch goes out leaves no doubt unsaid.

        What ``send`` accepted arrives; what may have arrived is ``maybe_sent``; an error means that nothing did.
        """
        with self._proxied(rig) as (proxy, transport):
            rig.send("first", transport=transport)
            proxy.cut_after(after, "up")
            accepted, refused = self._send(rig, transport, [f"{i:03}-" + "x" * 200 for i in range(30)])
            proxy.heal()
            self._judge(rig, accepted | {b"first"}, refused)

    def test_an_answer_that_never_came(self, rig: TransportRig) -> None:
        """Check that a batch that the server took, but whose answer was lost, is ``maybe_sent`` and not denied."""
        with self._proxied(rig) as (proxy, transport):
            rig.send("first", transport=transport)
            proxy.swallow("down")
            proxy.cut_after(1, "down")
            accepted, refused = self._send(rig, transport, [f"{i}" for i in range(5)])
            proxy.heal()
            self._judge(rig, accepted | {b"first"}, refused)

    def test_a_stalled_server_hangs_nobody(self, rig: TransportRig) -> None:
        """Check that every call has a timeout: a server that stops answering must not stop the worker for good."""
        with self._proxied(rig) as (proxy, transport):
            consumer = rig.consumer(transport=transport)
            rig.send(*"abc", transport=transport)
            held = rig.collect(consumer, 1)
            proxy.stall()
            calls: list[tuple[str, Callable[[], object]]] = [
                ("send", lambda: transport.send([rig.outbound("in the dark")])),
                ("settle", lambda: consumer.settle([Settlement(d.receipt) for d in held])),
                ("flush", lambda: consumer.flush(1.0)),
                ("fetch", lambda: consumer.fetch(5, 0.2)),
            ]
            for what, call in calls:
                try:
                    within(self.give_up_s, f"{what} with a stalled server", call)
                except TransportError as error:
                    if not error.retryable:
                        pytest.fail(f"{what} with a stalled server failed for good: {error!r}")
            proxy.heal()
            self._drain(rig, consumer, {b"b", b"c"})

    def test_a_waiting_fetch_notices_a_cut(self, rig: TransportRig) -> None:
        """Check that a fetch that waits when its connection breaks does not wait for ever on a dead socket."""
        with self._proxied(rig) as (proxy, transport):
            consumer = rig.consumer(transport=transport)
            consumer.fetch(1, 0.0)

            def fault_then_message() -> None:
                time.sleep(0.2)
                proxy.cut()
                rig.send("after the cut")

            thread = threading.Thread(target=fault_then_message)
            thread.start()
            self._drain(rig, consumer, {b"after the cut"})
            thread.join()

    def test_held_messages_survive_a_cut(self, rig: TransportRig) -> None:
        """Check that a cut between fetch and settle loses nothing: what was not settled comes again."""
        with self._proxied(rig) as (proxy, transport):
            payloads = {b"%d" % i for i in range(10)}
            rig.send(*payloads, transport=transport)
            consumer = rig.consumer(transport=transport, credit=5)
            held = rig.collect(consumer, 5)
            proxy.cut()
            settlements = [Settlement(d.receipt) for d in held]
            self._persistently("settle", lambda: consumer.settle(settlements))
            self._drain(rig, consumer, payloads - {d.payload for d in held})
            consumer.close()
            final = rig.consumer()
            back, _ = rig.gather(final, 10, seconds=1.0)
            assert {d.payload for d in back} <= {d.payload for d in held}, "acknowledged messages came again"
            if rig.caps.delivery_count is DeliveryCount.EXACT:
                assert all(d.deliveries > 1 for d in back)

    def test_cuts_at_random_moments(self, rig: TransportRig) -> None:
        """Check that nothing is lost while the connection breaks again and again under load."""
        dice = random.Random(seed())
        with self._proxied(rig) as (proxy, transport):
            for round_ in range(40 if SOAK else 4):
                proxy.cut_after(dice.randrange(1, 4000), dice.choice(["up", "down"]))
                certain: set[bytes] = set()
                for i in range(5):
                    accepted, _ = self._send(rig, transport, [f"{round_}-{i}-{j}" for j in range(4)])
                    certain |= accepted
                proxy.cut_after(dice.randrange(1, 2000), dice.choice(["up", "down"]))
                consumer = self._persistently("consumer", lambda: rig.consumer(transport=transport))
                self._drain(rig, consumer, certain)
                consumer.close()
