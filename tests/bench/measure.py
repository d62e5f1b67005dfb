"""Measurements as data, percentiles, and what a process uses."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile; share is 0.5 for the median."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Row:
    """One contender in one case: a value per round."""

    group: str
    case: str
    contender: str
    unit: str
    values: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def more_is_better(self) -> bool:
        return self.unit.endswith("/s")


class Table:
    """The rows of a run, in the order of their first value."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], Row] = {}
        self.failures: dict[tuple[str, str, str], str] = {}

    def add(self, group: str, case: str, contender: str, unit: str, *values: float, note: str = "") -> None:
        row = self.rows.setdefault((group, case, contender), Row(group, case, contender, unit))
        row.values.extend(values)
        if note:
            row.note = note

    def fail(self, group: str, case: str, contender: str, why: str) -> None:
        self.failures[group, case, contender] = why


def tree(pid: int) -> list[int]:
    """Return a process and its descendants (Linux; elsewhere the process alone)."""
    found = [pid]
    for parent in found:
        for listed in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, listed.read_text().split())
            except OSError:
                continue
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time that processes have used."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def resident_mb(pids: Iterable[int]) -> float:
    """Return the resident memory of processes in MB; pages shared between them count for each."""
    pages = 0
    for pid in pids:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def unique_mb(pid: int) -> float:
    """Return the memory in MB that no other process shares with this one (Linux; elsewhere 0)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6


def wait_for(condition: object, seconds: float, step: float = 0.01) -> bool:
    """Wait until a callable returns true; whether it did."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(step)
    return True
