"""What every serializer and every compressor must do.

A plugin's test::

    class TestConformance(SerializerSuite):
        name = "json"
"""

from __future__ import annotations

import copy
import datetime as dt
import decimal
import math
import os
import re
import threading
import tracemalloc
import uuid
import zoneinfo
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.errors import DecodeError, EncodeError
from taskq.spi import ComponentConfig, Compressor, CompressorSpec, Serializer, SerializerSpec
from taskq.testing.base import SOAK, Suite, select

_EXAMPLES = 5000 if SOAK else 100
_LABEL = re.compile(r"[a-z][a-z0-9.+-]{0,31}")
_CALL: list[Any] = [[1, "text", None], {"flag": True, "rate": 1.5, "nested": {"list": [1, [2, {}]]}}]

_plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip

_RICH: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, -0.0, 2**64, -(2**63) - 1, 10**40,
    "\ud800", "\x00", "ä😀",
    b"", b"\x00\xff", bytearray(b"ab"), (1, (2,)), (), {1, 2}, set(), frozenset({"a"}), complex(1, 2),
    {1: "a"}, {None: 1}, {True: 1}, {1.5: 2}, {(1, 2): 3}, {1: "int", "1": "str"},
    dt.datetime(2024, 1, 2, 3, 4, 5, 6), dt.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
    dt.datetime(2024, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=-3, minutes=-30))),
    dt.datetime(2024, 10, 27, 2, 30, fold=1), dt.datetime(2024, 10, 27, 2, 30, tzinfo=zoneinfo.ZoneInfo("UTC")),
    dt.date(2024, 2, 29), dt.time(1, 2, 3, 4), dt.time(1, 2, tzinfo=dt.UTC), dt.timedelta(days=-1, microseconds=7),
    uuid.UUID(int=5), decimal.Decimal("1.10"), decimal.Decimal("-0"), decimal.Decimal("NaN"), range(3), Path("a/b"),
)  # fmt: skip

_CODE = (
    b"cos\nmkdir\n(S'{path}'\ntR.",  # pickle
    b"!!python/object/apply:os.mkdir ['{path}']",  # YAML
    b'{"py/reduce": [{"py/function": "os.mkdir"}, {"py/tuple": ["{path}"]}]}',  # jsonpickle
    b'{"__class__": "os.mkdir", "__module__": "os", "args": ["{path}"]}',
)
"""Payloads that make a folder where a reader calls whatever the bytes name."""


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal in value and in type, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(same, a, b)) and all(map(same, a.values(), b.values()))
    if isinstance(a, float | decimal.Decimal):
        return repr(a) == repr(b)  # NaN, and the sign of zero
    if isinstance(a, dt.datetime | dt.time):
        return bool(a.isoformat() == b.isoformat() and a.fold == b.fold)
    return bool(a == b)


def _damaged(data: bytes) -> Iterator[bytes]:
    """Cut bytes off, change some, and add some, a few hundred variants."""
    step = max(1, len(data) // 100)
    for cut in range(0, len(data), step):
        yield data[:cut]
    for index in range(0, len(data), step):
        for flip in (0x01, 0x80, 0xFF):
            yield data[:index] + bytes([data[index] ^ flip]) + data[index + 1 :]


def _in_threads(call: Callable[[int], None]) -> None:
    barrier = threading.Barrier(4)

    def run(number: int) -> None:
        barrier.wait()
        for turn in range(50):
            call(number * 1000 + turn)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(run, number) for number in range(4)]:
            future.result()


