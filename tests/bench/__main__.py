"""Run the benchmarks; see the package's docstring, and `make bench ARGS=--help`."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench import brokers, report, taskq_cases, venv
from tests.bench.cases import Turn
from tests.bench.contender import ROOT, Contender, Failed, box, python_side
from tests.bench.groups import GROUPS, Group
from tests.bench.machine import describe, spin
from tests.bench.measure import Table

OUT = ROOT / "build/bench"
OWN = ("start", "memory", "idle", "backlog", "queues", "size")
NAMES = [*OWN[:-1], *(g.name for g in GROUPS)]


def main() -> int:
    options = parse()
    if options.read:
        return show(json.loads(Path(options.read).read_text("utf-8")), options)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: sys.exit(128 + n))  # so that what was started is ended
    OUT.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="run-", dir=OUT))
    try:
        result = Run(options, work).result()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    path = Path(options.json or OUT / f"{time.strftime('%Y%m%d-%H%M%S')}.json")
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    show(result, options)
    path.with_suffix(".svg").write_text(report.plot(result), "utf-8")
    print(f"\nwritten: {os.path.relpath(path)}, {path.with_suffix('.svg').name}")
    return 0


def show(result: dict[str, Any], options: argparse.Namespace) -> int:
    print(report.text(result))
    if options.write_docs:
        (ROOT / "docs/benchmarks.md").write_text(report.document(result), "utf-8")
        (ROOT / "docs/benchmarks.svg").write_text(report.plot(result, report.IN_DOCS), "utf-8")
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
        self.until = 0.0
        self.took: dict[str, float] = {}
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
        self.until = time.monotonic() + 60 * self.options.minutes
        self.own()
        for number in range(self.rounds):
            for group in self.groups:
                if group.name in self.options.only:
                    self.round(group, number)
        return {
            "format": 2,
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
                [g.name, c.label, c.role, {k: c.facts[k] for k in ("versions", "python", "ack", "durability", "note")}]
                for g in self.groups
                for c in g.contenders
                if c.facts
            ],
            "missing": self.missing,
            "rows": [row.__dict__ for row in self.table.rows.values()],
            "failures": [[*key, why] for key, why in self.table.failures.items()],
        }

    def prepare(self) -> None:
        """Install the peers, look for the servers and plugins, and leave out who cannot take part."""
        for group in list(self.groups):
            server = os.environ.get(group.server, "")
            if group.server and not server:
                self.missing[group.title] = "no server; `make bench` starts those that are installed"
                self.groups.remove(group)
                continue
            self.missing |= {f"{label} ({group.name})": why for label, why in group.absent.items()}
            if not self.options.peers:
                group.contenders = [c for c in group.contenders if not c.peer]
            if self.options.contender:
                group.contenders = [c for c in group.contenders if c.label in self.options.contender.split(";")]
            group.contenders = [c for c in group.contenders if self.has_plugins(c, group)]
            if group.server:
                self.servers.setdefault(
                    group.server[len("TASKQ_TEST_") : -len("_URL")].lower(), brokers.settings(server)
                )
        known: dict[str, tuple[Path, dict[str, str]] | str] = {}
        for group in self.groups:
            group.contenders = [c for c in group.contenders if self.has_program(c, group, known)]

    def has_plugins(self, contender: Contender, group: Group) -> bool:
        for needed in contender.needs:
            kind, _, name = needed.partition(":")
            if not importlib.metadata.entry_points(group=kind, name=name):
                self.missing[f"{contender.label} ({group.name})"] = f"no plugin {name} in {kind}"
                return False
        return True

    def has_program(self, contender: Contender, group: Group, known: dict[str, Any]) -> bool:
        """Find out what runs a contender's side; install a peer's environment when it is the first of its kind."""
        kind = contender.kind
        if not contender.peer:
            contender.command = python_side(contender)
            return True
        if kind not in known:
            try:
                known[kind] = venv.make(OUT, kind)
            except venv.Missing as error:
                known[kind] = str(error)
            if isinstance(known[kind], tuple):
                self.missing |= known[kind][1]
        if isinstance(known[kind], str):
            self.missing[f"{contender.label} ({group.name})"] = known[kind]
            return False
        program = str(known[kind][0])
        contender.command = python_side(contender, program)
        if kind == "node":
            # a module looks for its imports beside itself
            home = OUT / f"venv-{kind}"
            shutil.copy(Path(__file__).parent / "peers" / contender.module, home)
            contender.command = [program, str(home / contender.module)]
            contender.environment["BENCH_MODULES"] = str(home / "node_modules")
        return True

    def own(self) -> None:
        """Measure what only taskq is asked."""
        only = self.options.only
        if "start" in only:
            self.say("start-up")
            taskq_cases.start(self.table, 3 if self.options.quick else 5)
        if "memory" in only:
            self.say("memory transport")
            taskq_cases.memory(self.table, self.rounds, int(300_000 * self.factor), self.work)
        if "idle" in only:
            for group in self.groups:
                if group.idle:
                    self.say(f"idle workers, {group.name}")
                    taskq_cases.idle(self.table, group.contenders, 3 if self.options.quick else 8, self.work)
        if "backlog" in only:
            self.say("backlog")
            taskq_cases.backlog(self.table, self.factor, full=self.options.full, work=self.work)
            self.say("delayed tasks")
            taskq_cases.delayed(self.table, int((1_000_000 if self.options.full else 200_000) * self.factor), self.work)
        if "queues" in only:
            self.say("many queues")
            taskq_cases.queues(self.table, int(50_000 * self.factor), full=self.options.full, work=self.work)

    def round(self, group: Group, number: int) -> None:
        """Measure one broker once; after the first round the marks only, and only while there is time."""
        sizes = group.sizes.times(self.factor)
        server = os.environ.get(group.server, "")
        # alternate the order, so that nobody always runs in another's wake
        for contender in group.contenders[:: -1 if number % 2 else 1]:
            name = f"{contender.label} ({group.name})"
            if number and (not contender.every_round or name not in self.took):
                continue
            left = self.until - time.monotonic()
            if left < self.took.get(name, 0.0) and (number or contender.peer):
                if not number:
                    self.missing[name] = f"the time was up (--minutes {self.options.minutes:g})"
                continue
            self.say(f"round {number + 1} of {self.rounds}, {group.name}: {contender.label}")
            began = time.monotonic()
            try:
                if not contender.facts:
                    with box(contender, self.work, server):
                        pass
                group.measure(Turn(self.table, group.name, contender, sizes, self.work, server))
            except Failed as error:
                self.missing[name] = str(error)
                continue
            except Exception as error:  # a peer's or server's surprise must not end the run
                self.missing[name] = f"{type(error).__name__}: {error}"[:300]
                continue
            self.took[name] = time.monotonic() - began


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS='…'", description="Rates and ratios, printed.")
    parser.add_argument("--only", default=",".join(NAMES), metavar="GROUP,…", help=f"of {', '.join(NAMES)}; or pools")
    parser.add_argument("--contender", metavar="LABEL;…", help="just these")
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages, one round: does it work?")
    parser.add_argument(
        "--full",
        action="store_true",
        help="a million in SQLite and of delayed ones, too; 1,000 queues in RabbitMQ, too",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="default 3; medians are shown")
    parser.add_argument(
        "--minutes", type=float, default=14.0, metavar="N", help="start no further round or peer after so long (14)"
    )
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=True, help="or taskq and the bare libraries only"
    )
    parser.add_argument("--json", metavar="FILE", help="default: a new file in build/bench/")
    parser.add_argument("--read", metavar="FILE", help="show an earlier run's file instead of measuring")
    parser.add_argument("--write-docs", action="store_true", help="write docs/benchmarks.md from it")
    options = parser.parse_args()
    options.only = [name for name in options.only.split(",") if name]
    if "pools" in options.only:
        options.only += [name for name in NAMES if name.startswith("pools-")]
        options.only.remove("pools")
    if unknown := [name for name in options.only if name not in NAMES]:
        parser.error(f"nothing is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
