"""A Redis Cluster: which node owns a slot, and commands that follow it there.

A command goes to the owner of its first key's slot. While a slot is moved from one node to another the server refuses
what it cannot do at one place with TRYAGAIN, before anything is done; it is tried again here for a while. That holds
for the keys that a script names: one that uses others of its slot names a key that never exists, too.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence
from typing import Any

from redis.crc import key_slot

from taskq.errors import TaskQError
from taskq.spi import Url
from taskq_lib_redis.connection import DEFAULT_PORT, Redirected, RedisLink, Script, ServerError, Target

Address = tuple[str, int]
SLOTS = 16384
_PAUSE = 0.02
_REDIRECTIONS = 8
_TRANSIENT = ("TRYAGAIN", "NOSCRIPT")


def slot_of(key: Any) -> int:
    """Return the slot of a key."""
    return key_slot(key.encode() if isinstance(key, str) else key)


class Nodes:
    """Who owns which slot, as far as known; shared by all connections of a transport or store."""

    def __init__(self, target: Target) -> None:
        for url in target.urls:
            if url.path.strip("/") not in ("", "0"):
                raise target.errors.refused(f"{url.without_query()}: a cluster has database 0 only; leave the path out")
        self.target = target
        self._lock = threading.Lock()
        self._owners: list[Address | None] = [None] * SLOTS
        self._targets: dict[Address, Target] = {}
        self._masters: list[Address] = []
        self._version = 0

    @property
    def version(self) -> int:
        """A number that changes with what is known."""
        return self._version

    def masters(self) -> list[Address]:
        """Return the nodes that own slots."""
        if not self._masters:
            self.refresh(self._version)
        return list(self._masters)

    def owner(self, slot: int) -> Address:
        """Return the node that owns a slot. Raises: the side's ``failed`` error where nobody does."""
        found = self._owners[slot]
        if found is None:
            self.refresh(self._version)
            found = self._owners[slot]
            if found is None:
                raise self.target.errors.failed(f"no node of the cluster {self.target.name} has slot {slot} just now")
        return found

    def known(self, slot: int) -> Address | None:
        """Return the owner as far as known, without asking."""
        return self._owners[slot]

    def node(self, address: Address) -> Target:
        """Return how to connect to one node."""
        found = self._targets.get(address)
        if found is None:
            url = self.target.urls[0]
            there = Url(url.scheme, url.username, url.password, address[0], address[1])
            found = self._targets[address] = dataclasses.replace(self.target, urls=(there,), first=[0])
        return found

    def anywhere(self) -> Target:
        """Return how to connect to whichever node answers."""
        first = self.target.urls[0]
        known = [Url(first.scheme, first.username, first.password, *address) for address in self._masters]
        return dataclasses.replace(self.target, urls=(*known, *self.target.urls), first=[0])

    def moved(self, slot: int, address: Address) -> None:
        """Note what a node said about a slot."""
        self._owners[slot] = address
        self._version += 1

    def refresh(self, seen: int) -> None:
        """Ask some node who owns what, unless somebody did since ``seen``. Raises: the side's typed errors."""
        with self._lock:
            if seen != self._version:
                return
            link = RedisLink(self.anywhere())
            try:
                answer = link.call(b"CLUSTER", b"SLOTS")
            except ServerError as error:
                if "cluster support disabled" in str(error):
                    raise self.target.errors.refused(
                        f"{self.target.name} is no cluster; write {self.target.urls[0].scheme.partition('+')[0]}://"
                    ) from error
                raise self.target.errors.failed(f"{self.target.name} does not tell its slots: {error}") from error
            finally:
                asked = link.peer
                link.close()
            owners: list[Address | None] = [None] * SLOTS
            masters: list[Address] = []
            for first, last, master, *_ in answer:
                address = ((master[0] or b"").decode() or asked, int(master[1]) or DEFAULT_PORT)
                owners[first : last + 1] = [address] * (last - first + 1)
                if address not in masters:
                    masters.append(address)
            self._owners, self._masters = owners, masters
            self._version += 1


class _Call:
    """A command on its way."""

    __slots__ = ("answer", "ask", "command", "done", "redirections", "script", "slot")

    def __init__(self, slot: int, command: tuple[Any, ...], script: Script | None) -> None:
        self.slot = slot
        self.command = command
        self.script = script
        self.ask: Address | None = None
        self.redirections = 0
        self.done = False
        self.answer: Any = None


