"""Connections that are cut, half-open, or cannot be made; and what a client is told about it."""

from __future__ import annotations

import threading
import time

import pytest

from taskq.errors import SendFailed, StoreError, TransportError
from taskq.testing import TcpProxy
from tests.faults.conftest import LEASE, SLACK, SOAK, Site
from tests.support.processes import eventually


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_cut_connections_lose_nothing(served: Site) -> None:
    """The workers' connections break again and again in the middle of work."""
    n = 600
    with TcpProxy(*served.broker.address()) as proxy:
        served.serve(served.broker.url(proxy.port))
        app = served.app(served.broker.url())
        served.send(app, n)
        worker = served.worker().ready()
        for share in (0.1, 0.25, 0.4, 0.6):
            eventually(lambda share=share: len(set(served.ran())) >= share * n, served, 40)  # type: ignore[misc]
            proxy.cut()
        served.all_ran(n, LEASE + SLACK + 10)
        assert worker.process.poll() is None, worker.output
        served.end_well()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_half_open_connections_are_noticed(served: Site) -> None:
    """The network drops everything for longer than the timeout; the work goes on when it is back."""
    n = 300
    default = served.broker.full or SOAK
    with TcpProxy(*served.broker.address()) as proxy:
        served.serve(served.broker.url(proxy.port) + ("" if default else served.broker.impatient))
        app = served.app(served.broker.url())
        served.send(app, n)
        worker = served.worker().ready()
        eventually(lambda: len(served.ran()) >= n / 3, served, 40)
        proxy.stall()
        time.sleep(LEASE + 2.0 if default else 3.0)  # longer than the timeout; by default than the lease, too
        proxy.heal()
        served.all_ran(n, LEASE + SLACK + 10)
        assert worker.process.poll() is None, worker.output
        served.end_well()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_publishing_while_the_broker_is_away(served: Site) -> None:
    """Bounded repeats, then an error that says that nothing was sent; afterwards it works again."""
    app = served.app(publish_timeout=1.5)
    served.send(app, 1)
    served.broker.kill()
    began = time.monotonic()
    with pytest.raises((SendFailed, TransportError)) as caught:
        app.send_task("tasks.short", (1,))
    assert time.monotonic() - began < 30.0
    assert not getattr(caught.value, "maybe_sent", False) or not served.broker.notices
    assert str(served.broker.address()[1]) in str(caught.value), "which server?"
    served.broker.start()

    def sent() -> bool:
        try:
            app.send_task("tasks.short", (1,))
        except SendFailed:  # a queue may need a while after a kill
            return False
        return True

    eventually(sent, served, 60)
    served.worker()
    served.all_ran(2, 20)


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_publishing_without_an_answer_says_that_it_may_have_been_sent(served: Site) -> None:
    with TcpProxy(*served.broker.address()) as proxy:
        app = served.app(served.broker.url(proxy.port) + served.broker.impatient, publish_timeout=3.0)
        served.send(app, 1)
        proxy.swallow("down")
        with pytest.raises(SendFailed) as caught:
            app.send_task("tasks.short", (1,))
        assert caught.value.maybe_sent
        assert "may" in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_the_broker_is_down_at_start(served: Site) -> None:
    """Client and worker wait, say so, and go on when it is there."""
    served.broker.kill()
    port = str(served.broker.address()[1])
    worker = served.worker()
    eventually(lambda: port in worker.output or worker.process.poll() is not None, worker)
    time.sleep(0.5)
    assert worker.process.poll() is None, f"it did not wait:\n{worker.output}"
    served.broker.start()
    served.send(served.app(), 5)
    served.all_ran(5, LEASE + SLACK)
    assert "Traceback" not in worker.output
    served.end_well()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_client_waits_for_a_broker_that_is_down_at_its_start(served: Site) -> None:
    served.broker.kill()
    app = served.app(publish_timeout=40.0, publish_retries=1000)
    starting = threading.Timer(1.0, served.broker.start)
    starting.start()
    try:
        app.send_task("tasks.short", (0,))
    finally:
        starting.join()
    served.worker()
    served.all_ran(1, 20)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_wrong_password_is_said_and_not_tried_again(served: Site) -> None:
    if not served.broker.passwords:
        pytest.skip(f"{served.broker.name} asks for no password")
    url = served.broker.wrong_password()
    served.serve(url)
    app = served.app(url)
    with pytest.raises((TransportError, StoreError)) as caught:  # whichever connects first
        app.send_task("tasks.short", (1,))
    assert not caught.value.retryable
    worker = served.worker()
    assert worker.wait() != 0
    assert "password" in worker.output
    assert "not-the-secret" not in worker.output + str(caught.value)
    assert worker.output.count("refused") + worker.output.count("password") < 10, "tried again and again"
