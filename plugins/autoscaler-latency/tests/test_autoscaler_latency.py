"""What is special about the latency autoscaler: its objective, and that it does not overshoot for a single old task."""

from __future__ import annotations

import subprocess
import sys

import pytest

from taskq.errors import ConfigError
from taskq.spi import ComponentConfig, LoadSample
from taskq.testing.autoscaling import Simulation, recorded
from taskq_autoscaler_latency.options import LatencyAutoscalerOptions
from taskq_autoscaler_latency.plugin import taskq_autoscaler


def make(**options):
    return taskq_autoscaler("latency").factory(ComponentConfig(options=LatencyAutoscalerOptions(**options)))


def wanted(slots=10, **facts):
    facts = {"busy": 0, **facts}
    return make(up_s=0.0, down_s=0.0).decide(LoadSample(at=0.0, slots=slots, **facts), None)[0]


@pytest.mark.parametrize(
    ("facts", "answer"),
    [
        ({"busy": 8, "oldest_age": 1.0}, 10),  # within the objective: what is busy decides
        ({"busy": 4, "oldest_age": 5.0}, 7),  # just within it: 5 and the margin
        ({"busy": 10, "oldest_age": 7.5}, 15),  # half again as long as it may be, half again as many slots
        ({"busy": 10, "oldest_age": 500.0}, 21),  # not more than twice the slots and one
        ({"busy": 10, "oldest_age": None, "wait_p95": 7.5}, 15),  # what was started lately stands in
        ({"busy": 10, "oldest_age": 1.0, "wait_p95": 60.0}, 13),  # but only where the age is not known
        ({"busy": 10}, 13),  # neither is known
        ({"busy": 8, "oldest_age": 60.0, "backlog": 1, "completed_per_s": 8.0}, 11),  # one old task: a slot for it
        ({"busy": 8, "oldest_age": 60.0, "backlog": 20, "completed_per_s": 8.0}, 14),  # 10, and 4 clear it in 5 s
    ],
)
def test_the_formula(facts, answer):
    assert wanted(**facts) == answer


@pytest.mark.parametrize(("option", "value"), [("objective_s", 0.0), ("target_busy", 0.0), ("target_busy", 1.5)])
def test_an_option_out_of_its_range_is_refused(option, value):
    with pytest.raises(ConfigError, match=f"{option} is {value}"):
        make(**{option: value})


class Patient(Simulation):
    """Notes how long tasks wait, by the queue before the slots."""

    waits: list[float]

    def for_seconds(self, seconds, *, per_second):
        for _ in range(int(seconds)):
            super().for_seconds(1, per_second=per_second)
            self.__dict__.setdefault("waits", []).append(self.queue / max(1, self.slots))


@pytest.mark.parametrize("shape", ["ramp", "sinus"])
def test_a_load_that_changes_slowly_is_served_within_the_objective(shape):
    run = Patient(make(), 1.0, most=60)
    for per_second in recorded(shape):
        run.for_seconds(60, per_second=per_second)
    late = sum(wait > 5.0 for wait in run.waits[600:]) / len(run.waits[600:])
    assert late < 0.01, f"tasks wait longer than 5 s during {late:.1%} of the time"


def test_a_longer_objective_takes_fewer_slots():
    used = []
    for objective_s in (2.0, 120.0):
        run = Simulation(make(objective_s=objective_s, target_busy=1.0), 5.0, most=60)
        for per_second in recorded("burst"):
            run.for_seconds(60, per_second=per_second)
        used.append(max(run.history))
    assert used[1] < used[0]


def test_the_plugin_module_does_not_import_the_driver():
    code = "import sys, taskq_autoscaler_latency.plugin; sys.exit('taskq_autoscaler_latency.autoscaler' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
