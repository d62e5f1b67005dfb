"""What it was measured on: the machine, without its name."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any


def describe(folder: Path) -> dict[str, Any]:
    """Describe the machine; `folder` is where files are measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        "file system": kind or "unknown",
        "fsync": f"{1000 * fsync(folder):.2f} ms (median of 4 KiB appended and flushed)",
    }


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def fsync(folder: Path) -> float:
    """Return the seconds that a small durable write takes here."""
    path, took = folder / "fsync", []
    with path.open("wb", buffering=0) as file:
        for _ in range(50):
            started = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            took.append(time.perf_counter() - started)
    path.unlink()
    return median(took)


def spin() -> float:
    """Return the milliseconds of a fixed piece of pure Python: how undisturbed the machine is just now."""
    started = time.perf_counter()
    total = 0
    for number in range(1_000_000):
        total += number & 7
    return 1000 * (time.perf_counter() - started)
