"""The suites of serializers and compressors must see each way of being broken, and must pass where nothing is."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pytest
from msgspec.structs import replace

from core.tests.kit_components.bench import run
from core.tests.kit_components.format_mutants import COMPRESSORS, SERIALIZERS, Json, Zlib
from taskq.testing import CompressorSuite, SerializerSuite
from taskq_compressor_zlib.plugin import taskq_compressor
from taskq_serializer_json.plugin import taskq_serializer

PROMISED = {
    "values": (dt.datetime(2024, 1, 2, tzinfo=dt.UTC), math.nan, {1, 2}),
    "comes_back_as": (((1, (2,)), [1, [2]]), ((), [])),
}
KITS: dict[type, tuple[Any, Any, dict[str, Any]]] = {
    Json: (SerializerSuite, taskq_serializer("json"), PROMISED),
    Zlib: (CompressorSuite, taskq_compressor("zlib"), {}),
}
CASES = [
    pytest.param(sound, mutant, test, id=f"{mutant.__name__}-{test}")
    for sound, mutants in ((Json, SERIALIZERS), (Zlib, COMPRESSORS))
    for mutant in mutants
    for test in mutant.caught_by
]


@pytest.mark.parametrize(("sound", "mutant", "test"), CASES)
def test_mutant_is_caught(sound: type, mutant: Any, test: str) -> None:
    kit, spec, settings = KITS[sound]
    assert run(kit, test, replace(spec, factory=mutant), **settings), f"{test} passes on {mutant.__name__}"


@pytest.mark.parametrize(
    ("sound", "test"),
    sorted({(case.values[0], case.values[2]) for case in CASES}, key=lambda pair: (pair[0].__name__, pair[1])),
)
def test_a_sound_format_passes(sound: Any, test: str) -> None:
    kit, spec, settings = KITS[sound]
    assert not run(kit, test, replace(spec, factory=sound), **settings)


def test_an_undocumented_change_is_caught() -> None:
    kit, spec, _ = KITS[Json]
    assert "came back as" in run(kit, "test_nothing_changes_silently", spec, comes_back_as=())


def test_a_promise_of_a_change_that_is_a_refusal_is_caught() -> None:
    kit, spec, settings = KITS[Json]
    promises = {**settings, "comes_back_as": (*settings["comes_back_as"], (complex(1, 2), [1, 2]))}
    assert "is refused" in run(kit, "test_nothing_changes_silently", spec, **promises)


def test_a_spec_that_says_trusted_is_caught() -> None:
    kit, spec, settings = KITS[Json]
    assert run(kit, "test_content_type_and_trust", replace(spec, trusted=True), **settings)
