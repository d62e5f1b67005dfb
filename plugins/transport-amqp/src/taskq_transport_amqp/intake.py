"""Which queues may push how much: what the kernel asks for is shared out among the queues that have messages."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING

from taskq.spi import SubscribeOrder
from taskq_transport_amqp.windows import Source

if TYPE_CHECKING:
    from taskq_lib_amqp.wire import Incoming
    from taskq_transport_amqp.windows import ConsumeChannel, Entry

_TURN_S = 0.05
"""How long a queue is listened to while there are more queues than credit."""
_QUIET_S = 0.05
"""After how long without a message a queue leaves what it does not use to others."""
_LOOK_S = 0.25
_LONG_S = 3600.0
_UNSEEN = 10_000
_ENOUGH = 16
"""Credit beyond one message from each queue with which pushing serves a single busy queue well enough."""


class Intake:
    """The subscribed queues, and how much of their messages is asked for.

    Each queue may always push a little (one message, or more by its weight), so that nothing in a quiet queue is passed
    over; that comes on top of what the kernel asks for, within the credit. All else goes to the queues that use up what
    they have, by weight. So what arrives is in proportion, and can be handed out as it comes.
    """

    def __init__(self, held: Sized) -> None:
        self._held = held
        self.sources: dict[str, Source] = {}
        self.credit = 0
        self._order: SubscribeOrder = "fair"
        self._sorted = False
        self._turn = 0
        self._shrunk = 0
        self._looked = 0.0
        self._unseen: dict[int, int] = {}
        """How often messages were pushed here and left again without having been handed out."""

    def subscribe(self, wanted: dict[str, Source], order: SubscribeOrder) -> list[Source]:
        """Take these queues instead of those before; return the ones that are gone."""
        for name, source in list(wanted.items()):
            known = self.sources.get(name)
            if known is not None:
                known.rank, known.weight = source.rank, source.weight
                wanted[name] = known
        gone = [source for name, source in self.sources.items() if name not in wanted]
        self.sources, self._order = wanted, order
        strict = order == "strict" and len(wanted) > 1
        self._sorted = strict or any(source.classic for source in wanted.values())
        lightest = min((source.weight for source in wanted.values()), default=1)
        for source in wanted.values():
            source.least = min(_ENOUGH, round(source.weight / lightest)) if order == "weighted" else 1
        return gone

    def restart(self) -> None:
        """Take note of a new connection, on which nothing is asked for yet."""
        # what the old connection still says is about the sources that it knew
        for name, old in self.sources.items():
            self.sources[name] = Source(name, old.rank, old.weight, classic=old.classic)
            self.sources[name].least = old.least

    def wants(self, source: Source) -> bool:
        """Whether a queue is subscribed still."""
        return self.sources.get(source.queue) is source

    def pulls(self) -> bool:
        """Whether messages are asked for one by one: for what pushing cannot do."""
        count, least = len(self.sources), sum(source.least for source in self.sources.values())
        return count > 1 and (self._order == "strict" or self.credit < least + min(count, _ENOUGH))

    # --------------------------------------------------------------------------------------------------- pushing

    def ask(self, channel: ConsumeChannel, want: int) -> float:
        """Let the server push until this many are here; return the seconds after which to look again.

        What is far too much is withdrawn.
        """
        sources = list(self.sources.values())
        least, have = sum(source.least for source in sources), channel.capacity()
        here = len(self._held) + len(channel.buffer)
        wait = _LONG_S
        if len(sources) == 1:
            want = max(want, min(1, self.credit))
        else:
            lacking = here < want
            want = min(self.credit, want + sum(min(s.least, s.room) if s.open else s.least for s in sources))
            if want <= have:
                wait = self._reclaim(channel, sources, lacking=lacking)
        if want * 4 < have and have > least * 2:
            self._shrunk += 1
            if self._shrunk > 3:  # not for a single small fetch between large ones
                self._shrunk = 0
                channel.cancel(sources)
                self._grow(channel, sources, max(0, min(self.credit, max(want, least)) - here))
            return wait
        self._shrunk = 0
        if want > have:
            if want > 16:  # in few steps
                want = min(self.credit, max(want, have * 2))
            self._grow(channel, sources, want - have)
        return wait

    def _grow(self, channel: ConsumeChannel, sources: list[Source], more: int) -> None:
        """Let the server push more: the least from each queue, the rest to those that use up what they have."""
        if len(sources) == 1:
            sizes = [(sources[0], more)]
        else:
            sizes = []
            for source in sources:
                if source.open == 0:
                    sizes.append((source, min(more, source.least)))
                    more -= sizes[-1][1]
            hungry = [source for source in sources if source.open and source.full]
            level = (sum(source.open for source in hungry) + more) / max(1, sum(source.weight for source in hungry))
            for source in sorted(hungry, key=lambda source: source.open / source.weight):
                share = max(0, math.ceil(level * source.weight) - source.open)
                if len(hungry) < len(sources):  # in steps, for others may be about to show that they have messages too
                    share = min(share, source.open * 3)
                sizes.append((source, min(more, share)))
                more -= sizes[-1][1]
        channel.widen([(source, size) for source, size in sizes if size > 0])

    def _reclaim(self, channel: ConsumeChannel, sources: list[Source], *, lacking: bool) -> float:
        """Withdraw what quiet queues leave unused and what busy ones have beyond their share, where others lack it.

        The others get it when the server has said that nothing more comes from there. Return the seconds after which
        to look again.
        """
        now = time.monotonic()
        if now - self._looked < _QUIET_S:
            return _QUIET_S
        self._looked = now
        hungry = [source for source in sources if source.full or source.open == 0]
        if not hungry:
            return _LONG_S
        spare = [source for source in sources if source.room > source.least] if lacking else []
        back = {source for source in spare if now - source.seen >= _QUIET_S}
        if not back:
            level = sum(source.open for source in hungry) / sum(source.weight for source in hungry)
            if any(source.open + 1 < level * source.weight for source in hungry):
                back = {source for source in hungry if source.open > level * source.weight * 1.5}
        for source in hungry:
            source.full = source.room <= 0
        if back:
            channel.cancel(back, answered=True)
        return _QUIET_S if spare else _LOOK_S

    # --------------------------------------------------------------------------------------------------- pulling

    def pull(self, channel: ConsumeChannel, limit: int) -> None:
        """Take messages one by one, from the queues in their order."""
        sources = list(self.sources.values())
        if self._order == "weighted":
            sources = [s for s in sources for _ in range(s.weight)]
        if self._order != "strict":
            start = self._turn % len(sources)
            sources = sources[start:] + sources[:start]
        taken = 0
        room = min(limit, self.credit - channel.outstanding())
        empty: set[str] = set()
        for source in sources:
            while taken < room and source.queue not in empty:
                if not channel.pull(source):
                    empty.add(source.queue)
                    break
                taken += 1
                self._turn += 1
                if self._order != "strict":
                    break  # the next one's turn
        if taken == 0:
            self._turn += 1

    def listen(self, channel: ConsumeChannel) -> float:
        """While nothing is there: have one message pushed from as many queues as the credit allows.

        Return for how many seconds.
        """
        room = self.credit - channel.capacity()
        closed = [s for s in self.sources.values() if s.open == 0]
        if room <= 0 and closed and channel.outstanding() < self.credit:
            channel.cancel(list(self.sources.values()))
            closed = list(self.sources.values())
            room = self.credit - channel.outstanding()
        if self._order != "strict" and closed:
            start = self._turn % len(closed)
            closed = closed[start:] + closed[:start]
        channel.widen([(source, 1) for source in closed[: max(0, room)]])
        return _TURN_S if room < len(closed) else _LONG_S

    # ------------------------------------------------------------------------------------------ what was pushed

    def trim(self, channel: ConsumeChannel) -> None:
        """Give back what was pushed beyond the credit, or from queues that are not subscribed any more."""
        buffer = channel.buffer
        allowed = max(0, self.credit - len(self._held))
        kept: deque[Entry] = deque()
        back: list[Entry] = []
        for _ in range(len(buffer)):  # more may be added at its end meanwhile
            entry = buffer.popleft()
            if self.wants(entry[1].source) and len(kept) < allowed:
                kept.append(entry)
            else:
                back.append(entry)
        buffer.extendleft(reversed(kept))
        self.give_back(channel, back)

    def give_back(self, channel: ConsumeChannel, entries: Sequence[Entry]) -> None:
        """Return messages that nobody has seen to their queues."""
        self.unseen(entries)
        channel.give_back(entries)

    def unseen(self, entries: Sequence[Entry]) -> None:
        """Remember messages that leave without having been handed out: their return counts as a delivery."""
        for incoming, window in entries:
            if not window.source.classic:
                key = hash((window.source.queue, incoming.body))
                self._unseen[key] = self._unseen.pop(key, 0) + 1
        while len(self._unseen) > _UNSEEN:
            del self._unseen[next(iter(self._unseen))]

    def deliveries(self, incoming: Incoming, queue: str) -> int:
        """Return how often a message that came again was delivered to somebody who may have looked at it."""
        if incoming.returns is None:  # classic queues say no more than that it may have been delivered before
            return incoming.redelivered + 1
        return max(1, incoming.returns + 1 - self._unseen.get(hash((queue, incoming.body)), 0))

    def sort(self, channel: ConsumeChannel) -> None:
        """Put what waits here into the order to start it in."""
        if not self._sorted:
            return
        buffer = channel.buffer
        entries = [buffer.popleft() for _ in range(len(buffer))]
        if self._order == "strict":
            entries.sort(key=lambda e: (e[1].source.rank, -e[0].priority))
        else:
            entries.sort(key=lambda e: -e[0].priority)
        buffer.extendleft(reversed(entries))
