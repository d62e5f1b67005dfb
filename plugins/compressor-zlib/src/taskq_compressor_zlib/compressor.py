"""The compressor: the standard library's zlib with a limit on what comes out."""

from __future__ import annotations

import zlib

from taskq.errors import ConfigError, DecodeError
from taskq_compressor_zlib.options import ZlibOptions


class ZlibCompressor:
    """Writes and reads zlib streams (RFC 1950)."""

    encoding = "zlib"

    def __init__(self, options: ZlibOptions | None = None) -> None:
        level = (options or ZlibOptions()).level
        if not 0 <= level <= 9:
            raise ConfigError(f"The zlib compressor's option level is {level}; choose 0 (stored) to 9 (smallest).")
        self._level = level

    def compress(self, data: bytes) -> bytes:
        """Compress bytes."""
        return zlib.compress(data, self._level)

    def decompress(self, data: bytes, *, max_size: int) -> bytes:
        """Decompress exactly one stream, producing at most ``max_size`` bytes. Errors: DecodeError."""
        stream = zlib.decompressobj()
        try:
            # One byte more than allowed tells "exactly the limit" from "beyond it"; a limit of 0 means none to zlib.
            out = stream.decompress(data, max(0, max_size) + 1)
        except zlib.error as error:
            raise DecodeError(f"cannot decompress {len(data)} bytes as zlib: {error}") from error
        if len(out) > max_size:
            raise DecodeError(
                f"cannot decompress {len(data)} bytes as zlib: the content exceeds the limit of {max_size} bytes"
            )
        if not stream.eof:
            raise DecodeError(f"cannot decompress {len(data)} bytes as zlib: the stream is cut off")
        if stream.unused_data:
            raise DecodeError(
                f"cannot decompress {len(data)} bytes as zlib: {len(stream.unused_data)} bytes follow the stream's end"
            )
        return out
