"""A worker as process 1 of a container, played by a process that orphans come to as well (Linux's "subreaper")."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="who gets orphans can be chosen on Linux only")

INIT = """
import ctypes, os, signal, subprocess, sys, time
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
from taskq.cli.init import run_below
run_below()
# from here on it is the worker
"""
ORPHAN = """
subprocess.run(["sh", "-c", "sleep 0.2 & echo $!"])
time.sleep(60)
"""
SIGNALS = """
heard = []
def hear(number, frame):
    heard.append(number)
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        sys.exit(3)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, hear)
print("ready", flush=True)
while True:
    time.sleep(1)
"""


@pytest.fixture
def start() -> object:
    started: list[subprocess.Popen[str]] = []

    def start(program: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", INIT + program], stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGQUIT)  # its worker has no handler for that
            process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_orphans_are_reaped(start: Callable[[str], subprocess.Popen[str]]) -> None:
    process = start(ORPHAN)
    orphan = int(line(process))
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{orphan}"):
        assert time.monotonic() < deadline, "it stays a zombie"
        time.sleep(0.02)
    assert process.poll() is None


def test_signals_are_passed_on_and_the_exit_code_is_the_worker_s(
    start: Callable[[str], subprocess.Popen[str]],
) -> None:
    process = start(SIGNALS)
    assert line(process) == "ready"
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(number)
        assert line(process) == number.name
    assert process.wait(10) == 3


def test_a_worker_that_is_killed(start: Callable[[str], subprocess.Popen[str]]) -> None:
    process = start("print(os.getpid(), flush=True)\ntime.sleep(60)")
    os.kill(int(line(process)), signal.SIGKILL)
    assert process.wait(10) == 128 + signal.SIGKILL
