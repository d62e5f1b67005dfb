"""What docs/guides/ says of brokers, pools and workers in production, beside the examples that test_pages runs."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from taskq import TaskQ
from taskq.errors import SendFailed
from tests.docs.pages import DOCS, blocks, environment
from tests.docs.test_pages import parses
from tests.support.install import ROOT

PRODUCTION = DOCS / "guides/production.md"


def table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    text = page.read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_promises_side_by_side_are_those_that_the_plugins_declare() -> None:
    declared = table(DOCS / "reference/capabilities.md", "Transports in words")
    head, _, *rows = table(DOCS / "guides/brokers.md", "Side by side")
    assert len(head) > 6
    columns = [0, *(next(i for i, h in enumerate(declared[0]) if scheme in h.split()) for scheme in head[1:])]
    wanted = [[row[i] for i in columns] for row in declared[2:]]
    assert rows == wanted, "the page's table should be:\n" + "\n".join(f"| {' | '.join(row)} |" for row in wanted)


def test_the_unit_is_the_one_that_the_contribution_is_tested_with() -> None:
    (unit,) = [block.text for block in blocks(PRODUCTION) if block.language == "ini"]
    (theirs,) = [b.text for b in blocks(ROOT / "contrib/systemd/README.md") if b.language == "ini"]
    assert set(theirs.splitlines()) <= set(unit.splitlines())


def test_commands_of_containers_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop.py").write_text("from taskq import TaskQ\napp = TaskQ('shop', isolated=True)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    found = 0
    for block in blocks(PRODUCTION):
        if block.language in ("dockerfile", "yaml"):
            for line in re.findall(r'\["taskq", ([^\]]*)\]', block.text):
                parses(re.findall(r'"([^"]*)"', line))
                found += 1
    assert found == 4


def test_topics_reach_the_queues_that_the_page_says(rabbitmq_url: str, tmp_path: Path) -> None:
    page = DOCS / "guides/routing.md"
    (text,) = [b.text for b in blocks(page) if b.language == "toml" and "exchange" in b.text]
    (tmp_path / "pyproject.toml").write_text(text.replace("amqp://guest@localhost//", rabbitmq_url))
    (call,) = re.findall(r"`(send_task\(.*?\))`", page.read_text("utf-8"))
    (declaration,) = re.findall(r"`(app\.transport\.declare\(.*?\))`", page.read_text("utf-8"))
    with TaskQ("shop", config=tmp_path / "pyproject.toml", result_store="none") as app:
        eval(declaration, {"app": app})
        eval(f"app.{call}", {"app": app})
        with pytest.raises(SendFailed):  # no queue is bound for it
            app.send_task("shop.order", [7], queue="europe", routing_key="nobody.cares")
        app.send_task("shop.clear", queue="caches")  # by name
        stats = app.transport.stats(["europe", "audit", "caches"])  # type: ignore[attr-defined]
    assert {name: found.ready for name, found in stats.items()} == {"europe": 1, "audit": 1, "caches": 1}


@pytest.mark.slow
def test_a_worker_is_run_as_the_page_says(tmp_path: Path) -> None:
    """Probed by the command, asked for a dump, restarted by HUP in the same process, stopped by TERM with 0."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "shop.py").write_text("from taskq import TaskQ\napp = TaskQ('shop')\napp.task(lambda: 1, name='one')\n")
    env = {**environment(tmp_path), "TASKQ_EXTENSIONS__HEALTH__ADDRESS": address}
    log = tmp_path / "log"

    def probe(what: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "taskq", "health", "--address", address, what]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    def until(text: str, count: int) -> None:
        deadline = time.monotonic() + 30
        while log.read_text().count(text) < count:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)

    with log.open("wb") as to:
        command = [sys.executable, "-m", "taskq", "-A", "shop", "worker", "-P", "threads"]
        worker = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=to)
    try:
        until(" ready: ", 1)
        for what in ("--ready", "--live"):
            assert probe(what).returncode == 0
        worker.send_signal(signal.SIGUSR1)
        until("dump: worker", 1)
        worker.send_signal(signal.SIGHUP)
        until(" ready: ", 2)
        worker.terminate()
        assert worker.wait(timeout=30) == 0
        assert probe("--ready").returncode == 1
    finally:
        worker.kill()
        worker.wait()
