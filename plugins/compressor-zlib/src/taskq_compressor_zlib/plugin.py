"""Hook implementations of the zlib compressor."""

from __future__ import annotations

from taskq.spi import ComponentConfig, Compressor, CompressorSpec, hookimpl
from taskq_compressor_zlib.options import ZlibOptions


def make(config: ComponentConfig) -> Compressor:
    """Make the compressor; imports the driver. Errors: ConfigError for a level outside 0 to 9."""
    from taskq_compressor_zlib.compressor import ZlibCompressor

    return ZlibCompressor(config.options)


@hookimpl
def taskq_compressor(name: str) -> CompressorSpec:
    """Offer the compressor."""
    return CompressorSpec(
        spi="0.1",
        name=name,
        factory=make,
        options=ZlibOptions,
        summary="zlib (RFC 1950), which every Python and language has",
    )
