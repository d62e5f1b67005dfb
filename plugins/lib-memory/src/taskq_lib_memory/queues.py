"""Queues in memory. Every method runs under the server's lock, and takes the time from its caller."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Any, Protocol

from msgspec import Struct

from taskq.message import Outbound, SendFailure

NEVER = float("inf")


class Entry(Struct, gc=False):
    """A message in a queue.

    ``at``: when it became ready; ``ended``: how many deliveries ended neither acknowledged nor handed back.
    """

    payload: bytes
    queue: str
    group: str | None
    priority: int
    at: float
    seq: int
    id: str
    ended: int = 0


class Holder(Protocol):
    """A consumer as the queues see it: what it holds, until when, and how to wake it."""

    held: dict[Any, Entry]
    deadline: float
    names: frozenset[str]

    def take_away(self) -> list[Entry]:
        """Give up all that is held, noting each receipt as lost; in the order of delivery."""
        ...

    def ring(self) -> None: ...


class Queue:
    """One queue: a line per priority, a heap of what is delayed, and the groups of an ordered queue.

    In an ordered queue a group's first message stands in its line or is in flight (then the group is *busy*); those
    behind it stand in ``behind``. Whatever delays or returns the first keeps the group busy.
    """

    __slots__ = ("behind", "busy", "delayed", "levels", "name", "ordered")

    def __init__(self, name: str, *, ordered: bool = False) -> None:
        self.name = name
        self.ordered = ordered
        self.levels: dict[int, deque[Entry]] = {p: deque() for p in range(9, -1, -1)}
        self.delayed: list[tuple[float, int, Entry, bool]] = []
        self.busy: set[str] = set()
        self.behind: dict[str, deque[Entry]] = {}

    def ready(self) -> int:
        return sum(map(len, self.levels.values())) + sum(map(len, self.behind.values()))

    def push(self, entry: Entry) -> None:
        """Put a message at the end of its line."""
        if self.ordered and entry.group is not None:
            if entry.group in self.busy:
                self.behind.setdefault(entry.group, deque()).append(entry)
                return
            self.busy.add(entry.group)
        self.levels[entry.priority].append(entry)

    def take(self, n: int, into: list[Entry]) -> int:
        """Move up to ``n`` messages, highest priority first; return how many are still wanted."""
        for line in self.levels.values():
            if line:
                have = len(line)
                if have <= n:
                    into.extend(line)
                    line.clear()
                    n -= have
                else:
                    pop = line.popleft
                    into.extend([pop() for _ in range(n)])
                    return 0
                if not n:
                    return 0
        return n

    def put_back(self, entries: Sequence[Entry]) -> None:
        """Put messages that were taken at the head of their lines, in the order given."""
        for entry in reversed(entries):
            self.levels[entry.priority].appendleft(entry)

    def finished(self, group: str) -> bool:
        """Let the next message of a group in; whether there was one."""
        behind = self.behind.get(group)
        if not behind:
            self.busy.discard(group)
            return False
        entry = behind.popleft()
        if not behind:
            del self.behind[group]
        self.levels[entry.priority].append(entry)
        return True

    def promote(self, now: float) -> int:
        """Move what is due from the heap to the lines; return how many."""
        moved = 0
        while self.delayed and self.delayed[0][0] <= now:
            due, _, entry, keeps_group = heappop(self.delayed)
            entry.at = due
            if keeps_group:
                self.levels[entry.priority].append(entry)
            else:
                self.push(entry)
            moved += 1
        return moved

    def purge(self, in_flight: Iterable[Entry]) -> int:
        """Drop all but what is in flight."""
        dropped = self.ready() + len(self.delayed)
        for line in self.levels.values():
            line.clear()
        self.delayed.clear()
        self.behind.clear()
        self.busy = {e.group for e in in_flight if e.group is not None} if self.ordered else set()
        return dropped

    def waiting(self) -> Iterator[Entry]:
        """All ready messages, in about the order of delivery."""
        for priority, line in self.levels.items():
            yield from line
            for behind in self.behind.values():
                yield from (e for e in behind if e.priority == priority)


class Queues:
    """All queues of one server, who holds messages, and who waits for some."""

    def __init__(self) -> None:
        self.by_name: dict[str, Queue] = {}
        self.holders: dict[Holder, None] = {}
        self.waiting: dict[Holder, None] = {}
        self.next_due = NEVER
        self.next_receipt = 1
        self._seq = 0

    def queue(self, name: str) -> Queue:
        """Return a queue, made where it is missing."""
        found = self.by_name.get(name)
        if found is None:
            found = self.by_name[name] = Queue(name)
        return found

    def send(self, batch: Sequence[Outbound], now: float) -> list[SendFailure]:
        """Queue messages; those with an impossible priority are refused one by one."""
        failures: list[SendFailure] = []
        seq = self._seq
        name = None
        names: set[str] = set()
        for index, message in enumerate(batch):
            if message.queue != name:
                name = message.queue
                queue = self.queue(name)
                levels = queue.levels
                ordered = queue.ordered
                names.add(name)
            priority = message.priority
            if priority not in levels:
                reason = f"priority {priority!r} of message {message.id} is not from 0 to 9"
                failures.append(SendFailure(index, reason, retryable=False))
                continue
            seq += 1
            entry = Entry(message.payload, name, message.group, priority, now, seq, message.id)
            if message.delay > 0.0:
                self.delay(entry, now + message.delay)
            elif ordered:
                queue.push(entry)
            else:
                levels[priority].append(entry)
        self._seq = seq
        if self.waiting:
            for name in names:
                self.notify(name, len(batch))
        return failures

    def delay(self, entry: Entry, due: float, *, keeps_group: bool = False) -> None:
        heappush(self.queue(entry.queue).delayed, (due, entry.seq, entry, keeps_group))
        self.next_due = min(self.next_due, due)

    def promote(self, now: float) -> None:
        """Make due messages ready."""
        if now < self.next_due:
            return
        for queue in self.by_name.values():
            if queue.delayed and (moved := queue.promote(now)):
                self.notify(queue.name, moved)
        self.next_due = min((q.delayed[0][0] for q in self.by_name.values() if q.delayed), default=NEVER)

    def notify(self, name: str, n: int) -> None:
        """Wake up to ``n`` consumers that wait for a queue, the longest waiting first."""
        for holder in list(self.waiting):
            if name in holder.names:
                # Out of the list: the next message wakes another one, as this one will look at the queue anyway.
                del self.waiting[holder]
                holder.ring()
                n -= 1
                if n <= 0:
                    return

    def give_back(self, entries: Sequence[Entry]) -> None:
        """Put messages of any queues at the heads of their lines."""
        by_queue: dict[str, list[Entry]] = {}
        for entry in entries:
            by_queue.setdefault(entry.queue, []).append(entry)
        for name, group in by_queue.items():
            self.queue(name).put_back(group)
            if self.waiting:
                self.notify(name, len(group))

    def finished(self, entry: Entry) -> None:
        """Let the next of an ended message's group in."""
        queue = self.by_name.get(entry.queue)
        if queue is not None and queue.ordered and entry.group is not None and queue.finished(entry.group):
            self.notify(queue.name, 1)

    def reap(self, now: float) -> float:
        """Take back what consumers hold whose lease ended; return when the next lease ends at the earliest."""
        soonest = NEVER
        for holder in list(self.holders):
            if not holder.held:
                continue
            if holder.deadline > now:
                soonest = min(soonest, holder.deadline)
                continue
            lost = holder.take_away()
            for entry in lost:
                entry.ended += 1
            del self.holders[holder]
            self.give_back(lost)
        return soonest

    def in_flight(self, name: str) -> list[Entry]:
        return [e for h in self.holders for e in h.held.values() if e.queue == name]
