"""What every autoscaler must do, on recorded loads and a virtual clock.

A plugin's test::

    class TestConformance(AutoscalerSuite):
        name = "simple"
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.spi import Autoscaler, AutoscalerSpec, ComponentConfig, LoadSample
from taskq.testing.base import SOAK, Suite, select

T0 = 1_000_000.0
"""Long ago, so that a component which looks at a clock of its own gives itself away."""

SHAPES = ("step", "ramp", "burst", "sinus", "idle")
"""Recorded loads, in the folder ``loads``."""


class AutoscalerSuite(Suite):
    """All tests of an autoscaler; subclass it and name the autoscaler."""

    name: ClassVar[str]
    """The autoscaler's name, as its entry point is named."""
    every_s: ClassVar[float] = 5.0
    """Seconds between samples in the simulations."""

    def load_spec(self) -> AutoscalerSpec:
        spec: AutoscalerSpec = select("autoscaler", self.name)
        return spec

    def make(self) -> Autoscaler:
        spec = self.load_spec()
        return spec.factory(ComponentConfig(options=self.options_for(spec), app="kit"))

    @pytest.fixture
    def autoscaler(self) -> Autoscaler:
        return self.make()

    def test_spec(self, autoscaler: Autoscaler) -> None:
        """Check that the spec has the plugin's name, and that ``needs`` names fields of LoadSample."""
        spec = self.load_spec()
        assert spec.name == self.name
        assert set(spec.needs) <= set(LoadSample.__struct_fields__)

    def test_it_is_pure(self, autoscaler: Autoscaler) -> None:
        """Check that the same sample and state give the same answer, in another instance too and after other calls, and
        that the state given is left alone: the kernel may ask twice, and about several pools in turn.
        """

        @settings(max_examples=2000 if SOAK else 60, deadline=None, database=None)
        @given(st.lists(samples(), min_size=1, max_size=6), st.lists(samples(), max_size=6))
        def check(history: list[LoadSample], noise: list[LoadSample]) -> None:
            autoscaler, other = self.make(), self.make()
            state: Any = None
            for at, sample in enumerate(_in_order(history)):
                before = copy.deepcopy(state)
                answer = autoscaler.decide(sample, state)
                assert state == before, "decide changed the state that it was given"
                other_state: Any = None
                for unrelated in noise:
                    _, other_state = autoscaler.decide(unrelated, other_state)
                assert autoscaler.decide(sample, copy.deepcopy(before)) == answer, "the same question, another answer"
                assert other.decide(sample, copy.deepcopy(before)) == answer, f"another instance differs at sample {at}"
                state = answer[1]

        check()

    def test_any_sample_gets_an_answer(self, autoscaler: Autoscaler) -> None:
        """Check that any load, unknown figures and zero slots included, gives a number of slots, and no exception."""

        @settings(max_examples=5000 if SOAK else 80, deadline=None, database=None)
        @given(st.lists(samples(), min_size=1, max_size=10))
        def check(history: list[LoadSample]) -> None:
            state: Any = None
            for sample in _in_order(history):
                wanted, state = autoscaler.decide(sample, state)
                assert type(wanted) is int, f"{wanted!r} is no int"
                assert 0 <= wanted <= 1_000_000, f"{wanted} slots for {sample}"

        check()

    def test_more_load_never_means_fewer_slots(self, autoscaler: Autoscaler) -> None:
        """Check that with all else equal, a larger backlog, or more busy slots, does not lower the answer."""

        @settings(max_examples=5000 if SOAK else 80, deadline=None, database=None)
        @given(st.lists(samples(unknown=False), min_size=1, max_size=6), st.integers(0, 1000), st.integers(0, 64))
        def check(history: list[LoadSample], more_backlog: int, more_busy: int) -> None:
            *before, last = _in_order(history)
            state: Any = None
            for sample in before:
                _, state = autoscaler.decide(sample, state)
            busy = min(last.slots, last.busy + more_busy)
            loaded = _with(last, backlog=(last.backlog or 0) + more_backlog, busy=busy)
            low, _ = autoscaler.decide(last, copy.deepcopy(state))
            high, _ = autoscaler.decide(loaded, copy.deepcopy(state))
            assert high >= low, f"{low} slots for {last}, but {high} for {loaded}"

        check()

    def test_a_burst_gets_more_slots(self, autoscaler: Autoscaler) -> None:
        """Check that a backlog beyond the slots raises the answer within two minutes, and that it is cleared then."""
        run = Simulation(autoscaler, self.every_s, most=40)
        run.for_seconds(120, per_second=0.2)
        before = run.slots
        run.queue += 2000
        run.for_seconds(120, per_second=0.2)
        assert run.slots > before, f"still {run.slots} slots two minutes after a burst of 2,000 tasks"
        run.for_seconds(600, per_second=0.2)
        assert run.queue < 20, f"{run.queue} tasks still wait ten minutes later"

    def test_idle_slots_are_given_back(self, autoscaler: Autoscaler) -> None:
        """Check that after the load has gone, at most one slot is wanted within half an hour."""
        run = Simulation(autoscaler, self.every_s, most=40)
        run.for_seconds(300, per_second=15)
        assert run.slots >= 5
        run.for_seconds(1800, per_second=0)
        assert run.slots <= 1, f"{run.slots} slots are kept for no load at all"

    @pytest.mark.parametrize("per_second", [0.5, 3.0, 10.0, 24.0])
    def test_a_constant_load_settles(self, autoscaler: Autoscaler, per_second: float) -> None:
        """Check that a constant load is served by a number of slots that stays nearly the same: every change costs
        processes started and stopped.
        """
        run = Simulation(autoscaler, self.every_s, most=40)
        run.for_seconds(900, per_second=per_second)
        changes, queue = run.changes, run.queue
        run.for_seconds(1800, per_second=per_second)
        assert run.changes - changes <= 6, f"{run.changes - changes} changes in half an hour of constant load"
        assert run.queue <= queue + per_second * 30, f"the backlog grows: {queue} to {run.queue} tasks"
        needed = per_second * run.seconds_per_task
        assert needed <= run.slots <= needed * 3 + 2, f"{run.slots} slots for a load of {needed:.1f}"

    @pytest.mark.parametrize("shape", SHAPES)
    def test_recorded_loads(self, autoscaler: Autoscaler, shape: str) -> None:
        """Check that each recorded load is served: nothing waits for long once the pool had time to follow, the slots
        stay in a proportion to the load, and they are given back at the end.
        """
        run = Simulation(autoscaler, self.every_s, most=40)
        load = recorded(shape)
        for per_second in load:
            run.for_seconds(60, per_second=per_second)
        work = sum(load) * 60 * run.seconds_per_task
        run.for_seconds(1200, per_second=0.0)
        assert run.queue == 0
        assert run.slots <= 1, f"{run.slots} slots are kept after the load has gone"
        assert run.longest <= 2500, f"up to {run.longest} tasks waited"
        slots = sum(run.history[: len(load) * 60])
        assert slots <= 6 * work + 5 * 60 * len(load), f"{slots} seconds of slots for {work:.0f} seconds of work"


