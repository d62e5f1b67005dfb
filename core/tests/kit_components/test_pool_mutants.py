"""The pool suite must see each way of being broken, and must pass where nothing is."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from core.tests.kit_components.bench import run
from core.tests.kit_components.pool_mutants import SOLO, THREADS, Solo, Threads
from taskq.spi import PoolSpec, Support
from taskq.testing import PoolSuite, UndeclaredAbility
from taskq_pool_solo.plugin import taskq_pool as solo
from taskq_pool_threads.plugin import taskq_pool as threads

SPECS: dict[type, PoolSpec] = {Threads: threads("threads"), Solo: solo("solo")}
CASES = [
    pytest.param(sound, mutant, test, id=f"{mutant.__name__}-{test}")
    for sound, mutants in ((Threads, THREADS), (Solo, SOLO))
    for mutant in mutants
    for test in mutant.caught_by
]


@pytest.mark.parametrize(("sound", "mutant", "test"), CASES)
def test_mutant_is_caught(sound: type, mutant: Any, test: str) -> None:
    assert run(PoolSuite, test, replace(SPECS[sound], factory=mutant)), f"{test} passes on {mutant.__name__}"


@pytest.mark.parametrize(
    ("sound", "test"),
    sorted({(case.values[0], case.values[2]) for case in CASES}, key=lambda pair: (pair[0].__name__, pair[1])),
)
def test_a_sound_pool_passes(sound: Any, test: str) -> None:
    assert not run(PoolSuite, test, replace(SPECS[sound], factory=sound), patience_s=5.0)


@pytest.mark.parametrize(
    ("sound", "lie", "test"),
    [
        (Threads, {"hard_limit": Support.EMULATED}, "test_hard_limit"),
        (Threads, {"isolation": True}, "test_a_crash_is_isolated"),
        (Threads, {"terminate": True}, "test_hard_cancel_is_as_declared"),
        (Threads, {"recycle": True}, "test_children_end_after_their_share"),
        (Threads, {"resize": False}, "test_resize_that_is_not_declared_changes_nothing"),
        (Threads, {"inline": True, "max_concurrency": 1}, "test_capabilities_fit_together"),
        (Threads, {"max_concurrency": 2}, "test_more_slots_than_declared_are_refused"),
        (Threads, {"sync_tasks": False, "async_tasks": Support.NO}, "test_capabilities_fit_together"),
        (Solo, {"inline": False}, "test_capabilities_fit_together"),
        (Solo, {"isolation": True}, "test_capabilities_fit_together"),
        (Solo, {"max_concurrency": None}, "test_capabilities_fit_together"),
    ],
)
def test_a_lie_about_a_capability_is_caught(sound: type, lie: dict[str, Any], test: str) -> None:
    spec = SPECS[sound]
    assert run(PoolSuite, test, replace(spec, capabilities=replace(spec.capabilities, **lie)))


@pytest.mark.parametrize(
    ("sound", "modesty", "test", "word"),
    [
        (Threads, {"soft_limit": Support.NO}, "test_undeclared_limits", "soft_limit"),
        (Threads, {"cancel_running": Support.NO}, "test_cancel_of_running_jobs_is_as_declared", "cancel_running"),
        (Solo, {"soft_limit": Support.NO}, "test_undeclared_limits", "soft_limit"),
    ],
)
def test_what_works_undeclared_is_reported(sound: type, modesty: dict[str, Any], test: str, word: str) -> None:
    spec = SPECS[sound]
    with pytest.warns(UndeclaredAbility, match=word):
        assert not run(
            PoolSuite, test, replace(spec, capabilities=replace(spec.capabilities, **modesty)), patience_s=5.0
        )


def test_a_hook_that_answers_another_name_is_caught() -> None:
    assert run(PoolSuite, "test_capabilities_fit_together", SPECS[Threads], name="other")
