"""The conformance suite of compressors."""

from __future__ import annotations

from taskq.testing import CompressorSuite, PackagingSuite


class TestConformance(CompressorSuite):
    name = "zlib"


class TestStored(CompressorSuite):
    name = "zlib"
    options = {"level": 0}  # noqa: RUF012  as declared by the suite
    skip_reasons = {"test_it_makes_text_smaller": "level 0 stores"}  # noqa: RUF012


class TestPackaging(PackagingSuite):
    kind = "compressor"
    name = "zlib"
