"""Small shared state with atomic operations: a batch is read under locks, worked out here, and written back at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from taskq.spi import Op, OpKind, OpResult
from taskq_lib_sqlalchemy.database import transaction
from taskq_lib_sqlalchemy.strategy import KEEP_TTL, NEW_TTL, NO_TTL, EntryChange, Strategy

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

_GONE = -1e9
"""A time to live that has long passed."""


def apply(connection: Connection, strategy: Strategy, ops: Sequence[Op]) -> list[OpResult]:
    """Run operations in the order given, in one transaction."""
    names = sorted({_entry(op.key) for op in ops})
    if all(op.kind is OpKind.GET for op in ops):
        values = strategy.read_entries(connection, names)
        return [OpResult(_entry(op.key) in values, values.get(_entry(op.key))) for op in ops]
    with transaction(connection):
        values, _ = strategy.lock_entries(connection, names)
        changes: dict[str, EntryChange] = {}
        results = [_run(op, values, changes) for op in ops]
        if changes:
            strategy.write_entries(connection, list(changes.values()))
    return results


def _entry(key: str) -> str:
    return "k:" + key


def _run(op: Op, values: dict[str, bytes], changes: dict[str, EntryChange]) -> OpResult:
    name = _entry(op.key)
    current = values.get(name)
    kind = op.kind
    if kind is OpKind.GET:
        return OpResult(current is not None, current)
    if kind is OpKind.DELETE:
        if current is None or (op.expected is not None and op.expected != current):
            return OpResult(False, current)
        del values[name]
        changes[name] = EntryChange(name, None, NEW_TTL, _GONE)
        return OpResult(True, None)
    if kind is OpKind.INCREMENT:
        try:
            value = b"%d" % (int(current or b"0") + op.amount)
        except ValueError:
            return OpResult(False, current)
        if current is not None:
            before = changes.get(name)
            values[name] = value
            changes[name] = EntryChange(name, value, KEEP_TTL) if before is None else before._replace(value=value)
            return OpResult(True, value)
    elif (kind is OpKind.PUT_IF_ABSENT and current is not None) or (
        kind is OpKind.COMPARE_AND_SET and op.expected != current
    ):
        return OpResult(False, current)
    else:
        value = op.value or b""
    values[name] = value
    changes[name] = EntryChange(name, value, NO_TTL) if op.ttl is None else EntryChange(name, value, NEW_TTL, op.ttl)
    return OpResult(True, value)


Owners = dict[str, float]


def change_semaphore(
    connection: Connection, strategy: Strategy, key: str, change: Callable[[Owners, float], bool | None]
) -> bool:
    """Let ``change`` work on the owners of a semaphore's places (owner → end of the place, on the server's clock).

    It gets the owners whose time has not passed, and the time; it answers whether it succeeded, None where it changed
    nothing and failed.
    """
    name = "s:" + key
    with transaction(connection):
        values, now = strategy.lock_entries(connection, [name])
        stored: Owners = json.loads(values.get(name, b"{}"))
        owners = {owner: end for owner, end in stored.items() if end > now}
        done = change(owners, now)
        if done is not None:
            ttl = max(owners.values()) - now if owners else _GONE
            strategy.write_entries(connection, [EntryChange(name, json.dumps(owners).encode(), NEW_TTL, ttl)])
    return bool(done)
