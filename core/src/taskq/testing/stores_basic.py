"""What every result store must do: keep, supersede, expire."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import pytest

from taskq.errors import ResultTooLarge, StoreError
from taskq.message import Record
from taskq.spi import (
    Coordination,
    ReadableBy,
    ResultStore,
    StoreCapabilities,
    StoreConfig,
    StoreSpec,
    Support,
    SupportsStoreMaintenance,
    SupportsWait,
    Url,
    parse_urls,
)
from taskq.testing.base import Suite, eventually, select, unique
from taskq.testing.transports_base import wider

S = TypeVar("S")


def race(suite: Suite, stores: Sequence[S], work: Callable[[S, int, int], None], *, turns: int = 1) -> None:
    """Run ``work(store, number, turn)`` on a thread for each store, all beginning each turn at the same moment."""
    barrier = threading.Barrier(len(stores))
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            for turn in range(turns):
                barrier.wait(suite.patience_s * 2)
                work(stores[number], number, turn)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(suite.patience_s * 6)
        assert not thread.is_alive(), "a call hangs"
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])


class StoreRig:
    """One test's stores. ``id()`` makes record ids of this test's own."""

    def __init__(self, suite: StoreBase, url: str) -> None:
        self.suite = suite
        self.url = url
        self.urls = parse_urls(url)
        self.spec: StoreSpec = suite.load_spec()
        self._open: list[ResultStore] = []
        self._main: ResultStore | None = None

    def options(self, urls: tuple[Url, ...] | None = None, **more: Any) -> Any:
        return self.suite.options_for(self.spec, urls or self.urls, **more)

    def new(self, *, url: str | None = None, **options: Any) -> ResultStore:
        """Return a store that is not open."""
        urls = parse_urls(url) if url is not None else self.urls
        stripped = tuple(u.without_query() for u in urls)
        return self.spec.factory(StoreConfig(urls=stripped, options=self.options(urls, **options), app="kit"))

    def open(self, **arguments: Any) -> ResultStore:
        """Return one more open store on the same server."""
        store = self.new(**arguments)
        self._open.append(store)
        store.open()
        return store

    @property
    def main(self) -> ResultStore:
        """The store of the client that waits for results."""
        if self._main is None:
            self._main = self.open()
        return self._main

    @property
    def caps(self) -> StoreCapabilities:
        return self.main.capabilities

    def writer(self) -> ResultStore:
        """Return a store such as a worker has: another connection than the client's."""
        return self.open()

    def reader(self) -> ResultStore:
        """Return whoever may read: another connection, or only the caller's own."""
        return self.main if self.caps.readable_by is ReadableBy.CALLER else self.open()

    def need(self, declared: object, what: str) -> None:
        """Skip the test where a capability is not declared, or the suite has no hook for it."""
        if not declared:
            pytest.skip(f"{self.spec.name}: no {what}")

    def forget(self, store: ResultStore) -> None:
        """Leave a store, closed by the test, to the garbage collector."""
        if store in self._open:
            self._open.remove(store)

    def abandon(self) -> None:
        """Drop all stores without closing them: what a forked child does with what it inherited."""
        self._open.clear()
        self._main = None

    def close(self) -> None:
        for store in reversed(self._open):
            try:
                store.close(timeout=1.0)
            except Exception:  # noqa: S110  a test that failed half-way; its failure is what counts
                pass
        self._open.clear()

    def id(self, tag: str = "r") -> str:
        return unique(tag)

    def record(self, record_id: str, payload: bytes | str = b"result", **fields: Any) -> Record:
        """Return a record for this test's client."""
        data = payload.encode() if isinstance(payload, str) else payload
        fields.setdefault("state", "SUCCESS" if fields.get("terminal", True) else "STARTED")
        return Record(id=record_id, payload=data, reply=self.main.reply_address(), **fields)

    def read(self, record_id: str, store: ResultStore | None = None) -> Record | None:
        """Read one record; where results travel to the caller, wait for it to arrive."""
        reader = store or self.reader()
        if self.caps.readable_by is ReadableBy.CALLER:
            deadline = time.monotonic() + self.suite.patience_s
            while time.monotonic() < deadline:
                if (found := reader.get([record_id])[0]) is not None:
                    return found
                time.sleep(0.02)
        return reader.get([record_id])[0]

    def expect(self, record_id: str, payload: bytes, why: str = "") -> Record:
        found = self.read(record_id)
        assert found is not None, f"the record is not there; {why}"
        assert found.payload == payload, f"the record is {found.payload[:50]!r}, not {payload[:50]!r}; {why}"
        return found