class SerializerSuite(Suite):
    """All tests of a serializer; subclass it, name the serializer, and list what it promises beyond plain data."""

    name: ClassVar[str]
    """The serializer's name, as its entry point is named; also its content type."""
    values: ClassVar[Sequence[Any]] = ()
    """Values beyond plain data that the plugin's documentation promises to bring back."""
    comes_back_as: ClassVar[Sequence[tuple[Any, Any]]] = ()
    """Documented exceptions: a value, and what it comes back as (for many a tuple as a list)."""
    refused: ClassVar[Sequence[Any]] = (threading.Lock(),)
    """Values that cannot be written."""

    def load_spec(self) -> SerializerSpec:
        spec: SerializerSpec = select("serializer", self.name)
        return spec

    @pytest.fixture
    def serializer(self) -> Serializer:
        spec = self.load_spec()
        return spec.factory(ComponentConfig(options=self.options_for(spec), app="kit"))

    # ------------------------------------------------------------------------------------------ what it is

    def test_content_type_and_trust(self, serializer: Serializer) -> None:
        """Check that the content type is the plugin's name in short plain ASCII, and ``trusted`` as the spec says."""
        spec = self.load_spec()
        assert spec.name == serializer.content_type == self.name
        assert _LABEL.fullmatch(serializer.content_type), f"{serializer.content_type!r} does not fit a header"
        assert serializer.trusted is spec.trusted, "spec and serializer disagree on whether reading is dangerous"

    # ------------------------------------------------------------------------------------------ round trips

    def test_plain_data_comes_back(self, serializer: Serializer) -> None:
        """Check that None, booleans, 64-bit integers, finite floats, text, lists and dicts with text keys come back
        equal in value and in type.
        """

        @settings(max_examples=_EXAMPLES, deadline=None, database=None)
        @given(_plain)
        def check(value: Any) -> None:
            back = serializer.loads(serializer.dumps(value))
            assert same(back, value), f"{value!r} came back as {back!r}"

        check()

    def test_a_calls_arguments_come_back(self, serializer: Serializer) -> None:
        """Check the shape of a message's body: arguments and keyword arguments; the arguments may be a tuple."""
        bodies: tuple[Any, ...] = (_CALL, [tuple(_CALL[0]), _CALL[1]], (tuple(_CALL[0]), _CALL[1]), [(), {}])
        for body in bodies:
            args, kwargs = serializer.loads(serializer.dumps(body))
            assert same(list(args), list(body[0]))
            assert same(kwargs, body[1])

    def test_promised_values_come_back(self, serializer: Serializer) -> None:
        """Check that each of the suite's ``values`` comes back equal, alone and inside lists and dicts."""
        for value in self.values:
            for wrapped in (value, [value], {"key": value}, [[value], {"key": [value]}]):
                back = serializer.loads(serializer.dumps(wrapped))
                assert same(back, wrapped), f"{wrapped!r} came back as {back!r}"

    def test_nothing_changes_silently(self, serializer: Serializer) -> None:
        """Check that a value is either refused with EncodeError, or comes back equal in value and type (a time with its
        zone, a key with its type), or that the change is documented and stands in ``comes_back_as``.
        """
        expected = {repr(value): back for value, back in self.comes_back_as}
        for value in (*_RICH, *(value for value, _ in self.comes_back_as)):
            try:
                data = serializer.dumps([value])
            except EncodeError:
                assert repr(value) not in expected, f"{value!r} is said to come back, but is refused"
                continue
            (back,) = serializer.loads(data)
            wanted = expected.get(repr(value), value)
            assert same(back, wanted), f"{value!r} came back as {back!r}: refuse it, or tag it, or document it"

    def test_large_values(self, serializer: Serializer) -> None:
        """Check that a megabyte of text and a list of 100,000 numbers come back."""
        for value in ("ä" * 500_000, list(range(100_000))):
            assert serializer.loads(serializer.dumps(value)) == value

    def test_values_are_left_alone(self, serializer: Serializer) -> None:
        """Check that ``dumps`` changes nothing in its argument and gives the same bytes again, and that two ``loads``
        of the same bytes share nothing that can be changed.
        """
        value = copy.deepcopy(_CALL)
        first = serializer.dumps(value)
        assert type(first) is bytes
        assert same(value, _CALL)
        assert serializer.dumps(value) == first
        one, other = serializer.loads(first), serializer.loads(first)
        one[1]["nested"]["list"].append("changed")
        assert same(other, _CALL)

    def test_several_threads(self, serializer: Serializer) -> None:
        """Check that one serializer may be used by any thread at any time."""

        def call(number: int) -> None:
            value = [[number, str(number)], {"n": [number] * 20}]
            assert serializer.loads(serializer.dumps(value)) == value

        _in_threads(call)

    # ------------------------------------------------------------------------------------------ refusals

    def test_what_cannot_be_written_is_refused(self, serializer: Serializer) -> None:
        """Check that a value that cannot be written gives EncodeError, wherever it stands, and that the text names its
        type: it is all that the author of a task gets to see.
        """
        for value in self.refused:
            for wrapped in (value, [value], {"key": [1, value]}, [[value], {}]):
                with pytest.raises(EncodeError) as caught:
                    serializer.dumps(wrapped)
                assert type(value).__name__ in str(caught.value), f"{caught.value} does not name {type(value).__name__}"

    def test_nesting_without_end_is_refused(self, serializer: Serializer) -> None:
        """Check that a value which contains itself, or is nested 100,000 levels deep, is refused with EncodeError, or
        comes back; neither RecursionError nor a crash of the interpreter.
        """
        circle: list[Any] = []
        circle.append(circle)
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        for value in (circle, {"key": circle}, deep):
            try:
                data = serializer.dumps(value)
            except EncodeError:
                continue
            serializer.loads(data)

    def test_damaged_bytes_are_refused(self, serializer: Serializer) -> None:
        """Check that ``loads`` of bytes that are cut off or changed raises DecodeError or nothing, but nothing else."""
        for value in (_CALL, *([value] for value in self.values)):
            data = serializer.dumps(value)
            for broken in _damaged(data) if not serializer.trusted else (data[:n] for n in range(len(data))):
                self._read(serializer, broken)
        with pytest.raises(DecodeError):
            serializer.loads(b"")

    def test_random_bytes_are_refused(self, serializer: Serializer) -> None:
        """Check that ``loads`` of random bytes raises DecodeError or nothing, no other exception."""
        if serializer.trusted:
            pytest.skip("a trusted serializer may do anything with random bytes")

        @settings(max_examples=_EXAMPLES * 3, deadline=None, database=None)
        @given(st.binary(max_size=200))
        def check(data: bytes) -> None:
            self._read(serializer, data)

        check()
        for opening in (b"[", b"{", b'{"a":', b"\x91", b"\x81\xa1a", b"- ", b"(", b"l"):
            self._read(serializer, opening * 100_000)

    def test_reading_runs_no_code(self, serializer: Serializer, tmp_path: Path) -> None:
        """Check that no payload can make an untrusted serializer call a function that the bytes name."""
        if serializer.trusted:
            pytest.skip("a trusted serializer is one that may run code")
        for payload in _CODE:
            target = tmp_path / "made"
            self._read(serializer, payload.replace(b"{path}", os.fsencode(target)))
            assert not target.exists(), (
                "reading called a function that the bytes named: such a serializer must declare trusted"
            )

    def _read(self, serializer: Serializer, data: bytes) -> None:
        try:
            serializer.loads(data)
        except DecodeError:
            pass
        except Exception as error:
            pytest.fail(f"loads({data[:60]!r}) raised {type(error).__name__}: {error}; only DecodeError may leave")


