"""Runs that last longer than the broker lets a message be held, on a server that means it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.brokers import BROKERS, RabbitMQ
from tests.faults.conftest import Site
from tests.support.processes import eventually
from tests.support.redis_servers import OwnServer
from tests.support.servers import SERVERS

HOLD = 6.0


class Impatient(RabbitMQ):
    """Takes messages back after seconds."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.own.settings = f"consumer_timeout = {HOLD * 1000:.0f}\n"  # type: ignore[misc]
        self.own.advanced = "[{rabbit, [{channel_tick_interval, 500}]}]."  # type: ignore[misc]  # how often it looks

    def url(self, port: int | None = None) -> str:
        return f"{super().url(port)}?consumer_timeout={HOLD}"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, make_site: Callable[[str], Site]) -> Site:
    monkeypatch.setitem(BROKERS, "impatient", Impatient)
    return make_site("impatient")


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(180)
def test_a_run_longer_than_the_servers_patience_goes_on(site: Site, server_url: Callable[[str], str]) -> None:
    """A copy of its message guards it: the message is not taken away, and the task runs once."""
    server_url("valkey")
    with OwnServer(str(SERVERS["valkey"].program())) as store:
        site.serve(store=store.url())
        app = site.app()
        (result,) = site.send(app, 1, task="long")
        worker = site.worker().ready()
        eventually(lambda: site.ran() == [0], site, 30)
        time.sleep(HOLD * 2)
        site.open_gate()
        assert result.get(timeout=60) == 0
        assert "lost their lease" not in worker.output
        site.end_well()
        assert site.ran() == [0]


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(180)
def test_without_a_store_to_carry_it_the_worker_says_so(site: Site) -> None:
    """Where the task's limit says that it may last longer, the worker does not start; where there is none, it warns."""
    worker = site.worker().ready()
    eventually(lambda: f"takes a message back after {HOLD:g} s" in worker.output, worker)
    tasks = site.folder / "tasks.py"
    tasks.write_text(tasks.read_text().replace("@app.task", "@app.task(time_limit=60)"))
    refused = site.worker("-P", "prefork")
    assert refused.wait() != 0
    assert "longer than its message can be held" in refused.output
