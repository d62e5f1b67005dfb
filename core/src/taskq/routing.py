"""Routing: which queue a task goes to when the call does not say.

A route matches a task's name by the exact name, a glob (``reports.*``), a regular expression (``re:…``, matched
whole) or a callable, and gives a queue and optionally a priority. The first that matches wins.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import Struct

from taskq.errors import ConfigError

DEAD_SUFFIX = ".dead"
"""A queue's dead letters are in the queue of its name with this after it, on the same broker."""


class Route(Struct, frozen=True):
    """Where a task goes; None leaves a point to the next rule or the default."""

    queue: str | None = None
    priority: int | None = None


Matcher = Callable[[str], bool]
Router = Callable[[str, tuple[Any, ...], Mapping[str, Any]], "Route | str | Mapping[str, Any] | None"]


def compile_match(pattern: str) -> Matcher:
    """Return a predicate on task names for a name, glob or ``re:`` expression.

    Raises:
        ConfigError: a malformed regular expression.
    """
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise ConfigError(f"routes: {pattern!r} is not a regular expression: {error}") from error
        return lambda name: expression.fullmatch(name) is not None
    if any(c in pattern for c in "*?["):
        glob = re.compile(fnmatch.translate(pattern))
        return lambda name: glob.match(name) is not None
    return lambda name: name == pattern


class RouteTable:
    """An ordered list of routes, compiled; static rules are answered from a cache per task name."""

    def __init__(self, routes: Iterable[Any] = ()) -> None:
        self._rules: list[tuple[Matcher, Route] | Router] = [_compile(route) for route in routes]
        self._dynamic = any(not isinstance(rule, tuple) for rule in self._rules)
        self._cache: dict[str, Route] = {}

    @property
    def dynamic(self) -> bool:
        """Whether some rule looks at the arguments, so that it must be asked per call."""
        return self._dynamic

    def queues(self) -> set[str]:
        """Return the queues that static rules name."""
        return {rule[1].queue for rule in self._rules if isinstance(rule, tuple) and rule[1].queue}

    def find(self, name: str, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Route:
        """Return the first match for a task, an empty route without one."""
        if not self._dynamic:
            route = self._cache.get(name)
            if route is None:
                route = self._cache[name] = self._search(name, args, kwargs or {})
            return route
        return self._search(name, args, kwargs or {})

    def _search(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Route:
        for rule in self._rules:
            if isinstance(rule, tuple):
                if rule[0](name):
                    return rule[1]
            elif (answer := rule(name, args, kwargs)) is not None:
                return _as_route(answer)
        return Route()


def _as_route(value: Any) -> Route:
    if isinstance(value, Route):
        return value
    if isinstance(value, str):
        return Route(value)
    if isinstance(value, Mapping) and set(value) <= {"queue", "priority"}:
        return Route(**value)
    raise ConfigError(f"a route must give a queue name or {{'queue': …, 'priority': …}}, not {value!r}")


def _compile(route: Any) -> tuple[Matcher, Route] | Router:
    if callable(route):
        return route  # type: ignore[no-any-return]
    if isinstance(route, Mapping):
        entry = dict(route)
        match = entry.pop("match", None)
        if match is None:
            raise ConfigError(f"routes: {route!r} has no 'match'; write {{'match': 'reports.*', 'queue': 'reports'}}")
        return _matcher(match), _as_route(entry)
    if isinstance(route, tuple) and len(route) == 2:
        return _matcher(route[0]), _as_route(route[1])
    raise ConfigError(f"routes: {route!r} is neither a callable, a (match, queue) pair nor a table with 'match'")


def _matcher(match: Any) -> Matcher:
    if isinstance(match, re.Pattern):
        return lambda name: match.fullmatch(name) is not None
    return match if callable(match) else compile_match(match)