class CompressorSuite(Suite):
    """All tests of a compressor; subclass it and name the compressor."""

    name: ClassVar[str]
    """The compressor's name, as its entry point is named; also its encoding."""

    def load_spec(self) -> CompressorSpec:
        spec: CompressorSpec = select("compressor", self.name)
        return spec

    @pytest.fixture
    def compressor(self) -> Compressor:
        spec = self.load_spec()
        return spec.factory(ComponentConfig(options=self.options_for(spec), app="kit"))

    def test_encoding(self, compressor: Compressor) -> None:
        """Check that the encoding is the plugin's name, and short plain ASCII."""
        assert self.load_spec().name == compressor.encoding == self.name
        assert _LABEL.fullmatch(compressor.encoding), f"{compressor.encoding!r} does not fit a header"

    def test_any_bytes_come_back(self, compressor: Compressor) -> None:
        """Check that what was compressed comes back, be it empty, random or large, and that bytes are returned."""

        @settings(max_examples=_EXAMPLES, deadline=None, database=None)
        @given(st.binary(max_size=2000))
        def check(data: bytes) -> None:
            written = compressor.compress(data)
            assert type(written) is bytes
            back = compressor.decompress(written, max_size=len(data))
            assert type(back) is bytes
            assert back == data

        check()
        for data in (b"", b"\x00", os.urandom(300_000), bytes(3_000_000), b"text " * 200_000):
            assert compressor.decompress(compressor.compress(data), max_size=len(data)) == data

    def test_it_makes_text_smaller(self, compressor: Compressor) -> None:
        """Check that repetitive text shrinks to a tenth: else there is no point in it."""
        text = b'{"id": 1, "name": "customer"}, ' * 1000
        assert len(compressor.compress(text)) < len(text) // 10

    def test_the_limit_is_exact(self, compressor: Compressor) -> None:
        """Check that ``max_size`` bytes are allowed and one byte more is a DecodeError, for contents of any size."""
        for data in (b"x", b"text " * 3, bytes(100_000), os.urandom(100_000)):
            written = compressor.compress(data)
            assert compressor.decompress(written, max_size=len(data)) == data
            for limit in {0, len(data) // 2, len(data) - 1}:
                with pytest.raises(DecodeError, match=str(limit)):
                    compressor.decompress(written, max_size=limit)

    def test_a_bomb_does_not_fill_the_memory(self, compressor: Compressor) -> None:
        """Check that decompressing stops at the limit, instead of looking at the size when all is unpacked: a message
        of some kilobytes can unpack to gigabytes.
        """
        size = 64 * 1024 * 1024
        bomb = compressor.compress(bytes(size))
        tracemalloc.start()
        try:
            with pytest.raises(DecodeError):
                compressor.decompress(bomb, max_size=10_000)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < size // 8 + 2 * len(bomb), f"{peak:,} bytes were allocated for a limit of 10,000"

    def test_damaged_bytes_are_refused(self, compressor: Compressor) -> None:
        """Check that input that is empty, cut off anywhere or followed by other bytes gives DecodeError, and that
        changed bytes give DecodeError or bytes within the limit, never another exception.
        """
        for content in (b"text " * 100, os.urandom(500), b""):
            data = compressor.compress(content)
            for cut in range(len(data)):
                with pytest.raises(DecodeError):
                    compressor.decompress(data[:cut], max_size=10_000)
            for more in (b"\x00", b"garbage", data):
                with pytest.raises(DecodeError):
                    compressor.decompress(data + more, max_size=10_000)
            for broken in _damaged(data):
                self._read(compressor, broken, 10_000)

    def test_random_bytes_are_refused(self, compressor: Compressor) -> None:
        """Check that random bytes give DecodeError or bytes within the limit, never another exception."""

        @settings(max_examples=_EXAMPLES * 3, deadline=None, database=None)
        @given(st.binary(max_size=200), st.integers(0, 1000))
        def check(data: bytes, limit: int) -> None:
            self._read(compressor, data, limit)

        check()

    def test_several_threads(self, compressor: Compressor) -> None:
        """Check that one compressor may be used by any thread at any time."""

        def call(number: int) -> None:
            data = str(number).encode() * 200
            assert compressor.decompress(compressor.compress(data), max_size=len(data)) == data

        _in_threads(call)

    def _read(self, compressor: Compressor, data: bytes, limit: int) -> None:
        try:
            back = compressor.decompress(data, max_size=limit)
        except DecodeError:
            return
        except Exception as error:
            pytest.fail(
                f"decompress({data[:60]!r}) raised {type(error).__name__}: {error}; only DecodeError may leave it"
            )
        assert len(back) <= limit
