"""Messages that are not ours, or too large; and a result store that is away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from taskq.errors import PayloadTooLarge
from taskq.message import Outbound
from tests.faults.brokers import BROKERS
from tests.faults.conftest import LEASE, SOAK, Site
from tests.support.processes import eventually
from tests.support.redis_servers import OwnServer
from tests.support.servers import SERVERS


def test_foreign_messages_stop_nobody(site: Site) -> None:
    """What no taskq client wrote ends among the dead letters, as it is; the messages around it are run."""
    app = site.app()
    site.send(app, 3)
    foreign = [b"", b"\0", b'{"id": 1}', b"\xff" * 300, b"\x93\x01\x02"]
    app.transport.send([Outbound(f"foreign-{i}", "default", payload) for i, payload in enumerate(foreign)])
    site.send(app, 3, first=3)
    worker = site.worker()
    site.all_ran(6, 20)
    transport: Any = app.transport
    eventually(lambda: (transport.stats(["default.dead"]).get("default.dead") or _NONE).ready == len(foreign), worker)
    assert worker.process.poll() is None, worker.output


class _NONE:
    ready = 0


@pytest.mark.server
@pytest.mark.parametrize("name", list(BROKERS) if SOAK else ["sqlite", "redis"])
def test_a_message_too_large_is_refused_before_it_is_sent(name: str, make_site: Callable[[str], Site]) -> None:
    site = make_site(name)
    app = site.app(max_payload_bytes=10_000)
    with pytest.raises(PayloadTooLarge, match="max_payload_bytes is 10000"):
        app.send_task("tasks.short", ("x" * 20_000,))
    site.send(app, 1)
    site.worker()
    site.all_ran(1, 20)


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", list(BROKERS) if SOAK else ["sqlite", "redis", "amqp"])
def test_the_store_is_away_while_the_broker_is_up(
    name: str, make_site: Callable[[str], Site], server_url: Callable[[str], str]
) -> None:
    """Nothing is run again and nothing is acknowledged meanwhile; all is finished when the store is back."""
    server_url("valkey")
    site = make_site(name)
    n = 200
    with OwnServer(str(SERVERS["valkey"].program()), "--appendonly", "yes", "--appendfsync", "always") as store:
        site.serve(store=store.url())
        app = site.app()
        results = site.send(app, n)
        worker = site.worker().ready()
        eventually(lambda: len(site.ran()) >= n // 4, site)
        store.kill()
        eventually(lambda: "cannot be settled" in worker.output, worker)
        transport: Any = app.transport
        ran = len(site.ran())
        time.sleep(1.0)  # what the broker tells may lag behind
        before = transport.stats(["default"])["default"]
        time.sleep(LEASE + 2.0)  # the leases go on
        after = transport.stats(["default"])["default"]
        assert (before.ready, before.in_flight) == (after.ready, after.in_flight), "acknowledged without its outcome"
        assert after.in_flight or after.in_flight is None  # RabbitMQ does not tell
        assert len(site.ran()) <= ran + 64, "it went on taking work"
        store.start()
        assert [r.get(timeout=30) for r in results] == list(range(n))
        assert sorted(site.ran()) == list(range(n)), "run again"
        assert worker.process.poll() is None, worker.output
        site.end_well()
