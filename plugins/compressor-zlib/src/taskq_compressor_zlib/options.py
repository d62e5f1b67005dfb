"""Options of the zlib compressor."""

from __future__ import annotations

from dataclasses import dataclass

from taskq.spi import option


@dataclass(frozen=True)
class ZlibOptions:
    """What the zlib compressor can be told."""

    level: int = option(
        6, choices=tuple(range(10)), help="0 stores, 1 is fastest, 9 is smallest; reading needs no agreement on it"
    )
