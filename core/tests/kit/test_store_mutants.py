"""The suites for stores and coordination must see each way of being broken, and must pass where nothing is."""

from __future__ import annotations

from typing import Any

import pytest

from core.tests.kit import mutants_coordination, mutants_stores
from core.tests.kit.bench import run
from core.tests.kit.mutant import Coordinating, Store, mutants_of
from taskq.spi import Support
from taskq.testing import CoordinationSuite, StoreSuite

pytestmark = pytest.mark.slow  # it matters when the kit changes, and waits for timeouts


def kit_of(mutant: type[Store]) -> type:
    return CoordinationSuite if issubclass(mutant, Coordinating) else StoreSuite


MUTANTS = mutants_of(Store, mutants_stores, mutants_coordination)
CASES = [(mutant, test) for mutant in MUTANTS for test in mutant.caught_by]


@pytest.mark.parametrize(("mutant", "test"), CASES, ids=[f"{m.__name__}-{t}" for m, t in CASES])
def test_mutant_is_caught(mutant: type[Store], test: str) -> None:
    assert run(kit_of(mutant), test, mutant), f"{test} passes on {mutant.__name__}"


SOUND = sorted({(kit_of(mutant), test) for mutant, test in CASES}, key=str)


@pytest.mark.parametrize(("kit", "test"), SOUND, ids=[test for _, test in SOUND])
def test_a_sound_store_passes(kit: type, test: str) -> None:
    assert not run(kit, test, Coordinating if kit is CoordinationSuite else Store, patience_s=10.0)


@pytest.mark.parametrize("lie", [{"push": False}, {"ttl": Support.NO}, {"coordination": False}, {"max_batch": 0}])
def test_a_lie_about_a_capability_is_caught(lie: dict[str, Any]) -> None:
    class Liar(Store):
        @property
        def capabilities(self) -> Any:
            from msgspec.structs import replace

            return replace(super().capabilities, **({"max_record_bytes": 10} | lie))

    if lie in ({"push": False}, {"ttl": Support.NO}):
        assert run(StoreSuite, "test_capabilities_are_never_wider_than_the_spec_says", **lie)
        assert run(StoreSuite, "test_too_large_is_refused_as_a_whole", Liar)
    else:
        assert run(StoreSuite, "test_capabilities_fit_together", Liar)


def test_a_url_fixture_that_is_not_empty_is_caught() -> None:
    assert "another test" in run(StoreSuite, "test_url_is_a_store_of_its_own", url="memory://the-same-twice")
