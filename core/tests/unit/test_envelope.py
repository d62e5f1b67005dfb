"""The wire format: golden files that no release may change, round trips, what is unknown, what is damaged.

The files in ``golden/`` are messages as the first release writes them. A test that fails on one says that messages of
releases in the field can no longer be read, or that they would not read ours. Never rewrite a file: add one.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskq import envelope
from taskq.envelope import DeadInfo, Header
from taskq.errors import DecodeError, EncodeError

GOLDEN = Path(__file__).parent / "golden"
ID = "0199a1b2c3d47e5f8a9b0c1d2e3f4a5b"

PLAIN = Header(ID, "shop.tasks.ship", "json", 0, 1750000000.5, "")
FULL = Header(
    ID, "shop.tasks.ship", "msgpack", 3, 1750000000.5, "worker-7/replies",
    {
        "nb": 1750000100.0, "ex": 1750003600.0, "p": 9, "g": "customer-1", "ep": 2,
        "t": [["zlib"], ["sign", "key-1", b"\x01\x02"]], "st": "redis://cache/0",
        "pa": "0" * 32, "ro": "1" * 32, "wf": ["chain", 5], "cv": 4,
        "tr": {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        "h": {"tenant": "blüe", "n": -1, "nested": [1, None, True, {"x": 1.5}]}, "pk": 1750000200.0, "mr": 7,
        "hi": [[0, 1749990000.0, "started 5 times"]],
    },
)  # fmt: skip
FUTURE = Header(ID, "shop.tasks.ship", "json", 0, 1750000000.5, None, {"zz": {"of": "a later release"}, "p": 1})
DEAD = DeadInfo(
    id=ID, queue="orders", reason="ValueError: no good", died_at=1750000300.25, task="shop.tasks.ship", state="FAILURE",
    detail="Traceback …\nValueError: no good\n", attempts=3, deliveries=2, epoch=1, worker="host-1",
    history=[[0, 1749990000.0, "started 5 times"]],
)  # fmt: skip
BODY = b'[[1,"two"],{"three":[4]}]'

TASKS = {
    "task-plain-v1": (PLAIN, BODY),
    "task-full-v1": (FULL, b"\x92\x91\x01\x80"),
    "task-future-v1": (FUTURE, b"[[],{}]"),
}


@pytest.mark.parametrize("name", TASKS)
def test_messages_of_the_first_release_are_read(name: str) -> None:
    header, body = TASKS[name]
    payload = (GOLDEN / f"{name}.bin").read_bytes()
    decoded, offset = envelope.decode(payload)
    assert decoded == header
    assert payload[offset:] == body


@pytest.mark.parametrize("name", TASKS)
def test_messages_are_written_as_by_the_first_release(name: str) -> None:
    header, body = TASKS[name]
    assert envelope.encode(header, body) == (GOLDEN / f"{name}.bin").read_bytes()


def test_dead_letters_of_the_first_release() -> None:
    payload = (GOLDEN / "dead-v1.bin").read_bytes()
    info, original = envelope.decode_dead(payload)
    assert info == DEAD
    assert original == (GOLDEN / "task-full-v1.bin").read_bytes()
    assert envelope.encode_dead(DEAD, original) == payload


def test_a_header_with_more_fields_of_a_later_release_is_read() -> None:
    payload = (GOLDEN / "task-eight-fields.bin").read_bytes()
    header, offset = envelope.decode(payload)
    assert header == PLAIN
    assert payload[offset:] == BODY


def test_dead_letters_with_unknown_facts_are_read() -> None:
    facts = {"id": "x", "queue": "q", "reason": "r", "died_at": 1.0, "new": [1, 2]}
    head = msgspec.msgpack.encode(facts)
    info, original = envelope.decode_dead(b"\xc1\x44" + len(head).to_bytes(4, "big") + head + b"rest")
    assert (info.id, info.queue, info.task, original) == ("x", "q", "", b"rest")


def test_the_layout_is_as_documented() -> None:
    """0xC1, the kind, the header's length, the header in MessagePack, the body: readable without taskq."""
    payload = envelope.encode(PLAIN, BODY)
    assert payload[:2] == b"\xc1\x01"
    length = int.from_bytes(payload[2:4], "big")
    assert msgspec.msgpack.decode(payload[4 : 4 + length]) == [ID, "shop.tasks.ship", "json", 0, 1750000000.5, "", None]
    assert json.loads(payload[4 + length :]) == [[1, "two"], {"three": [4]}]


# ------------------------------------------------------------------------------------------------------ round trips