class Lines:
    """A connection to each node, for one thread at a time; commands find their node by their first key."""

    def __init__(self, nodes: Nodes, patience: float) -> None:
        self._nodes = nodes
        self._patience = patience
        """Seconds to repeat what a node refuses because a slot is moved, or because it is no master any more."""
        self._links: dict[Address, RedisLink] = {}

    def to(self, address: Address) -> RedisLink:
        """Return the connection to a node."""
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = RedisLink(self._nodes.node(address))
        return link

    def call(self, *args: Any) -> Any:
        """Send one command, whose second word is its key, and return its answer."""
        return _raised(self._run([_Call(slot_of(args[1]), args, None)])[0])

    def script(self, script: Script, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run a script on the node of its first key."""
        return _raised(self.scripts([(script, keys, args)])[0])

    def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands, those for one node in one write; an error answer is returned as the error."""
        return self._run([_Call(slot_of(c[1]), tuple(c), None) for c in commands])

    def scripts(
        self, runs: Sequence[tuple[Script, Sequence[Any], Sequence[Any]]], after: tuple[Any, ...] = ()
    ) -> list[Any]:
        """Run scripts, those for one node in one write; an error is returned in its answer's place.

        ``after`` is a command for each node, like WAIT, whose answer takes the place of those before it where it is
        below its first argument.
        """
        calls = [_Call(slot_of(keys[0]), (len(keys), *keys, *args), script) for script, keys, args in runs]
        return self._run(calls, after)

    def _run(self, calls: list[_Call], after: tuple[Any, ...] = ()) -> list[Any]:
        nodes = self._nodes
        end = time.monotonic() + self._patience
        todo = calls
        while todo:
            version = nodes.version
            problem = self._once(todo, after)
            todo = [c for c in todo if not c.done]
            if not todo:
                break
            if problem is None:
                continue  # redirected: at once
            if time.monotonic() >= end:
                for c in todo:
                    c.answer = problem
                break
            time.sleep(_PAUSE)
            try:
                nodes.refresh(version)
            except TaskQError as error:
                if not getattr(error, "retryable", True):
                    raise
        return [c.answer for c in calls]

    def _once(self, calls: Sequence[_Call], after: tuple[Any, ...]) -> TaskQError | None:
        """Send each command where it seems to belong; return why some must wait before they are tried again."""
        groups: dict[Address, list[_Call]] = {}
        problem: TaskQError | None = None
        for c in calls:
            try:
                groups.setdefault(c.ask or self._nodes.owner(c.slot), []).append(c)
            except TaskQError as error:
                if not getattr(error, "retryable", True):
                    raise
                problem = error
        sent: list[tuple[RedisLink, list[_Call]]] = []
        # to a node that must be connected to, which may take its time, when the others are at work
        for address in sorted(groups, key=lambda a: not self.to(a).connected):
            link, group = self.to(address), groups[address]
            commands: list[tuple[Any, ...]] = []
            for c in group:
                if c.ask:
                    commands.append((b"ASKING",))
                if c.script is not None and c.answer is not None:
                    commands.append((b"EVAL", c.script.text, *c.command))  # the node did not know it
                else:
                    commands.append(c.command if c.script is None else (b"EVALSHA", c.script.sha, *c.command))
            if after:
                commands.append(after)
            try:
                link.begin(commands)
            except TaskQError as error:
                problem = self._unsent(group, error) or problem
            else:
                sent.append((link, group))
        for link, group in sent:
            problem = self._answers(link, group, after) or problem
        return problem

    def _unsent(self, group: list[_Call], error: TaskQError) -> TaskQError | None:
        errors = self._nodes.target.errors
        if isinstance(error, errors.failed) and not isinstance(error, errors.lost):
            return error
        for c in group:  # it may have been, in part; or credentials are refused
            c.answer, c.done = error, True
        return None

    def _answers(self, link: RedisLink, group: list[_Call], after: tuple[Any, ...]) -> TaskQError | None:
        errors = self._nodes.target.errors
        problem: TaskQError | None = None
        for n, c in enumerate(group):
            if c.ask:
                link.answer()
                c.ask = None
            answer = link.answer()
            if isinstance(answer, Redirected):
                c.redirections += 1
                if c.redirections % _REDIRECTIONS == 0:  # the nodes do not agree yet
                    problem = errors.failed(
                        f"the nodes of {self._nodes.target.name} send us round in circles: {answer}"
                    )
                elif answer.ask:
                    c.ask = answer.address
                else:
                    self._nodes.moved(answer.slot, answer.address)
            elif isinstance(answer, ServerError) and answer.code in _TRANSIENT:
                if answer.code == "NOSCRIPT":
                    c.answer = answer
                else:
                    problem = errors.failed(f"{self._nodes.target.name} is moving slot {c.slot} to another node")
            elif isinstance(answer, errors.lost) and not link.connected:
                for rest in group[n:]:
                    rest.answer, rest.done = answer, True
                return problem
            elif isinstance(answer, errors.failed) and not isinstance(answer, errors.full):
                problem = answer  # no master any more, or not yet
            else:
                c.answer, c.done = answer, True
        if after:
            waited = link.answer()
            if not isinstance(waited, int) or waited < after[1]:
                for c in group:
                    if c.done and not isinstance(c.answer, Exception):
                        c.answer = Unreplicated(waited if isinstance(waited, int) else 0)
        return problem

    def hurry(self, seconds: float) -> None:
        """From now on wait no longer than this for anything."""
        self._patience = min(self._patience, seconds)
        for link in self._links.values():
            link.hurry(seconds)

    def close(self) -> None:
        """Close all connections."""
        for link in self._links.values():
            link.close()
        self._links.clear()


class Unreplicated(Exception):
    """A command was done, but fewer replicas than wanted have it; ``count`` of them do."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


def _raised(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer
