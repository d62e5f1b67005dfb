"""Result records as table rows, and the rule about which record replaces which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from taskq.spi import Record


class RecordRow(NamedTuple):
    """A record and its place in the batch that it came in."""

    place: int
    record: Record


def waves(records: Sequence[Record]) -> Iterator[list[RecordRow]]:
    """Split a batch so that no part names an id twice, keeping each id's order.

    Within a part rows are sorted by id: writers that meet lock the same rows in the same order.
    """
    parts: list[list[RecordRow]] = []
    seen: dict[str, int] = {}
    for index, record in enumerate(records):
        part = seen.get(record.id, -1) + 1
        seen[record.id] = part
        if part == len(parts):
            parts.append([])
        parts[part].append(RecordRow(index, record))
    for rows in parts:
        rows.sort(key=lambda row: row.record.id)
        yield rows


def record_values(record: Record) -> dict[str, Any]:
    """Return a record as named parameters; the times are made by the statement."""
    return {
        "id": record.id,
        "state": record.state,
        "terminal": record.terminal,
        "attempt": record.attempt,
        "epoch": record.epoch,
        "ttl": float(record.ttl),
        "reply": record.reply,
        "payload": record.payload,
        "follow_ups": record.follow_ups,
    }


def pushes(records: Iterable[Record], max_bytes: int = 7500) -> Iterator[tuple[str, str]]:
    """Return (channel, payload) pairs that tell callers of their records: ids joined by spaces, as many as fit.

    An id that cannot travel so is told by an empty payload: the caller then looks at all that it waits for.
    """
    by_channel: dict[str, list[str]] = {}
    for record in records:
        if record.reply and record.terminal:
            by_channel.setdefault(record.reply, []).append(record.id)
    for channel, ids in by_channel.items():
        text: list[str] = []
        size = 0
        for task_id in ids:
            length = len(task_id.encode()) + 1
            if length > max_bytes or " " in task_id:
                yield channel, ""
                continue
            if size + length > max_bytes:
                yield channel, " ".join(text)
                text, size = [], 0
            text.append(task_id)
            size += length
        if text:
            yield channel, " ".join(text)
