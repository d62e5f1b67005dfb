"""What it was measured on: the machine, without its name, and the servers' settings that decide about speed."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

_POSTGRESQL = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_level", "shared_buffers")
_MARIADB = ("version", "innodb_flush_log_at_trx_commit", "innodb_doublewrite", "innodb_buffer_pool_size", "log_bin")


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


def server_settings(url: str) -> dict[str, str]:
    """Return the settings of a database server that decide about speed and safety."""
    if urlsplit(url).scheme == "postgresql":
        import psycopg

        with psycopg.connect(url, connect_timeout=10) as connection:
            return {name: str(connection.execute(f"SHOW {name}").fetchone()[0]) for name in _POSTGRESQL}  # type: ignore[index]
    import pymysql

    parts = urlsplit(url)
    who = {"user": parts.username or "", "password": parts.password or ""}
    with (
        pymysql.connect(host=parts.hostname, port=parts.port or 3306, **who) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(f"SHOW GLOBAL VARIABLES WHERE variable_name IN {_MARIADB}")
        return {name: str(value) for name, value in cursor.fetchall()}
