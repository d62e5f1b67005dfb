"""One queue in the hub: ten lines, a heap of what is delayed, and the groups of an ordered queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from taskq_lib_zeromq.protocol import Message

if TYPE_CHECKING:
    from taskq_lib_zeromq.hub.consumers import Consumer

_LOOK = 1000
"""Most messages at the head of a line that are looked at for their age when others are put back."""


class Queue:
    """Every operation costs the same whatever the length.

    In an ordered queue a group's first message stands in its line, is delayed or is in flight: the group is *busy*.
    Those behind it stand in ``behind``.
    """

    __slots__ = ("behind", "busy", "count", "delayed", "lines", "name", "ordered", "subscribers", "turn")

    def __init__(self, name: str, *, ordered: bool = False) -> None:
        self.name = name
        self.ordered = ordered
        self.lines: tuple[deque[Message], ...] = tuple(deque() for _ in range(10))
        """By priority, the highest first."""
        self.count = 0
        """Messages in the lines."""
        self.delayed: list[tuple[float, int, Message, bool]] = []
        self.busy: set[str] = set()
        self.behind: dict[str, deque[Message]] = {}
        self.subscribers: list[Consumer] = []
        self.turn = 0

    def push(self, message: Message) -> None:
        """Put a message at the end of its line, or behind its group."""
        group = message.group
        if self.ordered and group is not None:
            if group in self.busy:
                self.behind.setdefault(group, deque()).append(message)
                return
            self.busy.add(group)
        self.lines[9 - message.priority].append(message)
        self.count += 1

    def put_back(self, messages: Sequence[Message]) -> None:
        """Put messages that were taken at the head of their lines, in the order given.

        What another consumer has put back before them and is older stays before them.
        """
        blocks: dict[int, list[Message]] = {}
        for message in messages:
            blocks.setdefault(message.priority, []).append(message)
        for priority, block in blocks.items():
            line = self.lines[9 - priority]
            oldest = min(message.seq for message in block)
            older: list[Message] = []
            while line and line[0].seq < oldest and len(older) < _LOOK:
                older.append(line.popleft())
            line.extendleft(reversed(block))
            line.extendleft(reversed(older))
        self.count += len(messages)

    def delay(self, message: Message, due: float, *, keeps_group: bool = False) -> None:
        """Hide a message until then."""
        message.at = due
        heappush(self.delayed, (due, message.seq, message, keeps_group))

    def promote(self, now: float) -> bool:
        """Move what is due from the heap to the lines; whether there was any."""
        moved = False
        while self.delayed and self.delayed[0][0] <= now:
            _, _, message, keeps_group = heappop(self.delayed)
            moved = True
            if keeps_group:
                self.lines[9 - message.priority].append(message)
                self.count += 1
            else:
                self.push(message)
        return moved

    def make_ordered(self, in_flight: Iterable[Message]) -> None:
        """Keep groups in order from now on."""
        waiting = list(self.waiting())
        for line in self.lines:
            line.clear()
        self.count = 0
        self.ordered = True
        self.busy = {m.group for m in in_flight if m.group is not None}
        for message in waiting:
            self.push(message)

    def finished(self, group: str) -> None:
        """Let the next message of a group in."""
        behind = self.behind.get(group)
        if not behind:
            self.busy.discard(group)
            return
        message = behind.popleft()
        if not behind:
            del self.behind[group]
        self.lines[9 - message.priority].append(message)
        self.count += 1

    @property
    def ready(self) -> int:
        """Messages that are not delayed and not in flight."""
        return self.count + sum(map(len, self.behind.values())) if self.behind else self.count

    def purge(self, in_flight: Iterable[Message]) -> list[Message]:
        """Drop and return all but what is in flight."""
        dropped = [*self.waiting(), *(entry[2] for entry in self.delayed)]
        for line in self.lines:
            line.clear()
        self.count = 0
        self.delayed.clear()
        self.behind.clear()
        self.busy = {m.group for m in in_flight if m.group is not None} if self.ordered else set()
        return dropped

    def waiting(self) -> Iterator[Message]:
        """All ready messages, in about the order of delivery."""
        for place, line in enumerate(self.lines):
            yield from line
            for behind in self.behind.values():
                yield from (m for m in behind if 9 - m.priority == place)
