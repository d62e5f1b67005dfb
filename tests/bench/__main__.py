"""Run the benchmarks; see the package's docstring, and `make bench ARGS=--help`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench import report, taskq_cases, venv
from tests.bench.cases import STEPS, Turn
from tests.bench.contender import ROOT, Contender, Failed, box
from tests.bench.groups import GROUPS, Group
from tests.bench.machine import describe, server_settings, spin
from tests.bench.measure import Table

OUT = ROOT / "build/bench"
OWN = ("start", "memory", "idle", "backlog", "size")
NAMES = [*OWN[:-1], *(g.name for g in GROUPS)]


def main() -> int:
    options = parse()
    if options.read:
        return show(json.loads(Path(options.read).read_text("utf-8")), options)
    OUT.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="run-", dir=OUT))
    try:
        result = Run(options, work).result()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    path = Path(options.json or OUT / f"{time.strftime('%Y%m%d-%H%M%S')}.json")
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    show(result, options)
    report.plot(result, path.with_suffix(".png"))
    print(f"\nwritten: {os.path.relpath(path)}")
    return 0


def show(result: dict[str, Any], options: argparse.Namespace) -> int:
    print(report.text(result))
    if options.write_docs:
        (ROOT / "docs/benchmarks.md").write_text(report.document(result), "utf-8")
    return 0


class Run:
    """One run: who takes part, and what came of it."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options = options
        self.work = work
        self.table = Table()
        self.factor = 0.1 if options.quick else 1.0
        self.rounds = options.rounds or (1 if options.quick else 3)
        self.spins: list[float] = []
        self.began = time.time()
        self.missing: dict[str, str] = {}
        self.servers: dict[str, dict[str, str]] = {}
        self.groups = [g for g in GROUPS if g.name in options.only or (g.idle and "idle" in options.only)]

    def say(self, text: str) -> None:
        self.spins.append(spin())
        print(f"bench: {time.time() - self.began:4.0f} s  {text}", file=sys.stderr, flush=True)

    def result(self) -> dict[str, Any]:
        """Measure everything that was asked for; return it as plain data."""
        machine = describe(self.work)
        load = os.getloadavg()[0]
        self.prepare()
        self.own()
        for group in self.groups:
            if group.name in self.options.only:
                self.group(group)
        return {
            "format": 1,
            "began": time.strftime("%Y-%m-%d", time.gmtime(self.began)),
            "seconds": round(time.time() - self.began),
            "settings": {"rounds": self.rounds, "quick": self.options.quick, "full": self.options.full},
            "machine": machine,
            "noise": {
                "load before": round(load, 2),
                "a fixed loop, ms": {"best": round(min(self.spins), 1), "worst": round(max(self.spins), 1)},
            },
            "servers": self.servers,
            "titles": {**taskq_cases.TITLES, **{g.name: g.title for g in self.groups}},
            "goals": [
                *([*key, goal] for key, goal in taskq_cases.GOALS.items()),
                *([g.name, case, goal] for g in self.groups for case, goal in g.goals.items()),
            ],
            "contenders": [
                [g.name, c.label, {k: v for k, v in c.facts.items() if k not in ("worker", "prepares")}]
                for g in self.groups
                for c in g.contenders
                if c.facts
            ],
            "missing": self.missing,
            "rows": [row.__dict__ for row in self.table.rows.values()],
            "failures": [[*key, why] for key, why in self.table.failures.items()],
        }

    def prepare(self) -> None:
        """Install the peers, ask everybody for facts, and leave out who cannot take part."""
        python, failed = Path(sys.executable), {}
        if not self.options.no_peers and any(c.peer for g in self.groups for c in g.contenders):
            python, failed = venv.make(OUT / "venv")
        self.missing |= failed
        for group in list(self.groups):
            if group.server and not os.environ.get(group.server):
                self.missing[group.title] = "no server; `make bench` starts those that are installed"
                self.groups.remove(group)
                continue
            if group.server:
                self.servers[group.name] = server_settings(os.environ[group.server])
            group.contenders = [c for c in group.contenders if self.takes_part(c, group, python)]

    def takes_part(self, contender: Contender, group: Group, python: Path) -> bool:
        if contender.peer:
            if self.options.no_peers:
                return False
            contender.python = python
        try:
            with box(contender, self.work, os.environ.get(group.server, "")):
                return True
        except Failed as error:
            self.missing[f"{contender.label} ({group.name})"] = str(error)
            return False

    def own(self) -> None:
        """Measure what only taskq is asked."""
        only = self.options.only
        if "start" in only:
            self.say("start-up")
            taskq_cases.start(self.table, 3 if self.options.quick else 9)
        if "memory" in only:
            self.say("memory transport")
            taskq_cases.memory(self.table, self.rounds, int(300_000 * self.factor), self.work)
        if "idle" in only:
            for group in self.groups:
                if group.idle:
                    self.say(f"idle workers, {group.name}")
                    taskq_cases.idle(self.table, group.contenders, 3 if self.options.quick else 10, self.work)
        if "backlog" in only:
            self.say("backlog")
            large = 1_000_000 if self.options.full else 200_000
            taskq_cases.backlog(self.table, self.rounds, int(large * self.factor), self.work)

    def group(self, group: Group) -> None:
        """Measure one broker: every step, round by round, the contenders in turns."""
        sizes = group.sizes.times(self.factor)
        server = os.environ.get(group.server, "")
        for step in STEPS:
            for number in range(self.rounds):
                self.say(f"{group.name}: {step.__name__.replace('_', ' ')}, round {number + 1} of {self.rounds}")
                # alternate the order, so that nobody always runs in another's wake
                for contender in group.contenders[:: -1 if number % 2 else 1]:
                    Turn(self.table, group.name, contender, sizes, self.work, server).take(step)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS='…'", description="Rates and ratios, printed.")
    parser.add_argument("--only", default=",".join(NAMES), metavar="NAME,…", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages, one round: does it work?")
    parser.add_argument("--full", action="store_true", help="the backlog of a million")
    parser.add_argument("--rounds", type=int, metavar="N", help="default 3; medians are shown")
    parser.add_argument("--no-peers", action="store_true", help="taskq and the bare libraries only")
    parser.add_argument("--json", metavar="FILE", help="default: a new file in build/bench/")
    parser.add_argument("--read", metavar="FILE", help="show an earlier run's file instead of measuring")
    parser.add_argument("--write-docs", action="store_true", help="write docs/benchmarks.md from it")
    options = parser.parse_args()
    options.only = [name for name in options.only.split(",") if name]
    if unknown := [name for name in options.only if name not in NAMES]:
        parser.error(f"nothing is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
