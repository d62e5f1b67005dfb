"""`make test`: what failed among busy neighbours is run once more, alone, and the end says so loudly.

Loaded by `-p tests.support.second_chance`. When a parallel run went to its end and MOST tests or fewer failed, they are
run again, one after the other, in a new process, against the same servers. If all of them pass, the run is green. They
are named in the last lines all the same: each is a test that assumes a fast machine, or a rare fault of the product.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator

import pytest

MOST = 10
"""So many failures may be bad luck; more are not."""

_failed: dict[str, None] = {}  # their ids, in order


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--alone", action="store_true", help="this is a second chance: what is skipped has failed, too")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _failed[report.nodeid] = None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed[report.nodeid] = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("alone"):
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, int, int]:
    code = yield
    parallel = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")  # not in xdist's children
    if code != pytest.ExitCode.TESTS_FAILED or not parallel or not 0 < len(_failed) <= MOST:
        return code
    print(f"\n{len(_failed)} failed among others; a second chance, alone:", flush=True)
    places = [f"{config.rootpath}{os.sep}{name}" for name in _failed]
    options = [word for word in config.invocation_params.args if word not in config.option.file_or_dir]
    again = subprocess.run([sys.executable, "-m", "pytest", *options, "-n", "0", "--alone", *places], check=False)
    if again.returncode:
        print(f"failed alone, too, or could not be run: exit code {again.returncode}, see above")
        return code
    print("\n".join(f"PASSED ONLY ALONE: {name}" for name in _failed))
    return pytest.ExitCode.OK
