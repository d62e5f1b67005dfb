"""What is special about the simple autoscaler: its formula, its options, and how it follows recorded loads."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from taskq.errors import ConfigError
from taskq.spi import ComponentConfig, LoadSample
from taskq.testing.autoscaling import Simulation
from taskq_autoscaler_simple.options import SimpleAutoscalerOptions
from taskq_autoscaler_simple.plugin import taskq_autoscaler


def make(**options):
    return taskq_autoscaler("simple").factory(ComponentConfig(options=SimpleAutoscalerOptions(**options)))


def at_once(**options):
    return make(up_s=0.0, down_s=0.0, **options)


def sample(at=0.0, slots=10, busy=0, backlog=0):
    return LoadSample(at=at, slots=slots, busy=busy, backlog=backlog)


@pytest.mark.parametrize(
    ("busy", "backlog", "wanted"),
    [
        (8, 0, 10),  # the busy share aimed at
        (10, 0, 13),  # all are busy: 12.5
        (4, 24, 11),  # 5 for what runs and 6 for what waits
        (10, 10_000, 21),  # not more than twice the slots and one
        (6, 0, 10),  # 7.5 and the margin: not worth a change
        (4, 0, 7),  # 5 and the margin: some are given back
        (0, 0, 1),
        (8, None, 10),  # an unknown backlog counts for nothing
    ],
)
def test_the_formula(busy, backlog, wanted):
    assert at_once().decide(sample(busy=busy, backlog=backlog), None)[0] == wanted


def test_the_targets_are_options():
    assert at_once(target_busy=0.5).decide(sample(busy=8), None)[0] == 16
    assert at_once(target_backlog_per_slot=1.0).decide(sample(backlog=15), None)[0] == 15
    assert at_once(tolerance=0.0).decide(sample(busy=6), None)[0] == 8


@pytest.mark.parametrize("option", ["target_busy", "target_backlog_per_slot"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_target_of_nothing_is_refused(option, value):
    with pytest.raises(ConfigError, match=f"{option} is {value}; it must be above 0"):
        make(**{option: value})


def test_a_busy_share_above_one_is_refused():
    with pytest.raises(ConfigError, match=r"target_busy is 1\.5"):
        make(target_busy=1.5)


def test_the_first_look_changes_nothing():
    """A worker that has just started is idle: no reason to give its slots back."""
    assert make().decide(sample(slots=8), None)[0] == 8
    assert make().decide(sample(slots=0, backlog=100), None)[0] == 0


def test_up_is_quicker_than_down():
    autoscaler = make()
    _, state = autoscaler.decide(sample(), None)
    rising = autoscaler.decide(sample(at=15.0, busy=10, backlog=40), state)[1].need - state.need
    falling = state.need - autoscaler.decide(sample(at=15.0), state)[1].need
    assert rising / (21 - 10) == pytest.approx(1 - math.exp(-1))
    assert falling / 10 == pytest.approx(1 - math.exp(-15 / 60))


def test_a_clock_that_goes_back_does_no_harm():
    autoscaler = make()
    _, state = autoscaler.decide(sample(at=100.0), None)
    assert autoscaler.decide(sample(at=50.0, busy=10, backlog=99), state)[1].need == state.need


def day(second):
    """A load that swings between 1 and 19 tasks a second."""
    return 10 + 9 * math.sin(second / 3600 * math.tau)


def test_it_follows_a_load_that_swings():
    run = Simulation(make(), 5.0, most=60)
    longest = 0
    for minute in range(120):
        run.for_seconds(60, per_second=day(minute * 60))
        longest = max(longest, run.queue)
    assert longest < 60, f"up to {longest} tasks waited"
    assert min(run.history[1800:]) <= 6
    assert max(run.history[1800:]) >= 20
    assert run.changes < 120, f"{run.changes} changes in two hours"


def test_it_follows_spikes_without_keeping_their_slots():
    run = Simulation(make(), 5.0, most=60)
    run.for_seconds(300, per_second=2)
    for _ in range(3):
        run.for_seconds(20, per_second=40)
        run.for_seconds(900, per_second=2)
        assert run.queue == 0
        assert run.slots <= 6, f"{run.slots} slots are kept a quarter of an hour after a spike"


def test_a_step_is_served():
    run = Simulation(make(), 5.0, most=60)
    run.for_seconds(300, per_second=1)
    run.for_seconds(300, per_second=20)
    assert run.queue == 0
    assert 20 <= run.slots <= 45


def test_the_plugin_module_does_not_import_the_driver():
    code = "import sys, taskq_autoscaler_simple.plugin; sys.exit('taskq_autoscaler_simple.autoscaler' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
