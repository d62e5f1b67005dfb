"""The transport suite must see each way of being broken, and must pass where nothing is."""

from __future__ import annotations

from typing import Any

import pytest

from core.tests.kit import mutants_sending, mutants_settling
from core.tests.kit.bench import run
from core.tests.kit.mutant import Transport, mutants_of
from taskq.spi import Fencing, Support
from taskq.testing import TransportSuite, UndeclaredAbility

pytestmark = pytest.mark.slow  # it matters when the kit changes, and waits for timeouts


@pytest.fixture(autouse=True)
def _the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random sequences find a mutant nearly always: here they shall always."""
    monkeypatch.setenv("TASKQ_SEED", "2")


MUTANTS = mutants_of(Transport, mutants_sending, mutants_settling)
CASES = [pytest.param(mutant, test, id=f"{mutant.__name__}-{test}") for mutant in MUTANTS for test in mutant.caught_by]


@pytest.mark.parametrize(("mutant", "test"), CASES)
def test_mutant_is_caught(mutant: type[Transport], test: str) -> None:
    assert run(TransportSuite, test, mutant), f"{test} passes on {mutant.__name__}"


@pytest.mark.parametrize("test", sorted({test for mutant in MUTANTS for test in mutant.caught_by}))
def test_a_sound_transport_passes(test: str) -> None:
    assert not run(TransportSuite, test, Transport, patience_s=10.0)


@pytest.mark.parametrize(
    ("lie", "test"),
    [
        ({"fencing": Fencing.LOCAL}, "test_capabilities_are_never_wider_than_the_spec_says"),
        ({"priority_levels": 3}, "test_capabilities_are_never_wider_than_the_spec_says"),
        ({"stats": False}, "test_capabilities_are_never_wider_than_the_spec_says"),
        ({"delay": Support.EMULATED}, "test_capabilities_are_never_wider_than_the_spec_says"),
        ({"fused_stores": ()}, "test_capabilities_are_never_wider_than_the_spec_says"),
        ({"max_payload_bytes": 1000}, "test_capabilities_are_never_wider_than_the_spec_says"),
    ],
)
def test_a_spec_narrower_than_the_truth_is_caught(lie: dict[str, Any], test: str) -> None:
    assert run(TransportSuite, test, **lie)


def test_a_url_fixture_that_is_not_empty_is_caught() -> None:
    assert "another test" in run(TransportSuite, "test_url_is_a_broker_of_its_own", url="memory://the-same-twice")


class Liar(Transport):
    """Declares after ``open`` what the test wants."""

    lies: dict[str, Any] = {}  # noqa: RUF012

    @property
    def capabilities(self) -> Any:
        from msgspec.structs import replace

        return replace(super().capabilities, **self.lies)


@pytest.mark.parametrize(
    ("lies", "test"),
    [
        ({"transactional_send": True}, "test_capabilities_fit_together"),
        ({"priority": Support.NO}, "test_capabilities_fit_together"),
        ({"lease_min_s": 11.0}, "test_capabilities_fit_together"),
        ({"max_payload_bytes": 1000}, "test_the_largest_payload_and_one_byte_more"),
        ({"max_payload_bytes": 1000}, "test_bad_messages_of_a_batch_fail_alone"),
        ({"max_delay_s": 60.0}, "test_a_delay_beyond_the_maximum_is_refused"),
    ],
)
def test_a_lie_about_a_capability_is_caught(lies: dict[str, Any], test: str) -> None:
    liar = type("Told", (Liar,), {"lies": lies})
    assert run(TransportSuite, test, liar)


@pytest.mark.parametrize(
    ("hidden", "word"),
    [
        ({"stats": False, "peek": False}, "stats, peek"),
        ({"priority": Support.NO, "priority_levels": 1, "priority_strict": False}, "priority"),
        ({"delay": Support.NO}, "delay"),
    ],
)
def test_what_works_undeclared_is_reported(hidden: dict[str, Any], word: str) -> None:
    modest = type("Modest", (Liar,), {"lies": hidden})
    with pytest.warns(UndeclaredAbility, match=word):
        assert not run(TransportSuite, "test_what_works_is_declared", modest)
