"""The conformance suite of pools, in a process of its own: this one is not patched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from taskq.testing import PackagingSuite

PATCHED = """
import sys
from taskq_pool_gevent.plugin import patch
patch()
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.timeout(320)  # a whole suite
def test_conformance_in_a_patched_process():
    suite = Path(__file__).with_name("suite.py")
    command = [sys.executable, "-c", PATCHED, str(suite), "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]


class TestPackaging(PackagingSuite):
    kind = "pool"
    name = "gevent"
