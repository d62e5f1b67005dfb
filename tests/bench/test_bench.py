"""The suite's own arithmetic and rendering, and that its contenders are made alike. It measures nothing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench import report, venv
from tests.bench.contender import Contender, Failed, box
from tests.bench.groups import GROUPS
from tests.bench.measure import Table, cpu_seconds, percentile, tree
from tests.bench.stopwatch import Counter

HERE = Path(__file__).parent
CONTENDERS = sorted({c.module for g in GROUPS for c in g.contenders if not c.module.endswith(".mjs")})


def result() -> dict:
    table = Table()
    for value in (100.0, 200.0, 150.0):
        table.add("sqlite", "drain", "taskq", "tasks/s", value)
        table.add("sqlite", "drain", "other", "tasks/s", value / 4, note="polls")
        table.add("sqlite", "round trip p50", "taskq", "ms", 1.0)
        table.add("sqlite", "round trip p50", "other", "ms", 3.0)
    table.fail("sqlite", "drain", "third", "the worker ended with 1")
    promises = {
        "versions": {"other": "1.0"}, "python": "3.13.0", "ack": "before the run", "durability": "none", "note": "",
    }  # fmt: skip
    return {
        "began": "2026-01-01", "seconds": 60, "settings": {"rounds": 3, "quick": True, "full": False},
        "machine": {"cores": 2}, "noise": {"load before": 0.1, "a fixed loop, ms": {"best": 30.0, "worst": 31.0}},
        "servers": {"postgresql": {"fsync": "on"}}, "titles": {"sqlite": "SQLite"},
        "goals": [["sqlite", "drain", "≥ 40,000"]],
        "contenders": [["sqlite", "taskq", "taskq", promises], ["sqlite", "other", "peer", promises]],
        "missing": {"fourth": "no such version"}, "rows": [row.__dict__ for row in table.rows.values()],
        "failures": [[*key, why] for key, why in table.failures.items()],
    }  # fmt: skip


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.99)) == (51.0, 100.0, 7.0)
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_the_ratio_says_how_many_times_better_taskq_is() -> None:
    lines = {case: lines for _, _, cases in report.groups(result()) for case, _, lines in cases}
    assert [line[:4] for line in lines["drain"]] == [
        ["taskq", "150", "100–200", "4.00 × other"],
        ["other", "37.5", "25.0–50.0", "4.00 ×"],
    ]
    assert [line[3] for line in lines["round trip p50"]] == ["0.33 × other", "3.00 ×"]


def test_the_plot_is_well_formed_and_has_a_bar_for_each() -> None:
    drawn = ElementTree.fromstring(report.plot(result()))
    bars = [e for e in drawn.iter() if e.tag.endswith("rect") and e.get("x")]
    assert len(bars) == 4
    assert len({bar.get("width") for bar in bars}) > 1


def test_reports_hold_everything_that_was_and_was_not_measured() -> None:
    for text in (report.text(result()), report.document(result())):
        assert "polls; acknowledges before the run" in text
        for said in ("4.00 ×", "≥ 40,000", "before the run", "fsync on", "no such version", "ended with 1", "polls"):
            assert said in text, said


@pytest.mark.parametrize("module", CONTENDERS)
def test_contenders_have_the_same_functions_and_say_what_they_promise(module: str) -> None:
    path = HERE / f"{module.removeprefix('tests.bench.').replace('.', '/')}.py"
    tree = ast.parse(path.read_text("utf-8"))
    names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names |= {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    assert {"worker", "send", "call", "ACK", "DURABILITY", "NOTE", "RESULTS", "VERSIONS"} <= names


def test_every_peer_is_installed_from_a_section_of_pinned_versions() -> None:
    sections = venv.sections()
    assert {c.kind for g in GROUPS for c in g.contenders if c.peer} <= sections.keys()
    for kind, lines in sections.items():
        pinned = "@" if kind == "node" else "=="
        assert all(pinned in line for line in lines if not line.startswith("#")), kind


def test_peers_whose_interpreter_is_not_there_are_told_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(venv.Missing, match="needs node and npm"):
        venv.make(tmp_path, "node")


def test_a_contender_that_does_not_run_is_told_with_its_reason(tmp_path: Path) -> None:
    absent = Contender("absent", "tests.bench.peers.absent")
    with pytest.raises(Failed, match=r"No module named 'tests\.bench\.peers\.absent'"), box(absent, tmp_path, ""):
        pass
    assert not list(tmp_path.iterdir())


def test_a_worker_that_ends_by_itself_is_told_with_its_last_error(tmp_path: Path) -> None:
    contender = Contender("floor", "tests.bench.floors.sqlite")
    with box(contender, tmp_path, "") as made:
        contender.facts["worker"] = [sys.executable, "-c", "raise ValueError('broken')"]
        with made.worker() as worker, pytest.raises(Failed, match="ended with 1: ValueError: broken"):
            worker.wait(1, 20)


def test_counts_of_all_processes_and_threads_add_up(tmp_path: Path) -> None:
    counter = Counter(str(tmp_path / "count"))
    code = """if True:
        import os, threading
        from tests.bench.stopwatch import tick
        tick()
        child = os.fork()
        threads = [threading.Thread(target=lambda: [tick() for _ in range(1000)]) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        if child: os.wait()
    """
    environment = {**os.environ, "BENCH_COUNT": str(tmp_path / "count")}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=HERE.parents[1], check=True)
        assert counter.read() == 1 + 2 * 4000
        counter.reset()
        assert counter.read() == 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_processor_time_is_that_of_the_process() -> None:
    before = cpu_seconds(tree(os.getpid()))
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert cpu_seconds(tree(os.getpid())) - before >= 0.08
