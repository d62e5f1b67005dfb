"""Translates what drivers raise into ``taskq.errors``, and tells which failures are worth repeating."""

from __future__ import annotations

import errno
from enum import Enum, auto
from typing import Any

from sqlalchemy import exc as sa_exc

from taskq.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionLost,
    SchemaMismatch,
    StorageFull,
    StoreError,
    StoreSchemaMismatch,
    StoreUnavailable,
    TaskQError,
    TransportClosed,
    TransportError,
)


class Problem(Enum):
    """What kind of failure a driver's exception is."""

    UNREACHABLE = auto()
    LOST = auto()
    AUTHENTICATION = auto()
    NO_DATABASE = auto()
    SCHEMA = auto()
    FULL = auto()
    CONFLICT = auto()
    """Deadlock or serialization failure: the transaction was rolled back and may be repeated at once."""
    BUSY = auto()
    """A lock was not to be had, or a statement took too long."""
    READ_ONLY = auto()
    VALUE = auto()
    """The data is at fault: it will not fit next time either."""
    OTHER = auto()


_POSTGRESQL = {
    "28P01": Problem.AUTHENTICATION,
    "28000": Problem.AUTHENTICATION,
    "3D000": Problem.NO_DATABASE,
    "53100": Problem.FULL,
    "40001": Problem.CONFLICT,
    "40P01": Problem.CONFLICT,
    "55P03": Problem.BUSY,
    "57014": Problem.BUSY,
    "25006": Problem.READ_ONLY,
    "57P01": Problem.LOST,
    "57P02": Problem.LOST,
    "57P03": Problem.UNREACHABLE,
    "53300": Problem.UNREACHABLE,
    "42P01": Problem.SCHEMA,
    "42703": Problem.SCHEMA,
    "42704": Problem.SCHEMA,
    "3F000": Problem.SCHEMA,
    "42501": Problem.AUTHENTICATION,
}
_POSTGRESQL_CLASSES = {"08": Problem.LOST, "22": Problem.VALUE, "23": Problem.VALUE, "53": Problem.BUSY}
_POSTGRESQL_CONNECT = (  # the phase of connecting has no SQLSTATE, only English text unless the server is set otherwise
    ("password authentication failed", Problem.AUTHENTICATION),
    ("no password supplied", Problem.AUTHENTICATION),
    ("no pg_hba.conf entry", Problem.AUTHENTICATION),
    ("authentication failed", Problem.AUTHENTICATION),
    ("role ", Problem.AUTHENTICATION),
    ("permission denied for database", Problem.AUTHENTICATION),
)
_MYSQL = {
    1044: Problem.AUTHENTICATION,
    1045: Problem.AUTHENTICATION,
    1698: Problem.AUTHENTICATION,
    1142: Problem.AUTHENTICATION,
    1049: Problem.NO_DATABASE,
    1021: Problem.FULL,
    1041: Problem.FULL,
    1114: Problem.FULL,
    3: Problem.FULL,
    1205: Problem.BUSY,
    1969: Problem.BUSY,
    3024: Problem.BUSY,
    1213: Problem.CONFLICT,
    1020: Problem.CONFLICT,
    1290: Problem.READ_ONLY,
    1792: Problem.READ_ONLY,
    1836: Problem.READ_ONLY,
    1040: Problem.UNREACHABLE,
    2002: Problem.UNREACHABLE,
    2003: Problem.UNREACHABLE,
    1053: Problem.LOST,
    1927: Problem.LOST,
    2006: Problem.LOST,
    2013: Problem.LOST,
    4031: Problem.LOST,
    0: Problem.LOST,  # PyMySQL: the connection was closed on our side after a failure
    1054: Problem.SCHEMA,
    1146: Problem.SCHEMA,
    1153: Problem.VALUE,
    1264: Problem.VALUE,
    1366: Problem.VALUE,
    1406: Problem.VALUE,
}
_SQLITE = {  # primary result codes
    5: Problem.BUSY,
    6: Problem.BUSY,
    8: Problem.READ_ONLY,
    10: Problem.UNREACHABLE,
    11: Problem.SCHEMA,
    13: Problem.FULL,
    14: Problem.UNREACHABLE,
    18: Problem.VALUE,
    23: Problem.AUTHENTICATION,
    26: Problem.SCHEMA,
}


def classify(error: BaseException, dialect: str, *, connecting: bool = False) -> Problem:
    """Tell what kind of failure an exception of SQLAlchemy, a driver or the operating system is."""
    original: Any = error.orig if isinstance(error, sa_exc.DBAPIError) and error.orig is not None else error
    if isinstance(error, sa_exc.TimeoutError):
        return Problem.UNREACHABLE  # our own pool is exhausted
    if isinstance(original, OSError):
        if original.errno == errno.ENOSPC:
            return Problem.FULL
        return Problem.UNREACHABLE if connecting else Problem.LOST
    if isinstance(original, (UnicodeError, OverflowError, sa_exc.StatementError)) and not isinstance(
        original, sa_exc.DBAPIError
    ):
        return Problem.VALUE
    if dialect == "postgresql":
        problem = _postgresql(original, connecting)
    elif dialect == "mysql":
        problem = _MYSQL.get(original.args[0] if original.args else -1, Problem.OTHER)
        if problem is Problem.OTHER and _is_a(original, "DataError"):
            problem = Problem.VALUE
        if problem is Problem.OTHER and _is_a(original, "InterfaceError"):
            problem = Problem.LOST
    else:
        code = getattr(original, "sqlite_errorcode", None)
        problem = _SQLITE.get(code & 0xFF, Problem.OTHER) if code is not None else Problem.OTHER
        if code in {1, None} and ("no such" in str(original) or "has no column" in str(original)):
            problem = Problem.SCHEMA
    if problem is Problem.OTHER and getattr(error, "connection_invalidated", False):
        problem = Problem.LOST
    if problem is Problem.LOST and connecting:
        problem = Problem.UNREACHABLE
    return problem


