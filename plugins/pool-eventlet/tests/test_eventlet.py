"""What the kit does not know of: patching, and what an unpatched process is told."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


def test_an_unpatched_process_is_refused():
    # in a process of its own: importing eventlet warns, and a parallel pytest would import it to tell of that
    code = (
        "from taskq.spi import NoOptions, PoolConfig; from taskq_pool_eventlet.plugin import taskq_pool; "
        "taskq_pool('eventlet').factory(PoolConfig(concurrency=1, options=NoOptions()))"
    )
    done = python(code)
    assert done.returncode != 0
    assert re.search(r"eventlet has patched.*taskq worker -P eventlet.*eventlet\.monkey_patch", done.stderr)


def test_the_plugin_module_imports_no_library():
    code = "import sys, taskq_pool_eventlet.plugin; sys.exit('eventlet' in sys.modules or 'greenlet' in sys.modules)"
    assert python(code).returncode == 0


def test_patching_comes_before_the_standard_library_and_warnings_are_no_errors():
    done = python("from taskq_pool_eventlet.plugin import patch; patch(); patch()", "-W", "error")
    assert done.returncode == 0, done.stderr
    assert "strongly recommend against" in done.stderr


SIGNALS = """
import os, signal, sys, threading, time
from taskq_pool_eventlet.plugin import patch
patch()
assert threading.current_thread() is threading.main_thread()
handled = threading.Event()

def handler(number, frame):
    helper = threading.Timer(0.0, handled.set)  # starting it waits, which a hub may not
    helper.start()

signal.signal(signal.SIGTERM, handler)
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
if sys.argv[1] == "waits":
    sys.exit(0 if handled.wait(10) else 1)
deadline = time.monotonic() + 10
while signal.getsignal(signal.SIGTERM) is None or not handled.is_set():
    time.sleep(0.001)
    assert time.monotonic() < deadline
"""


@pytest.mark.parametrize("main", ["waits", "runs"])
def test_a_signal_handler_may_wait(main: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SIGNALS, main], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