class StoreBase(Suite):
    """What an author may set, and the fixture that all store tests use."""

    scheme: ClassVar[str]
    """URL scheme of the store, as its entry point is named."""
    ttl_s: ClassVar[float] = 1.0
    """The shortest time to live that the server keeps exactly; for some a whole second is the least."""
    fault_options: ClassVar[dict[str, Any]] = {}
    """Options for the tests with a broken network: short timeouts, so that they are quick."""
    give_up_s: ClassVar[float] = 15.0
    """How long a call may take, with ``fault_options``, when the server does not answer at all."""

    @pytest.fixture
    def url(self) -> str:
        """Return the URL of an empty store: the one fixture that an author must write."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture named url that returns a store's URL")

    def load_spec(self) -> StoreSpec:
        spec: StoreSpec = select("result_store", self.scheme)
        return spec

    def server_keys(self, url: str) -> set[str] | None:
        """Return the names of all that the store keeps on the server (keys, rows, queues), None where unknown."""
        return None

    def proxy_target(self, url: Url) -> tuple[str, int]:
        """Return the host and port to put the fault proxy in front of."""
        if not url.host or not url.port:
            pytest.fail("the url fixture has no host and port to put a proxy in front of: override proxy_target")
        return url.host, url.port

    def through_proxy(self, url: Url, port: int) -> Url:
        """Return the URL with the server replaced by the proxy on this machine's ``port``."""
        return Url(url.scheme, url.username, url.password, "127.0.0.1", port, url.path, url.query)

    @pytest.fixture
    def rig(self, url: str) -> Iterator[StoreRig]:
        rig = StoreRig(self, url)
        yield rig
        rig.close()


# (epoch, attempt, terminal) of what is there, of what comes, and whether it replaces.
_RULE: Sequence[tuple[tuple[int, int, bool], tuple[int, int, bool], bool]] = (
    ((0, 0, False), (0, 0, True), True),
    ((0, 0, False), (0, 0, False), True),
    ((0, 0, True), (0, 0, True), False),
    ((0, 0, True), (0, 0, False), False),
    ((0, 1, True), (0, 0, True), False),
    ((0, 1, False), (0, 0, True), False),
    ((0, 1, False), (0, 0, False), False),
    ((0, 0, True), (0, 1, True), True),
    ((0, 0, True), (0, 1, False), True),
    ((0, 9, True), (0, 10, True), True),
    ((0, 10, True), (0, 9, True), False),
    ((0, 5, True), (1, 0, True), True),
    ((0, 5, True), (1, 0, False), True),
    ((1, 0, True), (0, 5, True), False),
    ((1, 0, False), (0, 5, True), False),
    ((2, 1, True), (1, 9, True), False),
)


