"""Serializers and compressors, each broken in one way, and the tests of the kit that must see it."""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
import zlib
from typing import Any, ClassVar

import msgspec

from taskq.errors import DecodeError, EncodeError
from taskq_compressor_zlib.compressor import ZlibCompressor
from taskq_serializer_json.serializer import JsonSerializer

SILENT = "test_nothing_changes_silently"


class Json(JsonSerializer):
    """A sound serializer, to break; made from a component's config."""

    caught_by: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any) -> None:
        super().__init__(config.options)


class LosesTheZone(Json):
    caught_by = ("test_promised_values_come_back", SILENT)

    def dumps(self, value: Any) -> bytes:
        return super().dumps(_each(value, lambda v: v.replace(tzinfo=None) if isinstance(v, dt.datetime) else v))


class LosesTheFold(Json):
    caught_by = (SILENT,)

    def dumps(self, value: Any) -> bytes:
        return super().dumps(_each(value, lambda v: v.replace(fold=0) if isinstance(v, dt.datetime) else v))


class WritesNanAsNull(Json):
    caught_by = (SILENT, "test_promised_values_come_back")

    def dumps(self, value: Any) -> bytes:
        return super().dumps(_each(value, lambda v: None if isinstance(v, float) and v != v else v))


class WritesSetsAsLists(Json):
    caught_by = (SILENT,)

    def dumps(self, value: Any) -> bytes:
        return super().dumps(_each(value, lambda v: sorted(v) if isinstance(v, set) else v))


class WritesKeysAsText(Json):
    caught_by = (SILENT,)

    def dumps(self, value: Any) -> bytes:
        return super().dumps(_each(value, lambda v: {str(k): x for k, x in v.items()} if type(v) is dict else v))


class ReadsFloatsAsIntegers(Json):
    caught_by = ("test_plain_data_comes_back",)

    def loads(self, data: bytes) -> Any:
        return _each(super().loads(data), lambda v: int(v) if type(v) is float and v.is_integer() else v)


class CutsLongText(Json):
    caught_by = ("test_large_values",)

    def dumps(self, value: Any) -> bytes:
        return super().dumps(_each(value, lambda v: v[:100_000] if isinstance(v, str) else v))


class DropsKeywords(Json):
    caught_by = ("test_a_calls_arguments_come_back",)

    def loads(self, data: bytes) -> Any:
        value = super().loads(data)
        return [value[0], {}] if isinstance(value, list) and len(value) == 2 and isinstance(value[1], dict) else value


class RefusesTuples(Json):
    caught_by = ("test_a_calls_arguments_come_back",)

    def dumps(self, value: Any) -> bytes:
        def refuse(found: Any) -> Any:
            if type(found) is tuple:
                raise EncodeError("a tuple")
            return found

        return super().dumps(_each(value, refuse))


class ReturnsText(Json):
    caught_by = ("test_values_are_left_alone",)

    def dumps(self, value: Any) -> Any:
        return bytearray(super().dumps(value))


class Remembers(Json):
    caught_by = ("test_values_are_left_alone",)
    seen: ClassVar[dict[bytes, Any]] = {}

    def loads(self, data: bytes) -> Any:
        return self.seen.setdefault(data, super().loads(data))


class ChangesItsArgument(Json):
    caught_by = ("test_values_are_left_alone",)

    def dumps(self, value: Any) -> bytes:
        if isinstance(value, list) and isinstance(value[-1], dict):
            value[-1]["version"] = 1
        return super().dumps(value)


class SharesABuffer(Json):
    caught_by = ("test_several_threads",)

    def dumps(self, value: Any) -> bytes:
        self.buffer = super().dumps(value)
        time.sleep(0)  # where another thread comes in
        time.sleep(0.0001)
        return self.buffer


class RaisesTypeError(Json):
    caught_by = ("test_what_cannot_be_written_is_refused",)

    def dumps(self, value: Any) -> bytes:
        try:
            return super().dumps(value)
        except EncodeError as error:
            raise TypeError(str(error)) from None


class RefusesWithoutAWord(Json):
    caught_by = ("test_what_cannot_be_written_is_refused",)

    def dumps(self, value: Any) -> bytes:
        try:
            return super().dumps(value)
        except EncodeError:
            raise EncodeError("cannot encode") from None


class WritesTheUnwritable(Json):
    caught_by = ("test_what_cannot_be_written_is_refused",)

    def dumps(self, value: Any) -> bytes:
        try:
            return super().dumps(value)
        except EncodeError:
            return super().dumps(repr(value))


class RaisesRecursionError(Json):
    caught_by = ("test_nesting_without_end_is_refused",)

    def dumps(self, value: Any) -> bytes:
        return json.dumps(value, check_circular=False).encode()


class RaisesValueErrorForACircle(Json):
    caught_by = ("test_nesting_without_end_is_refused",)

    def dumps(self, value: Any) -> bytes:
        return json.dumps(value).encode()


class RaisesKeyError(Json):
    caught_by = ("test_damaged_bytes_are_refused",)

    def loads(self, data: bytes) -> Any:
        value = json.loads(data) if data.endswith(b"}]") else super().loads(data)
        return [value[0], {**value[1], "flag": value[1]["flag"]}] if data.endswith(b"}]") else value


