"""The pool suite fits a pool of processes, too: isolation, limits and cancelling are tested, and can be passed."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from core.tests.kit_components.bench import run
from core.tests.kit_components.process_pool import CAPABILITIES, ProcessPool
from taskq.spi import PoolSink, PoolSpec, Runtime
from taskq.testing import PoolSuite

pytestmark = pytest.mark.slow  # it starts some two hundred processes
SPEC = PoolSpec(spi="0.1", name="processes", factory=ProcessPool, capabilities=CAPABILITIES)


class TestProcesses(PoolSuite):
    name = "processes"
    concurrency = 3
    patience_s = 15.0  # processes take their time on a busy machine


TestProcesses.load_spec = lambda self: SPEC  # not an installed plugin


class SaysThatNoneRan(ProcessPool):
    """Counts a crash as if the job had only waited in the process."""

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        crashed = sink.crashed

        def none_ran(running: Any, unstarted: Any, reason: str) -> None:
            crashed([], [*running, *unstarted], reason)

        sink.crashed = none_ran  # type: ignore[method-assign]
        super().start(runtime, sink)


class LosesASlotWithEachCrash(ProcessPool):
    def _fit(self) -> None:
        self._children = [one for one in self._children if one.process.is_alive()]

    def _receive(self, one: Any) -> None:
        before = list(self._children)
        super()._receive(one)
        for new in [c for c in self._children if c not in before]:
            new.end(2.0)
            self._children.remove(new)


class IgnoresLimits(ProcessPool):
    def start(self, runtime: Any, sink: PoolSink) -> None:
        runtime._limits = {}
        super().start(runtime, sink)


class CancelsSoftly(ProcessPool):
    def cancel(self, keys: Any, *, hard: bool = False) -> Any:
        return list(keys)


@pytest.mark.parametrize(
    ("mutant", "test"),
    [
        (SaysThatNoneRan, "test_a_crash_is_isolated"),
        (LosesASlotWithEachCrash, "test_a_crash_is_isolated"),
        (IgnoresLimits, "test_soft_limit"),
        (IgnoresLimits, "test_hard_limit"),
        (CancelsSoftly, "test_cancel_of_running_jobs_is_as_declared"),
    ],
)
def test_mutant_is_caught(mutant: Any, test: str) -> None:
    assert run(PoolSuite, test, replace(SPEC, factory=mutant), patience_s=2.0), f"{test} passes on {mutant.__name__}"
