"""Runs single tests of the kit against a plugin given as an object, and says how they ended."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from taskq.testing import CoordinationSuite, StoreSuite, TransportSuite
from taskq.testing.base import select, unique
from taskq.testing.coordination import CoordinationRig
from taskq.testing.stores_basic import StoreRig
from taskq.testing.transport_rig import TransportRig
from taskq_lib_memory import forget

RIGS: dict[type, type] = {TransportSuite: TransportRig, StoreSuite: StoreRig, CoordinationSuite: CoordinationRig}
KINDS = {TransportSuite: "transport", StoreSuite: "result_store", CoordinationSuite: "result_store"}


class Impatient:
    """What a suite may set, for runs that are meant to fail: they should do it soon."""

    scheme = "memory"
    quiet_s = 0.08
    lease_s = 0.3
    ttl_s = 0.15
    shrink = False
    random_s = 60.0


def run(
    kit: type,
    test: str,
    factory: Any = None,
    *,
    spec: Any = None,
    url: str = "",
    give_up_s: float = 3.0,
    patience_s: float = 0.5,
    **said: Any,
) -> str:
    """Run one test, with each of its parameter sets, on a plugin; return "" where it passed, or why it failed."""
    spec = spec or select(KINDS[kit], "memory")
    if factory is not None:
        spec = replace(spec, factory=factory)
    if said:
        declared = replace(spec.capabilities(None), **said)
        spec = replace(spec, capabilities=lambda _: declared)
    suite = type("Suite", (Impatient, kit), {})()
    suite.load_spec = lambda: spec
    suite.give_up_s = give_up_s
    suite.patience_s = patience_s
    suite.slack_s = max(0.4, patience_s / 2)
    method = getattr(suite, test)
    for arguments in _parameters(method):
        name = unique("mutant")
        rig = RIGS[kit](suite, url or f"memory://{name}")
        if "url" in inspect.signature(method).parameters:
            arguments["url"] = rig.url
        try:
            method(rig=rig, **arguments)
        except pytest.skip.Exception as skipped:
            pytest.fail(f"{test} was skipped: {skipped}")
        except (AssertionError, pytest.fail.Exception) as failed:
            return str(failed) or "failed"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            rig.close()
            forget(name)
    return ""


def _parameters(method: Any) -> Iterator[dict[str, Any]]:
    marks = [m for m in getattr(method, "pytestmark", []) if m.name == "parametrize"]
    axes = []
    for mark in marks:
        names = mark.args[0]
        names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
        axes.append([dict(zip(names, v if len(names) > 1 else (v,), strict=True)) for v in mark.args[1]])
    for combination in itertools.product(*axes):
        yield {k: v for part in combination for k, v in part.items()}
