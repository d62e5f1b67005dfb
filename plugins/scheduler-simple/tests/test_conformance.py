"""The conformance suite of schedulers, in memory and on a file."""

from __future__ import annotations

from taskq.testing import PackagingSuite, SchedulerSuite


class TestInMemory(SchedulerSuite):
    name = "simple"


class TestOnAFile(SchedulerSuite):
    name = "simple"
    persistent = True

    def fresh_options(self, folder):
        return {"path": str(folder / "schedules.json")}


class TestPackaging(PackagingSuite):
    kind = "scheduler"
    name = "simple"