def recorded(shape: str) -> list[float]:
    """Return a recorded load: tasks a second, minute by minute."""
    lines = (Path(__file__).parent / "loads" / f"{shape}.csv").read_text().splitlines()
    return [float(line.split(",")[1]) for line in lines if not line.startswith("#")]


class Simulation:
    """A pool under a recorded load, on a clock of its own; tasks take a second, and slots change at once.

    Args:
        autoscaler: what decides.
        every_s: seconds between samples.
        most: the kernel's upper bound; the lower one is 1.
    """

    seconds_per_task = 1.0

    def __init__(self, autoscaler: Autoscaler, every_s: float, *, most: int, slots: int = 1) -> None:
        self._autoscaler = autoscaler
        self._every_s = every_s
        self._most = most
        self._state: Any = None
        self._chance = random.Random(7)
        self._arrived = 0.0
        self.now = T0
        self.slots = slots
        self.queue = 0
        self.changes = 0
        self.history: list[int] = []
        self.longest = 0
        """Most tasks that have waited at a time."""

    def cpu(self, busy: int) -> float | None:
        """Return the use of the CPU by so many busy slots; a simulation of another machine overrides it."""
        return 0.5

    def for_seconds(self, seconds: float, *, per_second: float) -> None:
        """Let time pass in steps of a second, with a load that varies a little."""
        for second in range(int(seconds)):
            self.now += 1.0
            self._arrived += per_second * self._chance.uniform(0.7, 1.3)
            new, self._arrived = int(self._arrived), self._arrived % 1
            self.queue += new
            busy = min(self.slots, self.queue)
            self.queue -= busy
            self.longest = max(self.longest, self.queue)
            if second % max(1, int(self._every_s)) == 0:
                age = self.queue / max(1, self.slots)
                sample = LoadSample(
                    at=self.now, slots=self.slots, busy=busy, backlog=self.queue, completed_per_s=float(busy),
                    oldest_age=age, wait_p95=age, cpu=self.cpu(busy),
                )  # fmt: skip
                wanted, self._state = self._autoscaler.decide(sample, self._state)
                wanted = min(self._most, max(1, wanted))
                self.changes += wanted != self.slots
                self.slots = wanted
            self.history.append(self.slots)


def samples(*, unknown: bool = True) -> st.SearchStrategy[LoadSample]:
    """Return a strategy for load samples; ``at`` is the time since the sample before."""

    def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.none() | strategy if unknown else strategy

    seconds = st.floats(0, 1e6)
    slots = st.integers(0, 64)
    backlog = st.integers(0, 200) | st.integers(0, 10**9)
    return st.builds(
        lambda sample, busy: _with(sample, busy=min(busy, sample.slots)),
        st.builds(
            LoadSample, at=st.floats(0, 600), slots=slots, busy=st.just(0), backlog=maybe(backlog),
            oldest_age=maybe(seconds), wait_p95=maybe(seconds), completed_per_s=seconds, cpu=maybe(st.floats(0, 1)),
        ),
        slots,
    )  # fmt: skip


def _in_order(history: Sequence[LoadSample]) -> list[LoadSample]:
    """Turn the times between samples into times."""
    moments = itertools.accumulate((sample.at for sample in history), initial=T0)
    return [_with(sample, at=at) for sample, at in zip(history, list(moments)[1:], strict=True)]


def _with(sample: LoadSample, **fields: Any) -> LoadSample:
    """Return a changed copy of a sample."""
    return LoadSample(**{**{name: getattr(sample, name) for name in sample.__struct_fields__}, **fields})
