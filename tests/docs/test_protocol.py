"""docs/protocol.md: the bytes on the page are the bytes that are sent, and they can be read for ever.

If an example fails here, the wire format has changed: workers and callers of the last release could no longer read what
this one writes. Add to the format as the page allows, or give it a new version; do not change the page's bytes.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from taskq import envelope, failure
from taskq.envelope import DeadInfo, Header
from taskq.errors import DecodeError
from taskq.failure import ErrorInfo, ResultPayload
from tests.docs.pages import DOCS, blocks

PAGE = DOCS / "protocol.md"
TASK_ID = "019b76d8a8007000a000000000000001"
SENT = 1767225600.0  # 2026-01-01T00:00:00Z

SMALLEST = envelope.encode(Header(TASK_ID, "hello.add", "json", 0, SENT, ""), b"[[2,2],{}]")
EVERYTHING = envelope.encode(
    Header(
        TASK_ID, "hello.add", "json", 2, SENT, None,
        {
            "nb": SENT + 60, "ex": SENT + 3600, "p": 9, "g": "account-7", "ep": 1, "t": [["zlib"]], "mr": 5,
            "pa": "019b76d8a8007000a000000000000000", "ro": "019b76d8a8007000a000000000000000", "h": {"tenant": "acme"},
            "hi": [[0, SENT - 60, "ValueError: no"]], "x-new": "kept",
        },
    ),
    b"\x78\x9c",
)  # fmt: skip
DEAD = envelope.encode_dead(
    DeadInfo(
        id=TASK_ID, queue="default", reason="TypeError: no", died_at=SENT + 1, task="hello.add", state="FAILURE",
        deliveries=1, worker="host-1",
    ),
    SMALLEST,
)  # fmt: skip
SUCCESS = failure.encode_payload(ResultPayload("json", b"4", None, None, SENT + 1, "host-1"))
FAILURE = failure.encode_payload(
    ResultPayload(
        "json",
        None,
        ErrorInfo("builtins", "KeyError", "'book'", b'["book"]', None, "Traceback …"),
        None,
        SENT + 1,
        "host-1",
    )
)
EXAMPLES = {"smallest": SMALLEST, "everything": EVERYTHING, "dead": DEAD, "success": SUCCESS, "failure": FAILURE}


def dump(data: bytes) -> str:
    """Write bytes as the page shows them: offset, up to sixteen bytes, and what of them is text."""
    lines = []
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in part)
        lines.append(f"{at:04x}  {part.hex(' '):47}  {text}")
    return "\n".join(lines) + "\n"


def on_the_page() -> dict[str, bytes]:
    found = {}
    for block in blocks(PAGE):
        if block.language.startswith("hex:"):
            digits = "".join(re.findall(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+)", block.text, re.MULTILINE))
            found[block.language.removeprefix("hex:")] = bytes.fromhex(digits)
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_sent_is_what_the_page_shows(name: str) -> None:
    shown = on_the_page()[name]
    assert dump(EXAMPLES[name]) == dump(shown)


def test_the_page_shows_nothing_else() -> None:
    assert set(on_the_page()) == set(EXAMPLES)


def test_the_bytes_of_the_page_can_be_read() -> None:
    shown = on_the_page()
    header, body = envelope.decode(shown["smallest"])
    assert (header.id, header.task, header.reply, shown["smallest"][body:]) == (TASK_ID, "hello.add", "", b"[[2,2],{}]")
    header, _ = envelope.decode(shown["everything"])
    assert header.attempt == 2
    assert header.reply is None
    assert header.get("h") == {"tenant": "acme"}
    info, payload = envelope.decode_dead(shown["dead"])
    assert (info.reason, payload) == ("TypeError: no", shown["smallest"])
    assert failure.decode_payload(shown["success"]).value == b"4"
    error = failure.decode_payload(shown["failure"]).error
    assert error is not None
    assert repr(failure.rebuild(error, msgspec_json())) == "KeyError('book')"


def test_what_a_newer_release_adds_is_kept_and_further_elements_are_ignored() -> None:
    header, _ = envelope.decode(on_the_page()["everything"])
    again, _ = envelope.decode(envelope.with_changes(header, b"", changes={"p": None}, attempt=3))
    assert again.get("x-new") == "kept"
    fields: list[Any] = [TASK_ID, "hello.add", "json", 0, SENT, "", {}, "an eighth element"]
    head = msgspec.msgpack.encode(fields)
    read, _ = envelope.decode(b"\xc1\x01" + len(head).to_bytes(2, "big") + head)
    assert read.task == "hello.add"


def test_another_version_is_told_from_damage() -> None:
    with pytest.raises(DecodeError, match="protocol version 2, this release reads 1"):
        envelope.decode(b"\xc1\x02\x00\x00")
    with pytest.raises(DecodeError, match="cut off"):
        envelope.decode(SMALLEST[:20])


def test_every_key_of_the_header_s_map_is_described() -> None:
    text = PAGE.read_text("utf-8")
    keys = {v for k, v in vars(envelope).items() if k.isupper() and isinstance(v, str)}
    assert len(keys) > 10
    assert not [key for key in keys if f"| `{key}` |" not in text]


def test_every_field_of_a_dead_letter_and_a_result_is_described() -> None:
    text = PAGE.read_text("utf-8")
    for struct in (Header, DeadInfo, ResultPayload, ErrorInfo):
        missing = [field for field in struct.__struct_fields__ if f"`{field}`" not in text and field != "extra"]
        assert not missing, struct


def msgspec_json() -> Any:
    class Json:
        content_type, trusted = "json", False
        dumps = staticmethod(msgspec.json.encode)
        loads = staticmethod(msgspec.json.decode)

    return Json()


if __name__ == "__main__":
    for name, data in EXAMPLES.items():
        print(f"```hex:{name}\n{dump(data)}```\n")
