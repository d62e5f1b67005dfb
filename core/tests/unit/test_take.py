"""How much a worker takes: bounds, growth, and what rules."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from taskq.message import DONE, Outcome
from taskq.spi import Finished
from taskq.worker.take import TakeEstimator

OUTCOME = Outcome(DONE, "SUCCESS")


def saw(take: TakeEstimator, *runs: tuple[str, float]) -> None:
    take.saw([name for name, _ in runs], [Finished(i, OUTCOME, seconds) for i, (_, seconds) in enumerate(runs)])


def grown(take: TakeEstimator) -> int:
    """The target once it has stopped growing."""
    for _ in range(30):
        target = take.target()
    return target


def test_nothing_is_taken_ahead_before_anything_is_known() -> None:
    take = TakeEstimator(4, 512)
    assert [take.target() for _ in range(5)] == [4] * 5


def test_quick_tasks_are_taken_by_the_hundred_step_by_step() -> None:
    take = TakeEstimator(1, 512)
    saw(take, ("noop", 2e-6))
    targets = [take.target() for _ in range(12)]
    assert targets == sorted(targets)
    assert targets[0] <= 4
    assert all(after <= 2 * before for before, after in itertools.pairwise(targets))
    assert targets[-1] == 512


def test_what_is_held_is_about_50_ms_of_work() -> None:
    take = TakeEstimator(1, 512)
    saw(take, ("task", 0.001))
    assert 45 <= grown(take) <= 51
    take = TakeEstimator(4, 512)
    saw(take, ("task", 0.01))
    assert 18 <= grown(take) <= 24


def test_a_slow_server_widens_the_window() -> None:
    take = TakeEstimator(1, 10_000)
    saw(take, ("task", 0.001))
    take.round_trip(0.2)
    assert 390 <= grown(take) <= 401


def test_one_slow_run_rules_at_once_and_is_forgotten_slowly() -> None:
    take = TakeEstimator(1, 512)
    saw(take, ("quick", 1e-6))
    assert grown(take) == 512
    saw(take, ("slow", 1.0))
    assert take.target() == 1
    saw(take, ("slow", 1e-6))
    assert take.target() == 1
    for _ in range(60):
        saw(take, ("slow", 1e-6))
    assert take.target() > 100


def test_the_worst_task_of_a_batch_rules_not_the_mean() -> None:
    take = TakeEstimator(1, 512)
    saw(take, *[("quick", 1e-6)] * 500, ("slow", 0.5))
    assert take.target() == 1


def test_a_task_that_is_not_seen_any_more_stops_ruling() -> None:
    take = TakeEstimator(1, 512)
    saw(take, ("slow", 5.0))
    for _ in range(30):
        saw(take, ("quick", 1e-6))
    assert grown(take) == 512


def test_a_stall_lasts_until_something_ends() -> None:
    take = TakeEstimator(2, 512)
    saw(take, ("quick", 1e-6))
    assert grown(take) == 512
    take.stalled = True
    assert take.target() == 2
    saw(take, ("quick", 1e-6))
    assert take.target() == 512


def test_resize() -> None:
    take = TakeEstimator(2, 2)
    take.resize(7)
    assert take.target() == 7
    saw(take, ("quick", 1e-6))
    assert grown(take) == 7


@given(
    slots=st.integers(1, 64),
    cap=st.integers(1, 2000),
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100)), min_size=1, max_size=8), max_size=20
    ),
    trips=st.lists(st.floats(0, 10), max_size=3),
)
def test_never_below_the_slots_nor_above_both_limits(
    slots: int, cap: int, batches: Sequence[Sequence[tuple[str, float]]], trips: Sequence[float]
) -> None:
    take = TakeEstimator(slots, cap)
    for trip in trips:
        take.round_trip(trip)
    for batch in batches:
        saw(take, *batch)
        assert slots <= take.target() <= max(slots, cap)