PLAIN_DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
TIMES = st.floats(-1e10, 1e10)
EXTRA = st.fixed_dictionaries(
    {},
    optional={
        "nb": TIMES, "ex": TIMES, "pk": TIMES, "p": st.integers(0, 9), "ep": st.integers(0, 2**40), "g": st.text(),
        "mr": st.integers(0, 2**40), "st": st.text(), "pa": st.text(), "ro": st.text(),
        "h": st.dictionaries(st.text(), PLAIN_DATA), "t": st.lists(st.lists(st.text())),
        "hi": st.lists(PLAIN_DATA), "zz": PLAIN_DATA, "later": PLAIN_DATA,
    },
)  # fmt: skip
HEADERS = st.builds(
    Header, id=st.text(), task=st.text(), content_type=st.text(), attempt=st.integers(0, 2**40), enqueued_at=TIMES,
    reply=st.none() | st.text(), extra=st.none() | EXTRA,
)  # fmt: skip


@given(header=HEADERS, body=st.binary())
def test_what_is_written_is_read(header: Header, body: bytes) -> None:
    payload = envelope.encode(header, body)
    decoded, offset = envelope.decode(payload)
    assert decoded == header
    assert payload[offset:] == body


@given(
    header=HEADERS, changes=st.dictionaries(st.sampled_from(["nb", "h", "zz", "new"]), st.none() | st.just({"a": 1}))
)
def test_changes_leave_everything_else(header: Header, changes: dict[str, Any]) -> None:
    if not isinstance(changes.get("nb"), (int, float)):
        changes.pop("nb", None)
    payload = envelope.with_changes(header, b"body", changes=changes, attempt=9)
    decoded, offset = envelope.decode(payload)
    before, after = dict(header.extra or {}), dict(decoded.extra or {})
    for key, value in changes.items():
        assert after.pop(key, None) == value
        before.pop(key, None)
    assert after == before
    assert payload[offset:] == b"body"
    assert (decoded.id, decoded.task, decoded.attempt, decoded.reply) == (header.id, header.task, 9, header.reply)


@given(payload=st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
@example(b"\xc1\x01\x00")
@example(b"\xc1\x01\x00\x00")
def test_any_bytes_are_read_or_refused_with_a_reason(payload: bytes) -> None:
    for decode in (envelope.decode, envelope.decode_dead):
        with contextlib.suppress(DecodeError):
            decode(payload)  # type: ignore[operator]


@given(header=HEADERS, body=st.binary(max_size=20), data=st.data())
def test_damaged_messages_are_read_or_refused(header: Header, body: bytes, data: st.DataObject) -> None:
    payload = bytearray(envelope.encode(header, body))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    try:
        decoded, offset = envelope.decode(bytes(payload[:cut]))
    except DecodeError:
        return
    assert isinstance(decoded, Header)
    assert 4 <= offset <= cut
    envelope.message_id(decoded)


# ------------------------------------------------------------------------------------------------------ what is said


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\xc1\x02\x00\x00", "protocol version 2, this release reads 1; upgrade taskq-core here"),
        (b'{"task": "x"}', "looks like JSON.*another program sends to this queue"),
        (b"\x80\x04\x95", r"not a taskq message \(it starts with"),
        (envelope.encode_dead(DEAD, b""), "is a dead letter; use `taskq dead`"),
        (envelope.encode(PLAIN, b"")[:20], r"cut off: its header should end at byte \d+, it has 20"),
        (b"", "cannot be read"),
    ],
    ids=["version", "json", "pickle", "dead letter", "cut off", "empty"],
)
def test_what_is_wrong_is_said(payload: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        envelope.decode(payload)


def test_a_task_is_no_dead_letter() -> None:
    with pytest.raises(DecodeError, match="not a dead letter of taskq"):
        envelope.decode_dead(envelope.encode(PLAIN, b""))


def test_a_header_has_a_limit() -> None:
    fits = Header("x", "t", extra={"h": {"a": "y" * 65_000}})
    assert envelope.decode(envelope.encode(fits, b"z"))[0] == fits
    with pytest.raises(EncodeError, match="at most 65535 fit"):
        envelope.encode(Header("x", "t", extra={"h": {"a": "y" * 65_535}}), b"")


@pytest.mark.parametrize(
    ("attempt", "epoch", "name"), [(0, 0, "x"), (1, 0, "x.0.1"), (0, 1, "x.1.0"), (2, 3, "x.3.2")]
)  # fmt: skip
def test_the_id_of_a_message(attempt: int, epoch: int, name: str) -> None:
    """Every run of a task is a message of its own, with an id that is always the same."""
    header = Header("x", "t", attempt=attempt, extra={"ep": epoch} if epoch else None)
    assert envelope.message_id(header) == name
    assert envelope.message_id(Header("x", "t"), attempt=attempt, epoch=epoch) == name
