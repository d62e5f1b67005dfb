"""The pool suite fits a pool of processes, too: isolation, limits and cancelling are tested, and can be passed."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from core.tests.kit_components.bench import run
from core.tests.kit_components.process_mutants import PROCESSES
from core.tests.kit_components.process_pool import CAPABILITIES, ProcessPool
from taskq.spi import PoolSpec
from taskq.testing import PoolSuite

pytestmark = pytest.mark.slow  # it starts some two hundred processes
SPEC = PoolSpec(spi="0.1", name="processes", factory=ProcessPool, capabilities=CAPABILITIES)


class TestProcesses(PoolSuite):
    name = "processes"
    concurrency = 3
    patience_s = 15.0  # processes take their time on a busy machine


TestProcesses.load_spec = lambda self: SPEC  # not an installed plugin


@pytest.mark.parametrize(
    ("mutant", "test"),
    [pytest.param(one, test, id=f"{one.__name__}-{test}") for one in PROCESSES for test in one.caught_by],
)
def test_mutant_is_caught(mutant: Any, test: str) -> None:
    assert run(PoolSuite, test, replace(SPEC, factory=mutant), patience_s=2.0), f"{test} passes on {mutant.__name__}"
