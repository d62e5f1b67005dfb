"""A consumer: what it holds, how it waits, and the one-step commit with the result store of the same database.

The intake thread has one connection (claims, housekeeping, LISTEN), the settling thread another. What both know is
guarded by a lock that is never held over a statement.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from taskq.errors import TaskQError, TransportClosed
from taskq.message import RELEASE, Commit, Delivery, Fetched, Lost, Record, Settlement
from taskq_lib_sqlalchemy.bell import Bell, Ears
from taskq_lib_sqlalchemy.strategy import Claim, Ending
from taskq_transport_sqlalchemy.shares import Shares

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from taskq.spi import Committer, Receipt, ResultStore, SubscribeOrder, Subscription
    from taskq_transport_sqlalchemy.transport import SqlTransport

_UNLIMITED = 1 << 62
_CLAIM_LIMIT = 1000
_SETTLE_LIMIT = 1000
_COMMIT_BYTES = 16_000_000
_LOOK_AGAIN = (0.015, 0.1)
"""When to look again after telling senders to notify: one that began before may not have heard it. Seconds."""
_UPKEEP_SHORTEST, _UPKEEP_LONGEST = 0.003, 1.0
_STRAYS_FOR = 60.0
"""Seconds after a claim without an answer in which it may still be carried out: a proxy may have held it back."""
_ORPHANS_EVERY = 60.0
_BUSY_CLAIMS = 3
"""So many full claims in a row, and this consumer does not want to be notified any more."""


class _Held(NamedTuple):
    id: int
    size: int


class SqlConsumer:
    """Holds messages under the lease of its row in the consumers' table."""

    def __init__(self, transport: SqlTransport, lease_s: float) -> None:
        self._transport = transport
        self._strategy = transport.strategy
        self._options = transport.options
        self._lease_s = lease_s
        self._pushed = transport.pushed
        self._intake = transport.database.link(setup=self._set_up_intake, listens=self._pushed)
        self._settling = transport.database.link()
        self._ears = Ears(self._intake)
        self._bell = Bell()
        self._closed = False

        self._lock = threading.Lock()  # guards what follows, up to the blank line
        self._me: int | None = None
        self._held: dict[int, _Held] = {}
        self._held_bytes = 0
        self._credit = _UNLIMITED
        self._max_bytes = _UNLIMITED
        self._lost: dict[Receipt, Lost] = {}
        self._accepted: list[Delivery] = []
        self._starved = False

        self._unsure: set[int] = set()  # receipts whose settlement broke off; the settling thread's
        self._receipts = count(1)
        self._woken = False
        self._shares = Shares()
        self.queues: frozenset[str] = frozenset()
        self._interval = self._options.poll_min
        self._hot = False
        self._full_claims = 0
        self._ringing = False
        self._look_again: list[float] = []
        self._renewed = 0.0
        self._upkeep_at = 0.0
        self._orphans_at = monotonic() + _ORPHANS_EVERY
        self._strays_until = 0.0
        self._register()
        transport.neighbours.add_consumer(self)

    # ------------------------------------------------------------------------------------------------- connections

    def _set_up_intake(self, connection: Connection) -> None:
        if connection.dialect.name == "postgresql" and not self._options.durable_claims:
            # A claim undone by a crash of the server is a message delivered again, which a crash may cause anyway.
            connection.exec_driver_sql("SET synchronous_commit = off")

    def _check(self) -> None:
        if self._closed:
            raise TransportClosed("this consumer is closed; make another with Transport.consumer()")

    def _register(self) -> int:
        info = f"{socket.gethostname()}:{os.getpid()}"
        me = self._intake.run(
            lambda connection: self._strategy.register(connection, self._lease_s, info), "registering a consumer"
        )
        with self._lock:
            self._me = me
        self._renewed = monotonic()
        self._ringing = False
        return me

    def _forfeit(self, me: int) -> None:
        """The server has given this consumer up: nothing is held any more."""
        with self._lock:
            if self._me != me:
                return
            self._me = None
            for receipt in self._held:
                self._lost[receipt] = Lost(receipt, "the lease ended: it was not extended in time")
            self._held.clear()
            self._held_bytes = 0

    def _take_lost(self) -> list[Lost]:
        if not self._lost:
            return []
        with self._lock:
            lost = list(self._lost.values())
            self._lost.clear()
        return lost

    # ------------------------------------------------------------------------------------------------------ intake

    def subscribe(self, queues: Sequence[Subscription], *, order: SubscribeOrder = "fair") -> None:
        self._check()
        self._transport.know(subscription.queue for subscription in queues)
        self._shares = Shares(queues, order)
        self.queues = frozenset(self._shares.names)
        self._hot = True  # look at once
        if self._pushed:
            self._ears.listen(self._transport.channel(queue) for queue in self.queues)

    def credit(self, n: int, max_bytes: int) -> None:
        with self._lock:
            self._credit, self._max_bytes = n, max_bytes
        self._bell.ring()

    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        self._check()
        deadline = monotonic() + wait
        try:
            while True:
                if not self._accepted:
                    self._look(limit)
                deliveries, lost = self._hand_out()
                if deliveries or lost or self._woken:
                    return Fetched(deliveries, lost)
                left = deadline - monotonic()
                if left <= 0:
                    return Fetched()
                self._wait(left)
        finally:
            self._woken = False

    def _hand_out(self) -> tuple[list[Delivery], list[Lost]]:
        with self._lock:
            deliveries = [delivery for delivery in self._accepted if delivery.receipt in self._held]
            lost = list(self._lost.values())
            self._accepted.clear()
            self._lost.clear()
        return deliveries, lost

    def _look(self, limit: int) -> None:
        """Take what is there, without waiting, into ``_accepted``: there it is safe if what follows is interrupted."""
        if monotonic() >= self._upkeep_at:
            self._upkeep()
        if not self.queues:
            return
        plan = self._shares.plan(min(limit, _CLAIM_LIMIT))
        for _ in range(2):  # the second time for what other queues have left of their shares
            with self._lock:
                me = self._me
                room = min(limit, _CLAIM_LIMIT, self._credit - len(self._held))
                budget = self._max_bytes - self._held_bytes
                lone = not self._held
                self._starved = room <= 0 or (budget <= 0 and not lone)
                if self._starved:
                    return
            if me is None:
                me = self._register()
            if (self._strategy.looks_first or (self._strategy.probes and not self._hot)) and not self._anything(me):
                return
            claim = self._claim(me, plan, room, budget, lone=lone)
            if not claim.alive:
                self._forfeit(me)
                self._hot = True
                continue
            self._accept(me, claim, budget)
            limit -= len(claim.rows)
            counts = Counter(row.queue for row in claim.rows)
            self._shares.took(counts)
            plan = [(queue, limit) for queue, quota in plan if counts[queue] >= quota]
            if limit <= 0 or claim.blocked or not plan:
                break
        self._account(limit <= 0, bool(self._accepted))

    def _claim(self, me: int, plan: Sequence[tuple[str, int]], room: int, budget: int, *, lone: bool) -> Claim:
        try:
            claim = self._intake.run(
                lambda connection: self._strategy.claim(connection, me, plan, room, budget, lone=lone),
                "claiming messages",
            )
        except BaseException:
            # It may have been done, and we hold what we do not know.
            self._strays_until = monotonic() + self._options.command_timeout + _STRAYS_FOR
            self._upkeep_at = 0.0
            raise
        if claim.due_in is not None:
            self._upkeep_at = min(self._upkeep_at, monotonic() + max(_UPKEEP_SHORTEST, claim.due_in))
        return claim

    def _accept(self, me: int, claim: Claim, budget: int) -> None:
        with self._lock:
            if self._me != me:  # the settling thread has just learnt that the lease is gone
                return
            for row in claim.rows:
                receipt = next(self._receipts)
                self._held[receipt] = _Held(row.id, row.size)
                self._held_bytes += row.size
                self._accepted.append(Delivery(row.payload, receipt, row.queue, row.deliveries, row.group))
            if claim.blocked:
                self._starved = True
                if self._max_bytes - self._held_bytes > budget - sum(row.size for row in claim.rows):
                    self._bell.ring()  # settled meanwhile: look again

    def _account(self, full: bool, some: bool) -> None:
        self._hot = some
        if some:
            self._interval = self._options.poll_min
        self._full_claims = self._full_claims + 1 if full else 0
        if self._ringing and self._full_claims >= _BUSY_CLAIMS:
            self._set_ring(False)

    def _set_ring(self, ring: bool) -> None:
        me = self._me
        if me is not None:
            self._intake.run(lambda connection: self._strategy.set_ring(connection, me, ring=ring), "preparing to wait")
            self._ringing = ring

    def _anything(self, me: int) -> bool:
        """Whether a look makes it worth while to claim."""
        probe = self._intake.run(
            lambda connection: self._strategy.probe(connection, me, self._shares.names), "looking for messages"
        )
        if probe.due_in is not None:
            self._upkeep_at = min(self._upkeep_at, monotonic() + max(_UPKEEP_SHORTEST, probe.due_in))
        if probe.due_in is not None and probe.due_in <= 0:
            self._upkeep()
            return True
        return probe.ready or not probe.alive

    # ----------------------------------------------------------------------------------------------------- waiting

    def _wait(self, left: float) -> None:
        left = min(left, max(0.0, self._upkeep_at - monotonic()))
        if self._starved:
            self._bell.wait(left)
        elif self._pushed and self.queues:
            changed = self._ears.refresh()
            if not self._ringing:
                self._set_ring(True)
                self._look_again = [monotonic() + later for later in _LOOK_AGAIN]
                changed = True
            if changed:
                return  # something may have come before we listened, or before senders knew that we do
            while self._look_again and self._look_again[0] <= monotonic():
                self._look_again.pop(0)
            if self._look_again:
                left = min(left, max(0.001, self._look_again[0] - monotonic()))
            # What is heard needs no reading: the claim that comes next takes it off the socket, upkeep off the driver.
            self._bell.wait(left, self._ears.fileno())
        else:
            self._bell.wait(min(left, self._interval))
            self._interval = min(self._options.poll_max, self._interval * 1.5)

    def look(self) -> None:
        """Look for messages soon: somebody in this process has sent some."""
        self._interval = self._options.poll_min
        self._bell.ring()

    def wake(self) -> None:
        self._woken = True
        self._bell.ring()

    # ------------------------------------------------------------------------------------------------------ upkeep

    def _upkeep(self) -> None:
        """Renew the lease when nobody else does, promote and reap what is due, and see when to come again."""
        now = monotonic()
        longest = min(_UPKEEP_LONGEST, self._lease_s / 3)
        self._upkeep_at = now + longest
        me = self._me
        if me is None:
            return
        strategy = self._strategy

        def work(connection: Connection) -> bool:
            if now - self._renewed > self._lease_s / 2 and not strategy.renew(connection, me, self._lease_s):
                return False
            if now < self._strays_until:
                with self._lock:
                    known = [held.id for held in self._held.values()]
                strategy.release_strays(connection, me, known)
            probe = strategy.probe(connection, me, ())
            if probe.due_in is not None and probe.due_in <= 0:
                while strategy.promote(connection):
                    pass
            if probe.expiry_in is not None and probe.expiry_in <= 0:
                strategy.reap(connection)
            if now >= self._orphans_at:
                self._orphans_at = now + _ORPHANS_EVERY
                strategy.adopt_orphans(connection)
            for wait in (probe.due_in, probe.expiry_in):
                if wait is not None:
                    self._upkeep_at = min(self._upkeep_at, max(monotonic() + _UPKEEP_SHORTEST, now + wait))
            return True

        if self._intake.run(work, "keeping house"):
            if now - self._renewed > self._lease_s / 2:
                self._renewed = now
        else:
            self._forfeit(me)
        if self._pushed:
            self._ears.heard()

    # ---------------------------------------------------------------------------------------------------- settling

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        self._check()
        lost: list[Lost] = []
        for start in range(0, len(settlements), _SETTLE_LIMIT):
            lost += self._settle(settlements[start : start + _SETTLE_LIMIT])
        return lost

    def _settle(self, settlements: Sequence[Settlement]) -> list[Lost]:
        me, known, lost = self._sort_out([settlement.receipt for settlement in settlements])
        acks: list[int] = []
        releases: dict[tuple[float, bool], list[int]] = {}
        for settlement in settlements:
            held = known.get(settlement.receipt)
            if held is None:
                continue
            if settlement.kind == RELEASE:
                releases.setdefault((settlement.delay, settlement.counted), []).append(held.id)
            else:
                acks.append(held.id)
        if me is None or not known:
            return lost

        def work(connection: Connection) -> set[int]:
            done = self._strategy.acknowledge(connection, me, acks) if acks else set()
            for (delay, counted), ids in releases.items():
                done |= self._strategy.release(connection, me, ids, delay, counted=counted)
            return done

        lost += self._finish(me, known, self._attempt(known, work, "settling messages"))
        if releases:
            self._transport.neighbours.sent(self.queues)
        return lost

    def _sort_out(self, receipts: Sequence[Receipt]) -> tuple[int | None, dict[int, _Held], list[Lost]]:
        """Return who we are, what of these we hold, and the losses; a receipt named twice counts once."""
        known: dict[int, _Held] = {}
        lost: list[Lost] = []
        with self._lock:
            for receipt in receipts:
                held = self._held.get(receipt) if isinstance(receipt, int) else None
                if held is not None and isinstance(receipt, int) and receipt not in known:
                    known[receipt] = held
                else:
                    self._lost.pop(receipt, None)
                    lost.append(Lost(receipt, "not held: its lease ended, or it was settled before"))
            return self._me, known, lost

    def _attempt(self, known: dict[int, _Held], work: Callable[[Connection], set[int]], what: str) -> set[int]:
        try:
            return self._settling.run(work, what)
        except BaseException:
            self._unsure.update(known)
            raise

    def _finish(self, me: int, known: dict[int, _Held], done: set[int]) -> list[Lost]:
        """Forget what was settled, held or not; return what turned out not to be held."""
        missing = {receipt for receipt, held in known.items() if held.id not in done}
        if missing and self._unsure:
            # What an earlier attempt that broke off has settled is not lost, as long as nobody has reaped us since.
            again = missing.intersection(self._unsure)
            if again and self._alive(me):
                missing -= again
        self._unsure.difference_update(known)
        lost = []
        with self._lock:
            for receipt in known:
                held = self._held.pop(receipt, None)
                if held is not None:
                    self._held_bytes -= held.size
                if receipt in missing:
                    self._lost.pop(receipt, None)
                    lost.append(Lost(receipt, "the lease ended before it was settled"))
            starved = self._starved
        if starved:
            self._bell.ring()
        return lost

    def _alive(self, me: int) -> bool:
        return self._settling.run(lambda c: self._strategy.alive(c, me), "looking after a broken settlement")

    def flush(self, timeout: float) -> Sequence[Lost]:
        self._check()
        return ()  # settle has waited for the server

    def extend(self, receipts: Sequence[Receipt] | None = None) -> Sequence[Lost]:
        self._check()
        me = self._me
        if me is not None:
            if self._settling.run(lambda c: self._strategy.renew(c, me, self._lease_s), "extending the lease"):
                self._renewed = monotonic()
            else:
                self._forfeit(me)
                self._bell.ring()
        return self._take_lost()

    def fuse(self, store: ResultStore) -> Committer | None:
        return SqlCommitter(self) if getattr(store, "instance", None) == self._transport.instance else None

    def commit(self, commits: Sequence[Commit]) -> list[Lost]:
        """As ``Committer.commit``, for at most as many as one statement should carry."""
        self._check()
        me, known, lost = self._sort_out([commit.settlement.receipt for commit in commits])
        if me is None or not known:
            return lost
        endings: list[Ending] = []
        released: list[tuple[Settlement, Ending]] = []
        seen: set[Receipt] = set()
        for commit in commits:
            settlement = commit.settlement
            held = known.get(settlement.receipt)
            if held is None or settlement.receipt in seen:
                continue
            seen.add(settlement.receipt)
            ending = Ending(held.id, commit.record, commit.follow_ups)
            if settlement.kind == RELEASE:
                released.append((settlement, ending))
            else:
                endings.append(ending)
        records: list[Record] = [e.record for e in endings if e.record is not None]
        queues = {out.queue for e in endings for out in e.follow_ups}
        self._transport.know(queues)

        def work(connection: Connection) -> set[int]:
            done = self._strategy.commit(connection, me, endings) if endings else set()
            for settlement, ending in released:
                done |= self._strategy.commit_release(
                    connection, me, ending, settlement.delay, counted=settlement.counted
                )
            return done

        done = self._attempt(known, work, "committing outcomes")
        lost += self._finish(me, known, done)
        self._tell(queues, records, released=bool(released))
        return lost

    def _tell(self, queues: set[str], records: Sequence[Record], *, released: bool) -> None:
        neighbours = self._transport.neighbours
        if self._strategy.pushes and (queues or any(record.reply for record in records)):
            try:
                self._settling.run(lambda c: self._strategy.tell(c, queues, records), "notifying")
            except TaskQError:
                pass  # the work is done; who waits looks by himself now and then
        if records:
            neighbours.stored()
        if queues or released:
            neighbours.sent(queues | self.queues if released else queues)

    # ------------------------------------------------------------------------------------------------------- close

    def close(self) -> None:
        if self._closed or self._transport.database.inherited:
            return
        self._closed = True
        me = self._me
        if me is not None:
            with self._lock:
                ids = [held.id for held in self._held.values()]
                self._held.clear()
                self._me = None

            def work(connection: Connection) -> None:
                for start in range(0, len(ids), _SETTLE_LIMIT):
                    self._strategy.release(connection, me, ids[start : start + _SETTLE_LIMIT], 0.0, counted=False)
                if self._strays_until:
                    self._strategy.release_strays(connection, me, ())
                self._strategy.unregister(connection, me)

            try:
                self._settling.run(work, "handing back")
            except TaskQError:
                pass  # what could not be handed back returns when the lease ends
            if ids:
                self._transport.neighbours.sent(self.queues)
        self._transport.forget(self)
        self._intake.close()
        self._settling.close()
        self._bell.ring()


class SqlCommitter:
    """Record, follow-ups and settlement in one transaction."""

    def __init__(self, consumer: SqlConsumer) -> None:
        self._consumer = consumer

    def commit(self, commits: Sequence[Commit]) -> Sequence[Lost]:
        lost: list[Lost] = []
        part: list[Commit] = []
        size = 0
        for commit in commits:
            length = _size(commit)
            if part and (len(part) == _SETTLE_LIMIT or size + length > _COMMIT_BYTES):
                lost += self._consumer.commit(part)
                part, size = [], 0
            part.append(commit)
            size += length
        lost += self._consumer.commit(part)
        return lost


def _size(commit: Commit) -> int:
    record = commit.record
    own = 0 if record is None else len(record.payload) + len(record.follow_ups or b"")
    return own + sum(len(out.payload) for out in commit.follow_ups)
