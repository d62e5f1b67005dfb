"""A psycopg connection on which no statement waits for ever: a stalled network is noticed on this side."""

from __future__ import annotations

from collections.abc import Generator
from time import monotonic
from typing import Any, TypeVar

import psycopg

T = TypeVar("T")


class CommandTimeout(psycopg.OperationalError):
    """The server did not answer in time; the connection's state is unknown and it must be closed."""


class TimedConnection(psycopg.Connection[Any]):
    """Adds ``command_timeout``, in seconds, to psycopg's connection."""

    command_timeout = 30.0

    @classmethod
    def connect(  # type: ignore[override]  # one argument more, which its callers know of
        cls, *args: Any, command_timeout: float = 30.0, **kwargs: Any
    ) -> TimedConnection:
        connection = super().connect(*args, **kwargs)
        connection.command_timeout = command_timeout
        return connection

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Run psycopg's generator, which is resumed without an event now and then, until the time is over."""
        return super().wait(_until(gen, monotonic() + self.command_timeout, self.command_timeout), *args, **kwargs)


def _until(gen: Generator[Any, Any, T], deadline: float, limit: float) -> Generator[Any, Any, T]:
    try:
        state = next(gen)
        while True:
            ready = yield state
            if not ready and monotonic() > deadline:
                raise CommandTimeout(f"no answer within {limit:g} s")
            state = gen.send(ready)
    except StopIteration as done:
        result: T = done.value
        return result
