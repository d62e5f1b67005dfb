"""What is special about the CPU autoscaler: as many slots as the CPU bears, few for tasks that compute."""

from __future__ import annotations

import subprocess
import sys

import pytest

from taskq.errors import ConfigError
from taskq.spi import ComponentConfig, LoadSample
from taskq.testing.autoscaling import Simulation, recorded
from taskq_autoscaler_cpu.options import CpuAutoscalerOptions
from taskq_autoscaler_cpu.plugin import taskq_autoscaler


def make(**options):
    return taskq_autoscaler("cpu").factory(ComponentConfig(options=CpuAutoscalerOptions(**options)))


def wanted(slots=10, **facts):
    return make(up_s=0.0, down_s=0.0).decide(LoadSample(at=0.0, slots=slots, **facts), None)[0]


@pytest.mark.parametrize(
    ("facts", "answer"),
    [
        ({"busy": 10, "backlog": 100, "cpu": 0.1}, 21),  # much waits and the CPU is idle: twice the slots and one
        ({"busy": 10, "backlog": 100, "cpu": 0.85}, 10),  # the CPU is as busy as it shall be
        ({"busy": 10, "backlog": 100, "cpu": 1.0}, 10),  # a little more: 8.5, and the margin
        ({"busy": 10, "backlog": 100, "cpu": 0.5}, 17),  # what is left of it
        ({"busy": 10, "backlog": 100, "cpu": None}, 21),  # not known: the load decides
        ({"busy": 1, "backlog": 0, "cpu": 0.01}, 3),  # 1.25, and the margin
        ({"busy": 0, "backlog": 0, "cpu": 0.9}, 1),  # somebody else's work
        ({"busy": 0, "backlog": 100, "cpu": 1.0}, 2),  # … leaves no room, as with one that is busy; and the margin
        ({"busy": 1, "backlog": 100, "cpu": 1.0}, 2),
    ],
)
def test_the_formula(facts, answer):
    assert wanted(**facts) == answer


@pytest.mark.parametrize(
    ("option", "value"),
    [("target_cpu", 0.0), ("target_cpu", 1.5), ("target_busy", 2.0), ("target_backlog_per_slot", 0.0)],
)
def test_an_option_out_of_its_range_is_refused(option, value):
    with pytest.raises(ConfigError, match=f"{option} is {value}"):
        make(**{option: value})


class Machine(Simulation):
    """Four CPUs, and tasks that use a part of one."""

    each = 1.0

    def cpu(self, busy):
        return min(1.0, busy * self.each / 4)


def test_tasks_that_compute_get_no_more_slots_than_the_cpus_bear():
    run = Machine(make(), 5.0, most=60)
    run.for_seconds(300, per_second=2)
    run.for_seconds(900, per_second=30)
    assert 3 <= run.slots <= 8, f"{run.slots} slots for four CPUs"


def test_tasks_that_wait_get_many():
    run = Machine(make(), 5.0, most=60)
    run.each = 0.05
    run.for_seconds(300, per_second=2)
    run.for_seconds(900, per_second=30)
    assert run.queue < 60
    assert run.slots >= 30


def test_a_recorded_day_of_tasks_that_compute_a_little():
    run = Machine(make(), 5.0, most=60)
    run.each = 0.1
    for per_second in recorded("sinus"):
        run.for_seconds(60, per_second=per_second)
    assert run.longest < 250, f"up to {run.longest} tasks waited"  # while it grew from one slot
    assert max(run.history) <= 4 / 0.1


def test_the_plugin_module_does_not_import_the_driver():
    code = "import sys, taskq_autoscaler_cpu.plugin; sys.exit('taskq_autoscaler_cpu.autoscaler' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
