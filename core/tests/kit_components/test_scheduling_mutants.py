"""The suites of schedulers and autoscalers must see each way of being broken, and must pass where nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from core.tests.kit_components.bench import run
from core.tests.kit_components.scheduling_mutants import AUTOSCALERS, SCHEDULERS, Scaler, Simple
from taskq.testing import AutoscalerSuite, SchedulerSuite
from taskq_autoscaler_simple.plugin import taskq_autoscaler
from taskq_scheduler_simple.plugin import taskq_scheduler


def on_a_file(suite: Any, folder: Path) -> dict[str, Any]:
    return {"path": str(folder / "schedules.json")}


KITS: dict[type, tuple[Any, Any]] = {
    Simple: (SchedulerSuite, taskq_scheduler("simple")),
    Scaler: (AutoscalerSuite, taskq_autoscaler("simple")),
}
CASES = [
    pytest.param(sound, mutant, test, id=f"{mutant.__name__}-{test}")
    for sound, mutants in ((Simple, SCHEDULERS), (Scaler, AUTOSCALERS))
    for mutant in mutants
    for test in mutant.caught_by
]
SHARED = {test for mutant in SCHEDULERS if mutant.on_a_file for test in mutant.caught_by}


def outcome(sound: type, component: Any, test: str) -> str:
    kit, spec = KITS[sound]
    settings = {"persistent": True, "fresh_options": on_a_file} if test in SHARED else {}
    return run(kit, test, replace(spec, factory=component), **settings)


@pytest.mark.parametrize(("sound", "mutant", "test"), CASES)
def test_mutant_is_caught(sound: type, mutant: Any, test: str) -> None:
    assert outcome(sound, mutant, test), f"{test} passes on {mutant.__name__}"


@pytest.mark.parametrize(
    ("sound", "test"),
    sorted({(case.values[0], case.values[2]) for case in CASES}, key=lambda pair: (pair[0].__name__, pair[1])),
)
def test_a_sound_component_passes(sound: Any, test: str) -> None:
    assert not outcome(sound, sound, test)


def test_a_scheduler_that_declares_too_little_is_caught() -> None:
    kit, spec = KITS[Simple]
    assert run(kit, "test_spec", replace(spec, rules=("every",)))


def test_a_scheduler_that_declares_sharing_is_caught() -> None:
    kit, spec = KITS[Simple]
    assert run(kit, "test_two_share_their_schedules", replace(spec, shared=True))


def test_an_autoscaler_that_needs_what_there_is_not_is_caught() -> None:
    kit, spec = KITS[Scaler]
    assert run(kit, "test_spec", replace(spec, needs=("backlog", "weather")))
