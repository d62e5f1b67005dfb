"""What taskq's SQLite transport and SQLite result store share: the file, its tables, its bells."""

from __future__ import annotations

from taskq_lib_sqlite.bells import Bell, Bells, Nudge, wait_readable
from taskq_lib_sqlite.database import Database, Transaction, close_database, open_database
from taskq_lib_sqlite.location import file_for
from taskq_lib_sqlite.records import SqliteResults, as_bytes, push_records, put_records
from taskq_lib_sqlite.trouble import Kind, Trouble, explain, store_errors, transport_errors

__all__ = [
    "Bell",
    "Bells",
    "Database",
    "Kind",
    "Nudge",
    "SqliteResults",
    "Transaction",
    "Trouble",
    "as_bytes",
    "close_database",
    "explain",
    "file_for",
    "open_database",
    "push_records",
    "put_records",
    "store_errors",
    "transport_errors",
    "wait_readable",
]
