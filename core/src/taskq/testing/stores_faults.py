"""Stores in several processes, leaks, and stores behind a broken network."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from taskq.errors import StoreError, StoreUnavailable
from taskq.spi import Durable, ReadableBy, ResultStore, SupportsWait
from taskq.testing.base import as_plain, eventually, within
from taskq.testing.faults import ChildProcess, in_a_fork
from taskq.testing.leaks import Held, new_keys
from taskq.testing.proxy import TcpProxy
from taskq.testing.stores_basic import StoreBase, StoreRig

T = TypeVar("T")


class ProcessTests(StoreBase):
    """Several processes on one store, forks and leaks."""

    def _child(self, rig: StoreRig, action: str, **task: Any) -> ChildProcess:
        rig.need(rig.caps.cross_process, "cross_process")
        options = as_plain(rig.options())
        return ChildProcess(action, scheme=self.scheme, url=rig.url, options=options, **task)

    def test_a_killed_writer_loses_nothing(self, rig: StoreRig) -> None:
        """Check that ``put`` returns when the server has the record: a kill right after it loses nothing."""
        rig.need(rig.caps.keeps is Durable.DURABLE, "durable records")
        record_id = rig.id()
        with self._child(rig, "put", id=record_id, payload="kept", reply=rig.main.reply_address()) as child:
            child.said()
            child.kill()
        rig.expect(record_id, b"kept")

    def test_another_process_ends_the_wait(self, rig: StoreRig) -> None:
        """Check that a result stored by another process ends a wait that runs already."""
        rig.need(isinstance(rig.main, SupportsWait), "waiting")
        assert isinstance(rig.main, SupportsWait)
        record_id = rig.id()
        with self._child(rig, "put", id=record_id, payload="pushed", reply=rig.main.reply_address()) as child:
            found = rig.main.wait([record_id], self.patience_s * 2)
            child.said()
        assert [r.payload for r in found] == [b"pushed"]

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_fork_after_open(self, rig: StoreRig) -> None:
        """Check that a forked child can open its own store, that the inherited one is refused, and no harm is done.

        The child drops the inherited objects: closing or even destroying one must not touch the parent's connection.
        """
        rig.need(rig.caps.readable_by is ReadableBy.ANYONE, "reading by anyone")
        before, after, own = (rig.record(rig.id()) for _ in range(3))
        assert not rig.main.put([before])

        def child() -> None:
            try:
                rig.main.get([before.id])
            except StoreError:
                pass
            else:
                raise AssertionError("an inherited store was used in a child process")
            rig.abandon()
            gc.collect()
            store = rig.open()
            assert not store.put([own])
            assert store.get([own.id]) != [None]
            store.close(timeout=2.0)

        error = in_a_fork(self.patience_s * 2, child)
        assert not error, f"the forked child failed: {error}"
        assert not rig.main.put([after])
        wanted = [before.id, after.id] + ([own.id] if rig.caps.cross_process else [])
        assert all(rig.main.get(wanted))

    def _cycle(self, rig: StoreRig) -> None:
        store = rig.open()
        record = rig.record(rig.id())
        store.put([record])
        if isinstance(store, SupportsWait):
            store.reply_address()
            store.wait([rig.id()], 0.01)
        store.get([record.id])
        store.delete([record.id])
        store.close(timeout=2.0)
        rig.forget(store)

    def test_closing_gives_everything_back(self, rig: StoreRig) -> None:
        """Check that ``close`` ends threads and closes sockets and files, the ones for waiting too."""
        rig.record(rig.id())
        self._cycle(rig)  # libraries keep some things for the life of the process
        held = Held()
        for _ in range(4):
            self._cycle(rig)
        held.check(self.patience_s / 2, "opening and closing a store four times")

    def test_no_keys_are_left_on_the_server(self, rig: StoreRig, url: str) -> None:
        """Check that reply addresses, locks and deleted records leave nothing behind on the server."""
        rig.record(rig.id())
        self._cycle(rig)
        before = self.server_keys(url)
        rig.need(before is not None, "server_keys")
        for _ in range(4):
            self._cycle(rig)
        left = new_keys(before, self.server_keys(url))
        assert not left, f"left on the server: {sorted(left)[:10]}"


class NetworkTests(StoreBase):
    """A proxy between the plugin and its server. Only for stores that declare ``network``."""

    @contextmanager
    def _proxied(self, rig: StoreRig) -> Iterator[tuple[TcpProxy, ResultStore]]:
        rig.need(rig.caps.network, "network")
        with TcpProxy(*self.proxy_target(rig.urls[0])) as proxy:
            store = rig.open(url=self._url(rig, proxy.port), **self.fault_options)
            yield proxy, store
            proxy.heal()
            within(self.give_up_s, "close after a fault", lambda: store.close(timeout=2.0))
            rig.forget(store)

    def _url(self, rig: StoreRig, port: int) -> str:
        return self.through_proxy(rig.urls[0], port).raw()

    def _persistently(self, what: str, call: Callable[[], T]) -> T:
        deadline = time.monotonic() + self.give_up_s
        while True:
            try:
                return within(self.give_up_s, what, call)
            except StoreError as error:
                if not error.retryable or time.monotonic() > deadline:
                    pytest.fail(f"{what} does not recover from a network fault: {error!r}")
                time.sleep(0.05)

    def test_a_server_that_is_not_there(self, rig: StoreRig) -> None:
        """Check that ``open`` without a server raises StoreUnavailable naming the server, in time, leaving nothing."""
        with self._proxied(rig) as (proxy, _):
            port = proxy.port

        def attempt() -> None:
            store = rig.new(url=self._url(rig, port), **self.fault_options)
            with pytest.raises(StoreUnavailable, match=f"{port}"):
                within(self.give_up_s, "open", store.open)
            store.close(timeout=1.0)

        attempt()
        held = Held()
        attempt()
        held.check(self.patience_s / 2, "a failed attempt to connect")

    @pytest.mark.parametrize("fault", ["cut", "half_close"])
    def test_a_connection_that_broke_while_idle(self, rig: StoreRig, fault: str) -> None:
        """Check that after a broken connection ``put`` and ``get`` reconnect by themselves."""
        rig.need(rig.caps.readable_by is ReadableBy.ANYONE, "reading by anyone")
        with self._proxied(rig) as (proxy, store):
            record = rig.record(rig.id())
            assert not store.put([record])
            getattr(proxy, fault)()
            time.sleep(0.05)
            assert self._persistently("get", lambda: store.get([record.id])) != [None]
            getattr(proxy, fault)()
            later = rig.record(rig.id())
            self._persistently("put", lambda: store.put([later]))
            rig.expect(later.id, b"result")

    @pytest.mark.parametrize("after", [0, 40, 700])
    def test_cut_in_the_middle_of_a_put(self, rig: StoreRig, after: int) -> None:
        """Check that a put that was cut raises StoreUnavailable or has stored all, and that repeating it works."""
        rig.need(rig.caps.readable_by is ReadableBy.ANYONE, "reading by anyone")
        with self._proxied(rig) as (proxy, store):
            store.get([rig.id()])
            proxy.cut_after(after, "up")
            records = [rig.record(rig.id(), b"x" * 200) for _ in range(20)]
            try:
                within(self.give_up_s, "put", lambda: store.put(records))
            except StoreUnavailable:
                proxy.heal()
                self._persistently("put", lambda: store.put(records))
            for record in records:
                rig.expect(record.id, b"x" * 200, "a put that was cut and repeated lost it")

    def test_a_stalled_server_hangs_nobody(self, rig: StoreRig) -> None:
        """Check that every call has a timeout and raises StoreUnavailable: the worker must go on with its leases."""
        with self._proxied(rig) as (proxy, store):
            record = rig.record(rig.id())
            store.get([record.id])
            proxy.stall()
            calls: list[tuple[str, Callable[[], object]]] = [
                ("put", lambda: store.put([record])),
                ("get", lambda: store.get([record.id])),
            ]
            for what, call in calls:
                with pytest.raises(StoreUnavailable):
                    within(self.give_up_s, f"{what} with a stalled server", call)
            proxy.heal()
            self._persistently("put", lambda: store.put([record]))

    def test_a_wait_survives_a_cut(self, rig: StoreRig) -> None:
        """Check that a wait whose connection breaks reconnects, or says so at once: the result must be found."""
        rig.need(isinstance(rig.main, SupportsWait), "waiting")
        with self._proxied(rig) as (proxy, store):
            assert isinstance(store, SupportsWait)
            waiting: SupportsWait = store
            record_id = rig.id()
            waiting.wait([record_id], 0.0)
            record = rig.record(record_id)
            record.reply = store.reply_address()
            proxy.cut()
            assert not rig.writer().put([record])

            def arrived() -> bool:
                try:
                    return bool(within(self.give_up_s, "wait", lambda: waiting.wait([record_id], 1.0)))
                except StoreUnavailable:
                    return False

            eventually(self.give_up_s, "the result arrives after a cut", arrived)
