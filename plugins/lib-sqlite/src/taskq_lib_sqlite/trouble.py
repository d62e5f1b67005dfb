"""One internal error for everything that can go wrong with the file, and its two typed faces.

Transport and store raise different types for the same fault, so this package raises ``Trouble`` and each plugin's
methods carry the decorator that turns it into theirs.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable
from enum import Enum, auto
from typing import ParamSpec, TypeVar

from taskq.errors import (
    ConnectionFailed,
    ConnectionLost,
    SchemaMismatch,
    StorageFull,
    StoreError,
    StoreSchemaMismatch,
    StoreUnavailable,
    TransportClosed,
    TransportError,
)

P = ParamSpec("P")
R = TypeVar("R")


class Kind(Enum):
    """What is wrong."""

    UNREACHABLE = auto()
    REPLACED = auto()
    BUSY = auto()
    FULL = auto()
    DAMAGED = auto()
    SCHEMA = auto()
    CLOSED = auto()
    REFUSED = auto()
    OTHER = auto()


_TYPES: dict[Kind, tuple[type[TransportError], type[StoreError], bool]] = {
    Kind.UNREACHABLE: (ConnectionFailed, StoreUnavailable, False),
    Kind.REPLACED: (ConnectionLost, StoreUnavailable, True),
    Kind.BUSY: (TransportError, StoreUnavailable, True),
    Kind.FULL: (StorageFull, StoreUnavailable, True),
    Kind.DAMAGED: (TransportError, StoreError, False),
    Kind.SCHEMA: (SchemaMismatch, StoreSchemaMismatch, False),
    Kind.REFUSED: (TransportError, StoreError, False),
    Kind.CLOSED: (TransportClosed, StoreError, False),
    Kind.OTHER: (TransportError, StoreUnavailable, True),
}
"""The transport's type for each, the store's type, and whether repeating may help."""


class Trouble(Exception):
    """Something is wrong with the file; the text says what was tried, found, and what to do."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind

    def typed(self, *, store: bool) -> TransportError | StoreError:
        """Return the error that a transport, or a store, raises for this."""
        of_transport, of_store, retryable = _TYPES[self.kind]
        error = of_store(str(self)) if store else of_transport(str(self))
        error.retryable = retryable
        return error


def explain(exc: sqlite3.Error, path: str) -> Trouble:
    """Turn an error of SQLite into advice."""
    code = getattr(exc, "sqlite_errorcode", None) or 0
    name = getattr(exc, "sqlite_errorname", None) or type(exc).__name__
    found = f"{exc} ({name})"
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return Trouble(
                Kind.FULL, f"no room in {path}: {found}; free disk space or raise max_size, nothing was written"
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Trouble(
                Kind.BUSY,
                f"{path} stayed locked by another process: {found}; end whatever holds a transaction open on it "
                "(an sqlite3 shell, a backup), or raise busy_timeout",
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return Trouble(
                Kind.UNREACHABLE,
                f"{path} cannot be written: {found}; a queue changes its file, and SQLite makes -wal "
                "and -shm files beside "
                "it: give this user write permission on the file and on its directory",
            )
        case sqlite3.SQLITE_NOTADB:
            return Trouble(
                Kind.UNREACHABLE, f"{path} is not an SQLite database: {found}; name another file, or move it away"
            )
        case sqlite3.SQLITE_CORRUPT:
            return Trouble(
                Kind.DAMAGED,
                f"{path} is damaged: {found}; stop every process that uses it, then save what is readable with "
                f"`sqlite3 {path} .recover | sqlite3 NEW.db`",
            )
        case sqlite3.SQLITE_CANTOPEN:
            return Trouble(
                Kind.UNREACHABLE, f"cannot open {path}: {found}; check that the directory exists and may be written to"
            )
        case sqlite3.SQLITE_IOERR:
            return Trouble(
                Kind.OTHER,
                f"reading or writing {path} failed: {found}; check the disk and its free space; a "
                "file on a network file "
                "system is not supported",
            )
    if isinstance(exc, sqlite3.ProgrammingError) and "closed" in str(exc):
        return Trouble(Kind.CLOSED, f"{path} was used after close()")
    if "no such table" in str(exc) or "no such column" in str(exc) or "has no column" in str(exc):
        return Trouble(Kind.SCHEMA, f"{path} lost a part of taskq's tables while in use: {found}; restart this process")
    return Trouble(Kind.OTHER, f"SQLite refused an operation on {path}: {found}")


def transport_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Let a method raise ``TransportError`` types for ``Trouble``."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Trouble as trouble:
            raise trouble.typed(store=False) from trouble.__cause__

    return call


def store_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Let a method raise ``StoreError`` types for ``Trouble``."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Trouble as trouble:
            raise trouble.typed(store=True) from trouble.__cause__

    return call
