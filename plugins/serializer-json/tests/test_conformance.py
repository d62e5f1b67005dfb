"""The conformance suite of serializers."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import uuid

from taskq.testing import PackagingSuite, SerializerSuite


class TestConformance(SerializerSuite):
    name = "json"
    values = (
        math.nan, -math.inf, 10**40, "\ud800", b"\x00\xff", bytearray(b"a"), {1, 2}, frozenset({(1, "x")}),
        {1: {(2,): b""}},
        dt.datetime(2024, 1, 2, 3, tzinfo=dt.UTC), dt.datetime(2024, 1, 2), dt.date(2024, 1, 2), dt.time(3, fold=1),
        dt.timedelta(microseconds=-1), uuid.UUID(int=1), decimal.Decimal("1.10"), {"$taskq": "date"},
    )  # fmt: skip
    comes_back_as = (((1, (2,)), [1, [2]]), ((), []))


class TestPackaging(PackagingSuite):
    kind = "serializer"
    name = "json"
