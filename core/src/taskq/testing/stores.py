"""The conformance suite for result stores."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from taskq.errors import StoreError
from taskq.message import Record
from taskq.spi import ReadableBy, ResultStore, SupportsWait
from taskq.testing.base import within
from taskq.testing.stores_basic import KeepingTests, StoreBase, StoreRig
from taskq.testing.stores_faults import NetworkTests, ProcessTests


class WaitingTests(StoreBase):
    """Waiting for results, waking, and calls from several threads."""

    def _waiting(self, rig: StoreRig) -> SupportsWait:
        rig.need(isinstance(rig.main, SupportsWait), "waiting")
        assert isinstance(rig.main, SupportsWait)
        return rig.main

    def _in_background(
        self, rig: StoreRig, ids: Sequence[str], timeout: float | None = None
    ) -> Callable[[], Sequence[Record]]:
        """Wait on another thread; the returned function gives what came, and fails if nothing ends the wait."""
        store = self._waiting(rig)
        store.wait([rig.id()], 0.0)  # the first one may connect
        box: list[Sequence[Record]] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                box.append(store.wait(ids, self.patience_s * 2 if timeout is None else timeout))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="kit: waiting for results", daemon=True)
        thread.start()
        time.sleep(0.1)

        def result() -> Sequence[Record]:
            thread.join(self.patience_s)
            if thread.is_alive():
                pytest.fail(f"wait still waits {self.patience_s:g} s after what should have ended it")
            if errors:
                raise errors[0]
            return box[0]

        return result

    def test_a_result_ends_the_wait(self, rig: StoreRig) -> None:
        """Check that a waiting client is told soon after another connection stored the record."""
        rig.need(isinstance(rig.main, SupportsWait), "waiting")
        writer, record_id = rig.writer(), rig.id()
        result = self._in_background(rig, [rig.id(), record_id])
        assert not writer.put([rig.record(record_id)])
        assert [(r.id, r.payload) for r in result()] == [(record_id, b"result")]

    def test_a_result_from_before_counts(self, rig: StoreRig) -> None:
        """Check that a record stored before the wait began is returned at once, each time that one waits for it."""
        store = self._waiting(rig)
        record_id = rig.id()
        assert not rig.writer().put([rig.record(record_id)])
        for _ in range(2):
            found = within(
                self.patience_s, "wait for a stored record", lambda: store.wait([record_id], self.patience_s * 2)
            )
            assert [r.id for r in found] == [record_id]
            if rig.caps.readable_by is ReadableBy.CALLER:
                break

    def test_a_non_terminal_record_ends_no_wait(self, rig: StoreRig) -> None:
        """Check that STARTED or RETRY do not end a wait; the end does."""
        rig.need(isinstance(rig.main, SupportsWait), "waiting")
        writer, record_id = rig.writer(), rig.id()
        result = self._in_background(rig, [record_id])
        assert not writer.put([rig.record(record_id, "no", terminal=False)])
        time.sleep(self.quiet_s)
        assert not writer.put([rig.record(record_id, "yes")])
        assert [r.payload for r in result()] == [b"yes"]

    def test_waiting_in_vain_takes_its_time(self, rig: StoreRig) -> None:
        """Check that ``wait`` waits as told (a busy loop otherwise) and returns nothing."""
        store = self._waiting(rig)
        store.wait([rig.id()], 0.0)
        started = time.monotonic()
        assert not store.wait([rig.id()], 0.4)
        waited = time.monotonic() - started
        assert waited >= 0.35, f"wait(timeout=0.4) came back after {waited:.2f} s with nothing"

    def test_waiting_for_many(self, rig: StoreRig) -> None:
        """Check that one call waits for hundreds of ids, and that calling again brings all of them."""
        store = self._waiting(rig)
        writer = rig.writer()
        pending = {rig.id() for _ in range(300)}
        wanted = sorted(pending)
        thread = threading.Thread(
            target=lambda: [writer.put([rig.record(i) for i in wanted[n : n + 50]]) for n in range(0, 300, 50)]
        )
        rig.record("x")  # the reply address exists before the other thread asks for it
        thread.start()
        deadline = time.monotonic() + self.patience_s * 3
        while pending and time.monotonic() < deadline:
            pending -= {r.id for r in store.wait(sorted(pending), 1.0)}
        thread.join()
        assert not pending, f"{len(pending)} of 300 results did not arrive"

    def test_wake_ends_the_wait(self, rig: StoreRig) -> None:
        """Check that ``wake`` ends a running wait, so that more ids can be added."""
        result = self._in_background(rig, [rig.id()])
        self._waiting(rig).wake()
        assert not result()

    def test_wake_before_wait_is_not_lost(self, rig: StoreRig) -> None:
        """Check that ``wake`` is sticky, and that one wake ends one wait only."""
        store = self._waiting(rig)
        store.wait([rig.id()], 0.0)
        store.wake()
        within(self.patience_s, "wait after wake", lambda: store.wait([rig.id()], self.patience_s * 2))
        waited = []
        for _ in range(3):
            started = time.monotonic()
            store.wait([rig.id()], 0.2)
            waited.append(time.monotonic() - started)
        assert max(waited) >= 0.15, f"after a wake wait(timeout=0.2) took {[f'{w:.3f}' for w in waited]} s"

    def test_close_ends_the_wait(self, rig: StoreRig) -> None:
        """Check that closing the store ends a wait that still runs, so that a program can end."""
        result = self._in_background(rig, [rig.id()])
        within(self.patience_s * 2, "close beside a wait", lambda: rig.main.close(timeout=3.0))
        try:
            result()
        except StoreError:  # that it is closed is a fair answer
            pass

    def test_reply_address_is_constant(self, rig: StoreRig) -> None:
        """Check that the address for pushed results is short ASCII and the same each time, or always None."""
        address = rig.main.reply_address()
        assert rig.main.reply_address() == address
        if address is not None:
            assert 0 < len(address) <= 200
            assert address.isascii()

    def test_a_record_for_nobody(self, rig: StoreRig) -> None:
        """Check that a record whose caller gave no address, or is long gone, is stored without an error."""
        writer = rig.writer()
        lost = rig.record(rig.id())
        lost.reply = None
        assert not writer.put([lost])
        if rig.caps.readable_by is ReadableBy.ANYONE:
            rig.expect(lost.id, b"result")

    def test_all_methods_from_many_threads(self, rig: StoreRig) -> None:
        """Check that ``put``, ``get`` and ``delete`` may be called by any thread at once, beside a wait."""
        waiting = isinstance(rig.main, SupportsWait)
        result = self._in_background(rig, [rig.id()], 3.0) if waiting else None
        rig.record("x")
        store: ResultStore = rig.main
        errors: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(15):
                    ids = [rig.id() for _ in range(3)]
                    assert not store.put([rig.record(i, i) for i in ids])
                    if rig.caps.readable_by is ReadableBy.ANYONE:
                        assert [r.payload.decode() if r else None for r in store.get(ids)] == ids
                        store.delete(ids[:1])
                        assert store.get(ids[:1]) == [None]
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self.patience_s * 4)
            assert not thread.is_alive(), "a call hangs"
        if errors:
            raise errors[0]
        if result is not None:
            assert isinstance(store, SupportsWait)
            store.wake()
            result()


# pytest runs the tests of the last base first.
class StoreSuite(ProcessTests, NetworkTests, WaitingTests, KeepingTests):
    """All that a result store promises, tested on a real server.

    Subclass it in a class named ``Test…`` with ``scheme`` and a fixture ``url`` that gives the URL of an empty store.
    Tests of what is not declared are skipped; what is declared and fails is red. ``StoreBase`` lists what else may be
    set.
    """