class KeepingTests(StoreBase):
    """Opening, keeping, superseding, expiring."""

    @pytest.mark.parametrize("run", [1, 2])
    def test_url_is_a_store_of_its_own(self, rig: StoreRig, run: int) -> None:
        """Check that the ``url`` fixture gives an empty store, or database, or prefix, to each test.

        Both runs find the id unknown and leave a record.
        """
        record = rig.record("kit-left-behind")
        assert rig.reader().get([record.id]) == [None], "the url fixture gave a store that another test has used"
        assert not rig.writer().put([record])

    def test_spec_is_of_this_scheme(self, rig: StoreRig) -> None:
        """Check that the spec lists the scheme, and that ``capabilities(options)`` answers without a server."""
        assert self.scheme in rig.spec.schemes
        assert isinstance(rig.spec.capabilities(rig.options()), StoreCapabilities)

    def test_capabilities_are_never_wider_than_the_spec_says(self, rig: StoreRig) -> None:
        """Check that ``spec.capabilities(options)`` is the widest set: what the open store promises is in it."""
        found = wider(rig.caps, rig.spec.capabilities(rig.options()))
        assert not found, f"wider after open than declared: {'; '.join(found)}"

    def test_capabilities_fit_together(self, rig: StoreRig) -> None:
        """Check the capabilities against each other and against the methods that the store has."""
        caps = rig.caps
        faults = []
        if caps.push and not isinstance(rig.main, SupportsWait):
            faults.append("push is declared, but there is no wait()")
        if caps.push and caps.cross_process and rig.main.reply_address() is None:
            faults.append("push is declared, but reply_address() is None")
        if caps.coordination != isinstance(rig.main, Coordination):
            faults.append(f"coordination is {caps.coordination}, the methods of Coordination say otherwise")
        if caps.max_batch < 1:
            faults.append("max_batch below 1")
        assert not faults, "; ".join(faults)

    def test_opening_and_closing_twice_does_no_harm(self, rig: StoreRig) -> None:
        """Check that a second ``open`` or ``close`` returns and does nothing, and ``close`` before ``open`` too."""
        store = rig.open()
        store.open()
        assert not store.put([rig.record(rig.id())])
        store.close(timeout=2.0)
        store.close(timeout=2.0)
        rig.new().close(timeout=1.0)

    def test_use_after_close_is_refused(self, rig: StoreRig) -> None:
        """Check that a closed store raises a StoreError that says so, not a client library's exception."""
        store = rig.open()
        record = rig.record(rig.id())
        store.close(timeout=2.0)
        for call in (lambda: store.put([record]), lambda: store.get([record.id]), lambda: store.delete([record.id])):
            with pytest.raises(StoreError):
                call()

    # -------------------------------------------------------------------------------------------------- keeping

    def test_roundtrip_keeps_every_field(self, rig: StoreRig) -> None:
        """Check that a record comes back as it was put: state, payload, attempt, epoch, terminal, follow-ups."""
        writer = rig.writer()
        record = rig.record(
            rig.id(), b"\x00\xffpayload", state="DEAD", terminal=True, attempt=3, epoch=2, follow_ups=b"\x00\x01later"
        )
        assert not writer.put([record])
        found = rig.expect(record.id, b"\x00\xffpayload")
        for name in ("id", "state", "payload", "terminal", "attempt", "epoch", "follow_ups"):
            assert getattr(found, name) == getattr(record, name), f"{name} has changed"
        assert isinstance(found.payload, bytes)

    @pytest.mark.parametrize(
        "payload",
        [b"", bytes(range(256)), "čeština \U0001f680".encode(), b"\r\n'\";\\%s{} \n", b"x" * 300_000],
        ids=["empty", "all-bytes", "utf-8", "specials", "300-kB"],
    )
    def test_payloads_are_kept_unchanged(self, rig: StoreRig, payload: bytes) -> None:
        """Check that payloads are opaque bytes: no text encoding, no terminator, no line ends."""
        if rig.caps.max_record_bytes is not None:
            payload = payload[: rig.caps.max_record_bytes - 1000]
        record = rig.record(rig.id(), payload)
        assert not rig.writer().put([record])
        rig.expect(record.id, payload)

    def test_a_non_terminal_record_is_kept(self, rig: StoreRig) -> None:
        """Check that a record of a task that has not ended (STARTED, RETRY) can be read."""
        rig.need(rig.caps.readable_by is ReadableBy.ANYONE, "reading by anyone")
        record = rig.record(rig.id(), b"half", terminal=False, state="RETRY", attempt=1)
        assert not rig.writer().put([record])
        found = rig.expect(record.id, b"half")
        assert (found.terminal, found.state) == (False, "RETRY")

    def test_get_answers_each_id_in_order(self, rig: StoreRig) -> None:
        """Check that ``get`` returns as many answers as ids, in their order, None for unknown, twice if asked twice."""
        a, b = rig.record(rig.id(), b"a"), rig.record(rig.id(), b"b")
        assert not rig.writer().put([a, b])
        rig.expect(a.id, b"a")
        rig.expect(b.id, b"b")
        found = rig.reader().get([b.id, rig.id(), a.id, b.id])
        assert [r.payload if r else None for r in found] == [b"b", None, b"a", b"b"]

    def test_empty_batches_are_fine(self, rig: StoreRig) -> None:
        """Check that an empty ``put``, ``get`` and ``delete`` do nothing."""
        assert list(rig.main.put([])) == []
        assert list(rig.main.get([])) == []
        rig.main.delete([])

    def test_any_number_of_records(self, rig: StoreRig) -> None:
        """Check that ``put``, ``get`` and ``delete`` split what is beyond ``max_batch``, and lose nothing."""
        n = min(rig.caps.max_batch * 2 + 1, 2_500)
        ids = [rig.id() for _ in range(n)]
        assert not rig.writer().put([rig.record(i, i) for i in ids])
        reader = rig.reader()
        rig.read(ids[-1], reader)
        assert [r.payload.decode() if r else None for r in reader.get(ids)] == ids
        reader.delete(ids)
        assert reader.get(ids) == [None] * n

    def test_deleted_is_gone_and_may_be_put_again(self, rig: StoreRig) -> None:
        """Check that ``delete`` forgets a record for everybody, takes unknown ids, and frees the id."""
        rig.need(rig.caps.readable_by is ReadableBy.ANYONE, "reading by anyone")
        record, other = rig.record(rig.id(), attempt=4), rig.record(rig.id())
        writer, reader = rig.writer(), rig.reader()
        assert not writer.put([record, other])
        reader.delete([record.id, rig.id()])
        for store in (reader, writer):
            assert [r is not None for r in store.get([record.id, other.id])] == [False, True]
        reader.delete([record.id])
        assert not writer.put([rig.record(record.id, b"again")])
        rig.expect(record.id, b"again")

    def test_ids_are_exact(self, rig: StoreRig) -> None:
        """Check that ids differ by case and by trailing characters: some databases compare loosely."""
        base = rig.id("Case")
        ids = [base, base.upper(), base.lower(), base + " ", base + ".", f"{base}%", f"{base}_"]
        assert not rig.writer().put([rig.record(i, i) for i in ids])
        for i in ids:
            rig.expect(i, i.encode(), "it was mixed up with another id")

    def test_long_ids(self, rig: StoreRig) -> None:
        """Check that an id of 200 characters, which users may choose, is kept whole."""
        base = "x" * 198
        assert not rig.writer().put([rig.record(f"{base}-{i}", f"{i}") for i in range(3)])
        for i in range(3):
            rig.expect(f"{base}-{i}", b"%d" % i)

    # ---------------------------------------------------------------------------------------------- superseding

    @pytest.mark.parametrize(("there", "comes", "replaces"), _RULE)
    def test_which_record_replaces_which(
        self, rig: StoreRig, there: tuple[int, int, bool], comes: tuple[int, int, bool], replaces: bool
    ) -> None:
        """Check the rule: later (epoch, attempt) wins; at the same, terminal beats non-terminal and is final."""
        rig.need(rig.caps.readable_by is ReadableBy.ANYONE, "reading by anyone")
        writer, record_id = rig.writer(), rig.id()
        old, new = (
            rig.record(record_id, name, epoch=epoch, attempt=attempt, terminal=terminal)
            for name, (epoch, attempt, terminal) in (("old", there), ("new", comes))
        )
        assert not writer.put([old])
        superseded = list(writer.put([new]))
        assert superseded == ([] if replaces else [record_id]), "put returns the ids that were not stored"
        rig.expect(record_id, b"new" if replaces else b"old", f"{there} was there, {comes} came")

    def test_repeating_a_put_is_reported_and_harmless(self, rig: StoreRig) -> None:
        """Check that the same terminal record put again, as after a lost answer, changes nothing and is reported."""
        rig.need(rig.caps.readable_by is ReadableBy.ANYONE, "reading by anyone")
        writer, record = rig.writer(), rig.record(rig.id())
        assert not writer.put([record])
        assert list(writer.put([record])) == [record.id]
        rig.expect(record.id, b"result")

    def test_one_batch_with_an_id_twice(self, rig: StoreRig) -> None:
        """Check that a batch is applied in its order: STARTED then SUCCESS of one id, and the other way round."""
        rig.need(rig.caps.readable_by is ReadableBy.ANYONE, "reading by anyone")
        writer, a, b, c = rig.writer(), rig.id(), rig.id(), rig.id()
        batch = [
            rig.record(a, "a1", terminal=False),
            rig.record(b, "b1"),
            rig.record(a, "a2"),
            rig.record(b, "b2", terminal=False),
            rig.record(c, "c1", attempt=1),
            rig.record(c, "c2"),
        ]
        assert sorted(writer.put(batch)) == sorted([b, c])
        for record_id, payload in ((a, b"a2"), (b, b"b1"), (c, b"c1")):
            rig.expect(record_id, payload)

    def test_a_superseded_record_does_not_hurt_its_batch(self, rig: StoreRig) -> None:
        """Check that the others of a batch are stored although one was superseded."""
        rig.need(rig.caps.readable_by is ReadableBy.ANYONE, "reading by anyone")
        writer, ids = rig.writer(), [rig.id() for _ in range(3)]
        assert not writer.put([rig.record(ids[1], "first")])
        assert list(writer.put([rig.record(i, "second") for i in ids])) == [ids[1]]
        for i, payload in zip(ids, (b"second", b"first", b"second"), strict=True):
            rig.expect(i, payload)

    def test_one_of_many_writers_wins(self, rig: StoreRig) -> None:
        """Check the rule under concurrent writers: of equal terminal records exactly one is stored, and stays."""
        rig.need(rig.caps.supersede_exact, "supersede_exact")
        ids = [rig.id() for _ in range(8)]
        stored: dict[str, list[int]] = {i: [] for i in ids}

        def put(store: ResultStore, n: int, turn: int) -> None:
            if not store.put([rig.record(ids[turn], f"{n}")]):
                stored[ids[turn]].append(n)

        race(self, [rig.open() for _ in range(4)], put, turns=8)
        for record_id, winners in stored.items():
            assert len(winners) == 1, f"{len(winners)} of 4 writers were told that theirs was stored"
            rig.expect(record_id, b"%d" % winners[0], "the winner's is not what is there")

    def test_the_latest_attempt_wins_under_concurrency(self, rig: StoreRig) -> None:
        """Check that writers of different attempts, in any order of arrival, leave the latest attempt."""
        rig.need(rig.caps.supersede_exact, "supersede_exact")
        ids = [rig.id() for _ in range(8)]

        def put(store: ResultStore, n: int, turn: int) -> None:
            attempt = (n + turn) % 4
            store.put([rig.record(ids[turn], f"{attempt}", attempt=attempt, terminal=attempt % 2 == 0)])

        race(self, [rig.open() for _ in range(4)], put, turns=8)
        for record_id in ids:
            rig.expect(record_id, b"3", "an earlier attempt replaced it")

    # ------------------------------------------------------------------------------------------- ttl and limits

    def test_records_expire(self, rig: StoreRig) -> None:
        """Check that a record is there until its ttl has passed and not after, whether or not anybody sweeps."""
        rig.need(rig.caps.ttl is not Support.NO, "ttl")
        writer, long = rig.writer(), rig.id("long")
        for ttl in (self.ttl_s, self.ttl_s * 10):
            short, started = rig.id("short"), time.monotonic()
            assert not writer.put([rig.record(short, ttl=ttl), rig.record(long, ttl=3600.0)])
            found = rig.read(short)
            if found is not None or time.monotonic() - started < ttl * 0.9:
                break  # else a machine this busy needs more time
        assert found is not None, "the record is not there"
        assert found.payload == b"result"
        reader = rig.reader()
        eventually(ttl + self.patience_s, "the record expires", lambda: reader.get([short])[0] is None)
        assert time.monotonic() - started >= ttl * 0.9, "the record was gone before its ttl"
        rig.expect(long, b"result")

    def test_an_expired_record_stands_in_nobodys_way(self, rig: StoreRig) -> None:
        """Check that a later put of an earlier attempt is stored once the better record has expired."""
        rig.need(rig.caps.ttl is not Support.NO and rig.caps.readable_by is ReadableBy.ANYONE, "ttl")
        writer, record_id = rig.writer(), rig.id()
        assert not writer.put([rig.record(record_id, "old", attempt=9, ttl=self.ttl_s)])
        eventually(self.ttl_s + self.patience_s, "the record expires", lambda: writer.get([record_id])[0] is None)
        assert not writer.put([rig.record(record_id, "new", attempt=0)])
        rig.expect(record_id, b"new")

    def test_a_new_record_has_its_own_ttl(self, rig: StoreRig) -> None:
        """Check that a record that replaces another lives by its own ttl, longer or shorter."""
        rig.need(rig.caps.ttl is not Support.NO and rig.caps.readable_by is ReadableBy.ANYONE, "ttl")
        writer, record_id = rig.writer(), rig.id()
        assert not writer.put([rig.record(record_id, "started", terminal=False, ttl=self.ttl_s)])
        assert not writer.put([rig.record(record_id, "done", ttl=3600.0)])
        time.sleep(self.ttl_s * 1.3)
        rig.expect(record_id, b"done", "it expired with the ttl of the record that it replaced")

    def test_sweeping_takes_only_what_expired(self, rig: StoreRig) -> None:
        """Check that ``maintain`` returns when it is due again and leaves living records alone."""
        rig.need(isinstance(rig.main, SupportsStoreMaintenance), "maintenance")
        assert isinstance(rig.main, SupportsStoreMaintenance)
        record = rig.record(rig.id())
        assert not rig.writer().put([record, rig.record(rig.id(), ttl=0.05)])
        time.sleep(0.1)
        assert rig.main.maintain(0.5) > 0
        rig.expect(record.id, b"result")

    def test_too_large_is_refused_as_a_whole(self, rig: StoreRig) -> None:
        """Check that beyond ``max_record_bytes`` ResultTooLarge is raised and nothing of the batch is stored."""
        limit = rig.caps.max_record_bytes
        rig.need(limit is not None and limit <= 1 << 26, "record limit")
        assert limit is not None
        small = rig.record(rig.id())
        writer = rig.writer()
        with pytest.raises(ResultTooLarge):
            writer.put([small, rig.record(rig.id(), b"x" * (limit + 1))])
        assert writer.get([small.id]) == [None]
        assert not writer.put([small])
