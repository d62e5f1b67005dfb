"""Runs single tests of the kit against a component given as a spec, and says how they ended."""

from __future__ import annotations

import inspect
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings

from taskq.testing import AutoscalerSuite, CompressorSuite, PoolSuite, SchedulerSuite, SerializerSuite
from taskq.testing.pool_rig import PoolRig
from taskq.testing.scheduling import SchedulerRig

RIGS: dict[type, Any] = {PoolSuite: PoolRig, SchedulerSuite: SchedulerRig}
FIXTURES = {SerializerSuite: "serializer", CompressorSuite: "compressor", AutoscalerSuite: "autoscaler"}


hypothesis_settings.register_profile("no shrinking", phases=[Phase.generate])


class Impatient:
    """What a suite may set, for runs that are meant to fail: they should do it soon."""

    patience_s = 1.0
    quiet_s = 0.08


def run(kit: type, test: str, spec: Any, **settings: Any) -> str:
    """Run one test, with each of its parameter sets, on a component; return "" where it passed, or why it failed."""
    suite = type("Suite", (Impatient, kit), {"name": spec.name, **settings})()
    suite.load_spec = lambda: spec
    method = getattr(suite, test)
    before = hypothesis_settings.get_current_profile_name()
    hypothesis_settings.load_profile("no shrinking")
    try:
        return _each(suite, kit, method)
    finally:
        hypothesis_settings.load_profile(before)


def _each(suite: Any, kit: type, method: Any) -> str:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for number, arguments in enumerate(_parameters(method)):
            own = Path(folder, str(number))
            own.mkdir()
            if "tmp_path" in inspect.signature(method).parameters:
                arguments["tmp_path"] = own
            if failure := _once(suite, kit, method, arguments, own):
                return failure
    return ""


def _once(suite: Any, kit: type, method: Any, arguments: dict[str, Any], folder: Path) -> str:
    rig = None
    try:
        if kit in RIGS:
            rig = arguments["rig"] = RIGS[kit](suite, folder)
        else:
            fixture = getattr(type(suite), FIXTURES[kit])
            arguments[FIXTURES[kit]] = fixture._get_wrapped_function()(suite)
        method(**arguments)
    except pytest.skip.Exception as skipped:
        raise AssertionError(f"{method.__name__} was skipped: {skipped}") from None
    except (AssertionError, pytest.fail.Exception) as failed:
        return str(failed) or "failed"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        if rig is not None:
            try:
                rig.close()
            except (AssertionError, pytest.fail.Exception):
                pass  # a mutant that does not stop
    return ""


def _parameters(method: Any) -> Iterator[dict[str, Any]]:
    marks = [mark for mark in getattr(method, "pytestmark", []) if mark.name == "parametrize"]
    axes = [[{mark.args[0]: value} for value in mark.args[1]] for mark in marks]
    for combination in itertools.product(*axes):
        yield {name: value for part in combination for name, value in part.items()}
