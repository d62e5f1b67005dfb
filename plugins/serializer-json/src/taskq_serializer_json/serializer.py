"""The serializer: one quick look at a value, then C code; only what JSON lacks takes the long way.

``dumps`` walks the value once to see whether it is plain JSON data, which is nearly always so, and hands it to msgspec
as it is. msgspec alone would not do: it writes datetimes, sets, NaN and others as something that reads back as another
type. The rest is rewritten with tags first (``tags.py``). ``loads`` looks for tags only where the bytes hold one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from taskq.errors import DecodeError, EncodeError
from taskq_serializer_json.options import JsonOptions
from taskq_serializer_json.tags import MAX_DEPTH, TAG, Reader, Writer, bare

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_MARKER: Final = b'"' + TAG.encode() + b'"'
_ATOMS: Final = frozenset({str, int, bool, type(None)})
_all_atoms = _ATOMS.issuperset
_all_str = frozenset({str}).issuperset


def _plain(values: Iterable[Any], depth: int) -> bool:
    """Whether msgspec writes these values so that they read back the same (tuples as lists)."""
    if not depth:
        return False
    for value in values:
        kind = type(value)
        if kind in _ATOMS:
            continue
        if kind is list or kind is tuple:
            # For long lists the look at all types in C pays; for short ones it costs more than the loop.
            if value and (len(value) < 8 or not _all_atoms(map(type, value))) and not _plain(value, depth - 1):
                return False
        elif kind is dict:
            if value and (TAG in value or not _all_str(map(type, value)) or not _plain(value.values(), depth - 1)):
                return False
        elif kind is not float or value - value != 0.0:  # the difference is NaN for NaN and the infinities
            return False
    return True


class JsonSerializer:
    """Reads and writes JSON; see the README's table for what travels how."""

    content_type = "json"
    trusted = False

    def __init__(self, options: JsonOptions | None = None) -> None:
        rebuild = (options or JsonOptions()).classes == "loaded"
        self._write = Writer(_encode)
        self._read = Reader(rebuild)

    def dumps(self, value: Any) -> bytes:
        """Encode a value. Errors: EncodeError naming the part that cannot be written, its type, and what to do."""
        try:
            if _plain((value,), MAX_DEPTH):
                return _encode(value)
        except (ValueError, RecursionError):  # a lone surrogate, an integer of thousands of digits
            pass
        try:
            return _encode(self._write(value))
        except EncodeError:
            raise
        except RecursionError:
            raise EncodeError(
                f"cannot write a {bare(type(value))} as JSON: it is nested too deeply for the stack of this thread. "
                "Pass flatter data."
            ) from None
        except Exception as error:  # user code that runs here: a tzinfo, the iterator of a subclass
            raise EncodeError(
                f"cannot write a {bare(type(value))} as JSON: {type(error).__name__}: {error}. Pass plain data."
            ) from error

    def loads(self, data: bytes) -> Any:
        """Decode bytes that ``dumps`` made, or any JSON. Errors: DecodeError."""
        if type(data) is not bytes:
            data = bytes(data)  # in a memoryview, the search below would find nothing
        try:
            value = _decode(data)
            return self._read(value) if _MARKER in data else value
        except DecodeError:
            raise
        except RecursionError:
            raise DecodeError(f"cannot read JSON of {len(data)} bytes: it is nested too deeply") from None
        except Exception as error:
            raise DecodeError(f"cannot read JSON of {len(data)} bytes: {type(error).__name__}: {error}") from error
