"""A pool that patches the process does so before the application is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
import sys
from taskq.errors import ConfigError
from taskq.spi import PoolCapabilities, PoolSpec, hookimpl

def make(config):
    raise ConfigError("the pool was made")

def patch():
    assert "hello" not in sys.modules
    sys.patched = True

@hookimpl
def taskq_pool(name):
    return PoolSpec(spi="0.1", name=name, factory=make, capabilities=PoolCapabilities(monkey_patches="x"), patch=patch)
"""
APP = """
import sys
from taskq import TaskQ
print("patched:", hasattr(sys, "patched"))
app = TaskQ("hello", broker="sqlite:///hello.db")

@app.task
def task(): pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    info = tmp_path / "fake_green-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-green\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[taskq.pools]\nfakegreen = fake_green\n")
    (tmp_path / "fake_green.py").write_text(PLUGIN)
    (tmp_path / "hello.py").write_text(APP)
    return tmp_path


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taskq", "-A", "hello", "worker", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["-P", "fakegreen"], {}), (["-P", "fakegreen=5"], {}), ([], {"TASKQ_WORKER__POOL": "fakegreen"})],
)
def test_the_process_is_patched_before_the_application_is_imported(folder, arguments, environment):
    done = run(folder, *arguments, **environment)
    assert "patched: True" in done.stdout
    assert "the pool was made" in done.stderr


def test_other_pools_patch_nothing(folder):
    done = run(folder, "-P", "missing")
    assert done.returncode == 1
    assert "missing" in done.stderr
    done = run(folder, "-Q", "hello.dead", "-P", "solo")
    assert "patched: False" in done.stdout
