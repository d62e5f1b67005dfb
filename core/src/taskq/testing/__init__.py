"""The conformance kit for plugin authors, and test helpers for application authors.

A plugin's ``tests/test_conformance.py`` is a subclass of its kind's suite and one fixture::

    class TestConformance(TransportSuite):
        scheme = "sqlite"

        @pytest.fixture
        def url(self, tmp_path):
            return f"sqlite:///{tmp_path}/q.db"

The suites need pytest and hypothesis; this package itself needs neither, and imports a suite when it is asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskq.testing.app import taskq_app, taskq_clock, taskq_worker
    from taskq.testing.autoscaling import AutoscalerSuite
    from taskq.testing.base import Suite, UndeclaredAbility
    from taskq.testing.clock import VirtualClock
    from taskq.testing.coordination import CoordinationSuite
    from taskq.testing.faults import ChildProcess
    from taskq.testing.formats import (  # type: ignore[attr-defined, import-not-found, unused-ignore]
        CompressorSuite,
        SerializerSuite,
    )
    from taskq.testing.memory import in_memory, run_until_idle, running_worker
    from taskq.testing.packaging import PackagingSuite
    from taskq.testing.pools import PoolSuite  # type: ignore[attr-defined, import-not-found, unused-ignore]
    from taskq.testing.proxy import TcpProxy
    from taskq.testing.scheduling import SchedulerSuite
    from taskq.testing.stores import StoreSuite
    from taskq.testing.transports import TransportSuite

_WHERE = {
    "AutoscalerSuite": "autoscaling",
    "ChildProcess": "faults",
    "CompressorSuite": "formats",
    "CoordinationSuite": "coordination",
    "PackagingSuite": "packaging",
    "PoolSuite": "pools",
    "SchedulerSuite": "scheduling",
    "SerializerSuite": "formats",
    "StoreSuite": "stores",
    "Suite": "base",
    "TcpProxy": "proxy",
    "TransportSuite": "transports",
    "UndeclaredAbility": "base",
    "VirtualClock": "clock",
    "in_memory": "memory",
    "run_until_idle": "memory",
    "running_worker": "memory",
    "taskq_app": "app",
    "taskq_clock": "app",
    "taskq_worker": "app",
}
_WITH_ASSERTS = (
    "autoscaling", "base", "coordination", "faults", "formats", "leaks", "packaging", "pools", "scheduling", "stores",
    "stores_basic", "stores_faults", "transport_rig", "transports", "transports_abilities", "transports_base",
    "transports_basic", "transports_faults", "transports_fused", "transports_leases", "transports_settling",
    "transports_stateful",
)  # fmt: skip

if "pytest" in sys.modules:
    # pytest explains failed asserts of modules that it knows as tests, if it is told before they are imported.
    sys.modules["pytest"].register_assert_rewrite(*(f"{__name__}.{module}" for module in _WITH_ASSERTS))


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AutoscalerSuite",
    "ChildProcess",
    "CompressorSuite",
    "CoordinationSuite",
    "PackagingSuite",
    "PoolSuite",
    "SchedulerSuite",
    "SerializerSuite",
    "StoreSuite",
    "Suite",
    "TcpProxy",
    "TransportSuite",
    "UndeclaredAbility",
    "VirtualClock",
    "in_memory",
    "run_until_idle",
    "running_worker",
    "taskq_app",
    "taskq_clock",
    "taskq_worker",
]
