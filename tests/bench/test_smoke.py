"""That each group of the suite measures what it should, with so few messages that the figures mean nothing."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

import pytest

from tests.bench import cases, pool_cases
from tests.bench.cases import Sizes, Turn
from tests.bench.contender import python_side
from tests.bench.groups import GROUPS, Group
from tests.bench.measure import Table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EXPECTED = {
    cases.broker: {cases.SINGLE, cases.BULK, cases.START, cases.DRAIN, cases.MEMORY, cases.TRIP, cases.TRIP_99},
    pool_cases.light: {cases.START, cases.DRAIN, pool_cases.OVERHEAD, pool_cases.PARENT, cases.TRIP},
    pool_cases.concurrent: {cases.DRAIN, cases.TRIP, pool_cases.NAP},
    pool_cases.prefork: {cases.DRAIN, cases.TRIP, pool_cases.CHILD, pool_cases.BURN, pool_cases.MIXED},
}


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_a_group_measures_all_its_cases(group: Group, server_url: Callable[[str], str], tmp_path: Path) -> None:
    name = group.server.removeprefix("TASKQ_TEST_").removesuffix("_URL").lower()
    server = server_url(name) if name else ""
    table = Table()
    taskq, bare = ([c for c in group.contenders if c.role == role][:1] for role in ("taskq", "floor"))
    for contender in taskq + bare:
        for needed in contender.needs:
            kind, _, entry = needed.partition(":")
            if not importlib.metadata.entry_points(group=kind, name=entry):
                pytest.skip(f"{entry} of {kind} is not installed")
        contender.command = python_side(contender)
        group.measure(Turn(table, group.name, contender, Sizes(200, 10, 5), tmp_path, server))
        assert table.failures == {}
    measured = {case for _, case, label in table.rows if label == taskq[0].label}
    assert EXPECTED[group.measure] <= measured
    for row in table.rows.values():
        assert row.value >= 0, row