class RaisesTheLibrarysError(Json):
    caught_by = ("test_damaged_bytes_are_refused", "test_random_bytes_are_refused")

    def loads(self, data: bytes) -> Any:
        return msgspec.json.decode(data)


class ReadsNothingAsNone(Json):
    caught_by = ("test_damaged_bytes_are_refused",)

    def loads(self, data: bytes) -> Any:
        return super().loads(data) if data else None


class RunsCode(Json):
    caught_by = ("test_reading_runs_no_code",)

    def loads(self, data: bytes) -> Any:
        import pickle  # the mutant's point

        try:
            return super().loads(data)
        except DecodeError as error:
            try:
                return pickle.loads(data)
            except Exception:
                raise error from None


class SaysTrusted(Json):
    caught_by = ("test_content_type_and_trust",)
    trusted = True


class HasAnotherContentType(Json):
    caught_by = ("test_content_type_and_trust",)
    content_type = "application/json"


def _each(value: Any, change: Any, depth: int = 0) -> Any:
    """Apply a change to a value and all that is in it."""
    if depth > 50:
        return value
    value = change(value)
    if type(value) is list:
        return [_each(item, change, depth + 1) for item in value]
    if type(value) is tuple:
        return tuple(_each(item, change, depth + 1) for item in value)
    if type(value) is dict:
        return {key: _each(item, change, depth + 1) for key, item in value.items()}
    return value


# ------------------------------------------------------------------------------------------------ compressors


class Zlib(ZlibCompressor):
    """A sound compressor, to break."""

    caught_by: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any) -> None:
        super().__init__(config.options)


class IgnoresTheLimit(Zlib):
    caught_by = ("test_the_limit_is_exact", "test_a_bomb_does_not_fill_the_memory")

    def decompress(self, data: bytes, *, max_size: int) -> bytes:
        return super().decompress(data, max_size=sys.maxsize - 1)


class LooksAtTheSizeAfterwards(Zlib):
    caught_by = ("test_a_bomb_does_not_fill_the_memory",)

    def decompress(self, data: bytes, *, max_size: int) -> bytes:
        out = super().decompress(data, max_size=sys.maxsize - 1)
        if len(out) > max_size:
            raise DecodeError(f"more than {max_size} bytes")
        return out


class StopsOneByteEarly(Zlib):
    caught_by = ("test_the_limit_is_exact", "test_any_bytes_come_back")

    def decompress(self, data: bytes, *, max_size: int) -> bytes:
        return super().decompress(data, max_size=max_size - 1)


class TakesNoughtForNoLimit(Zlib):
    caught_by = ("test_the_limit_is_exact",)

    def decompress(self, data: bytes, *, max_size: int) -> bytes:
        return super().decompress(data, max_size=max_size or 10**9)


class CutsAtTheLimit(Zlib):
    caught_by = ("test_the_limit_is_exact",)

    def decompress(self, data: bytes, *, max_size: int) -> bytes:
        return zlib.decompressobj().decompress(data, max_size)


class TakesTruncatedStreams(Zlib):
    caught_by = ("test_damaged_bytes_are_refused",)

    def decompress(self, data: bytes, *, max_size: int) -> bytes:
        try:
            return super().decompress(data, max_size=max_size)
        except DecodeError as error:
            if "cut off" not in str(error):
                raise
            return zlib.decompressobj().decompress(data, max_size)


class IgnoresWhatFollows(Zlib):
    caught_by = ("test_damaged_bytes_are_refused",)

    def decompress(self, data: bytes, *, max_size: int) -> bytes:
        stream = zlib.decompressobj()
        try:
            stream.decompress(data, max_size + 1)
        except zlib.error:
            return super().decompress(data, max_size=max_size)
        return super().decompress(data[: len(data) - len(stream.unused_data)], max_size=max_size)


class RaisesZlibError(Zlib):
    caught_by = ("test_damaged_bytes_are_refused", "test_random_bytes_are_refused")

    def decompress(self, data: bytes, *, max_size: int) -> bytes:
        zlib.decompressobj().decompress(data, max_size + 1)
        return super().decompress(data, max_size=max_size)


class CompressesNothing(Zlib):
    caught_by = ("test_it_makes_text_smaller",)

    def compress(self, data: bytes) -> bytes:
        return zlib.compress(data, 0)


class ForgetsTheEmpty(Zlib):
    caught_by = ("test_any_bytes_come_back",)

    def compress(self, data: bytes) -> bytes:
        return super().compress(data) if data else b""


class SharesAStream(Zlib):
    caught_by = ("test_several_threads",)

    def decompress(self, data: bytes, *, max_size: int) -> bytes:
        self.out = super().decompress(data, max_size=max_size)
        time.sleep(0.0001)
        return self.out


class HasAnotherEncoding(Zlib):
    caught_by = ("test_encoding",)
    encoding = "deflate"


SERIALIZERS = [mutant for mutant in globals().values() if isinstance(mutant, type) and issubclass(mutant, Json)][1:]
COMPRESSORS = [mutant for mutant in globals().values() if isinstance(mutant, type) and issubclass(mutant, Zlib)][1:]
