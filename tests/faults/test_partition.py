"""A worker of two brokers, one of which is cut off from it: the work of the other goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskq.testing import TcpProxy
from tests.faults.conftest import LEASE, SLACK, Site
from tests.support.processes import eventually

N = 400


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("own", "other", "cut_off"),
    [("redis", "amqp", "own"), ("redis", "amqp", "other"), ("postgresql", "redis", "other")],
)
def test_a_partition_from_one_broker(make_site: Callable[[str], Site], own: str, other: str, cut_off: str) -> None:
    """Half of the tasks are on each broker; the network drops what goes to and from one of them, in mid-work."""
    site, second = make_site(own), make_site(other)
    with TcpProxy(*site.broker.address()) as first, TcpProxy(*second.broker.address()) as further:
        settings = {"queues": {"far": {"broker": "other"}}}
        brokers = {"other": second.broker.url(further.port) + second.broker.impatient}
        url = site.broker.url(first.port) + site.broker.impatient
        site.serve(url, "none", brokers=brokers, **settings)
        app = site.app(site.broker.url(), brokers={"other": second.broker.url()}, **settings)
        queues = ("default", "far") if cut_off == "own" else ("far", "default")
        site.send(app, N // 2, queue=queues[0])
        worker = site.worker("-Q", "default,far").ready()
        eventually(lambda: len(site.ran()) >= N / 20, site, 40)
        (first if cut_off == "own" else further).stall()
        before = set(site.ran())
        site.send(app, N // 2, queue=queues[1], first=N // 2)
        eventually(lambda: set(range(N // 2, N)) <= set(site.ran()), site, 40)
        assert len(set(site.ran()) - before) < N, "nothing was cut off"
        (first if cut_off == "own" else further).heal()
        site.all_ran(N, LEASE + SLACK + 10)
        assert worker.process.poll() is None, worker.output
        for place in (second, site):
            place.workers = site.workers
            place.end_well()


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("own", "other", "gone"), [("redis", "postgresql", "own"), ("redis", "amqp", "other")])
def test_one_broker_down_at_the_start(make_site: Callable[[str], Site], own: str, other: str, gone: str) -> None:
    site, second = make_site(own), make_site(other)
    settings = {"brokers": {"other": second.broker.url()}, "queues": {"far": {"broker": "other"}}}
    site.serve(None, "none", **settings)
    app = site.app(**settings)
    place, queue, live = (site, "default", "far") if gone == "own" else (second, "far", "default")
    site.send(app, 50, queue=queue)
    site.send(app, 50, queue=live, first=50)
    app.close()
    place.broker.kill()
    worker = site.worker("-Q", "default,far")
    eventually(lambda: set(range(50, 100)) <= set(site.ran()), site, 60)
    assert "starts without it, and waits for it" in worker.output
    assert not set(range(50)) & set(site.ran())
    place.broker.start()
    site.all_ran(100, LEASE + SLACK + 10)
    for each in (second, site):
        each.workers = site.workers
        each.end_well()
