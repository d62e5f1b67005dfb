"""kill -9 of workers, and of the broker, under load, with default settings."""

from __future__ import annotations

import signal
import time

import pytest

from tests.faults.conftest import LEASE, SLACK, SOAK, Site
from tests.support.processes import eventually

WORK = 0.005


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_workers_lose_nothing(site: Site) -> None:
    """Several kills while 3,000 tasks of 5 ms are worked off: none is missing within the lease and 5 s."""
    n = 30_000 if SOAK else 3000 if site.broker.full else 900
    app = site.app()
    site.send(app, n)
    workers = [site.worker().ready() for _ in range(2)]
    for share in (0.15, 0.3, 0.45, 0.6, 0.75) if site.broker.full else (0.3, 0.6):
        eventually(lambda share=share: len(site.ran()) >= share * n, site, 60 + n * WORK)  # type: ignore[misc]
        victim = workers.pop(0)
        victim.send(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
        workers.append(site.worker())
    site.all_ran(n, LEASE + SLACK + n * WORK)
    twice = len(site.ran()) - n
    assert twice <= 0.5 * n, "more was run again than the dead can have held"
    site.end_well()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_broker_loses_nothing_accepted(served: Site) -> None:
    """kill -9 and restart, twice, while workers work and somebody sends; what was accepted is run."""
    n = 20_000 if SOAK else 600
    app = served.app()
    half = n // 2
    results = served.send(app, half)
    worker = served.worker().ready()
    for share in (0.2, 0.5):
        eventually(lambda share=share: len(served.ran()) >= share * half, served, 60)  # type: ignore[misc]
        served.broker.kill()
        time.sleep(0.3)
        served.broker.start()
    results += served.send(app, half, first=half)
    served.all_ran(n, 60 + n * WORK)  # no promise says how soon a server is itself again
    if app.store is not None:
        assert results[-1].get(timeout=20) == n - 1
    assert worker.process.poll() is None, worker.output
    assert "Traceback" not in worker.output
    served.end_well()