def _is_a(error: Any, *names: str) -> bool:
    """Whether an exception is of one of the classes that PEP 249 names, whichever driver it is of."""
    return any(kind.__name__ in names for kind in type(error).__mro__)


def _postgresql(original: Any, connecting: bool) -> Problem:
    state = getattr(original, "sqlstate", None)
    if state is not None:
        return _POSTGRESQL.get(state) or _POSTGRESQL_CLASSES.get(state[:2]) or Problem.OTHER
    if connecting:
        text = str(original)
        if "database " in text and "does not exist" in text:
            return Problem.NO_DATABASE
        return next((problem for part, problem in _POSTGRESQL_CONNECT if part in text), Problem.UNREACHABLE)
    # Without a SQLSTATE the server said nothing: the connection broke, unless the driver refused a value.
    return Problem.LOST if _is_a(original, "OperationalError", "InterfaceError") else Problem.VALUE


_ADVICE = {
    Problem.UNREACHABLE: "check that the server runs and that host, port and firewall are right",
    Problem.LOST: "the connection broke; the next call connects again",
    Problem.AUTHENTICATION: "check user, password and the rights of that user",
    Problem.SCHEMA: "the tables are missing or not taskq's: check table_prefix, schema and create_tables",
    Problem.FULL: "make room on the database's disk",
    Problem.CONFLICT: "other transactions were in the way several times in a row; repeat",
    Problem.BUSY: "another transaction holds a lock for too long, or the server is overloaded",
    Problem.READ_ONLY: "the server or file is read-only (a standby?); name the primary",
    Problem.VALUE: "the database cannot hold this value",
    Problem.OTHER: "the server's message is above",
}
_TRANSPORT: dict[Problem, type[TransportError]] = {
    Problem.UNREACHABLE: ConnectionFailed,
    Problem.NO_DATABASE: ConnectionFailed,
    Problem.READ_ONLY: ConnectionFailed,
    Problem.LOST: ConnectionLost,
    Problem.AUTHENTICATION: AuthenticationFailed,
    Problem.SCHEMA: SchemaMismatch,
    Problem.FULL: StorageFull,
}
_STORE: dict[Problem, type[StoreError]] = {
    Problem.UNREACHABLE: StoreUnavailable,
    Problem.NO_DATABASE: StoreUnavailable,
    Problem.READ_ONLY: StoreUnavailable,
    Problem.LOST: StoreUnavailable,
    Problem.SCHEMA: StoreSchemaMismatch,
    Problem.FULL: StoreUnavailable,
    Problem.BUSY: StoreUnavailable,
    Problem.CONFLICT: StoreUnavailable,
}
FINAL = frozenset({Problem.AUTHENTICATION, Problem.SCHEMA, Problem.VALUE})
"""Problems that repeating does not mend."""


class ErrorFamily:
    """Makes the errors of one side: a transport's or a store's."""

    def __init__(self, *, store: bool) -> None:
        self.store = store

    def make(self, problem: Problem, message: str) -> TaskQError:
        """Return the error for a problem; its ``retryable`` fits."""
        error: TransportError | StoreError
        if self.store:
            error = _STORE.get(problem, StoreError)(message)
        else:
            error = _TRANSPORT.get(problem, TransportError)(message)
        if problem in FINAL and error.retryable:
            error.retryable = False
        return error

    def closed(self, message: str) -> TaskQError:
        """Return the error for what cannot be used any more."""
        if not self.store:
            return TransportClosed(message)
        error = StoreError(message)
        error.retryable = False
        return error

    def translate(self, error: BaseException, problem: Problem, *, what: str, where: str) -> TaskQError:
        """Return the error to raise: what was tried, where, what was found, what to do."""
        original = error.orig if isinstance(error, sa_exc.DBAPIError) and error.orig is not None else error
        found = " ".join(str(original.args[-1] if original.args else original).split()) or type(original).__name__
        return self.make(problem, f"{what} on {where} failed: {found}; {_ADVICE.get(problem, '')}")


TRANSPORT_ERRORS = ErrorFamily(store=False)
STORE_ERRORS = ErrorFamily(store=True)
DRIVER_ERRORS: tuple[type[BaseException], ...] = (sa_exc.SQLAlchemyError, OSError, UnicodeError, OverflowError)
"""What a statement may raise. The drivers' own errors are added by ``database`` once their module is imported."""
