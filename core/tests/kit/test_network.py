"""The kit's tests with a broken network pass on a transport that copes, and see each way of not coping."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from core.tests.kit.bench import run
from core.tests.kit.tcp import SPEC, Server, TcpConsumer, TcpTransport
from taskq.errors import ConnectionFailed, ConnectionLost, TransportError
from taskq.spi import TransportSpec
from taskq.testing import TransportSuite
from taskq.testing.base import within
from taskq.testing.transports_faults import LeakTests, NetworkTests, ProcessTests

pytestmark = pytest.mark.slow  # it matters when the kit changes, and waits for timeouts


class TestNetwork(NetworkTests, LeakTests, ProcessTests):
    scheme = "kit-tcp"
    give_up_s = 4.0
    quiet_s = 0.05

    @pytest.fixture
    def url(self) -> Iterator[str]:
        server = Server()
        yield f"kit-tcp://127.0.0.1:{server.port}"
        server.close()


def _load_spec(self: Any) -> TransportSpec:
    return SPEC


TestNetwork.load_spec = _load_spec  # type: ignore[method-assign]  # no plugin may, the kit's own test must


class Mutant(TcpTransport):
    caught_by: tuple[str, ...] = ()


class UsesTheParentsConnection(Mutant):
    caught_by = ("test_an_inherited_transport_does_no_harm",)

    def inherited(self) -> bool:
        return False


class ExpectsAnswersAtOnce(Mutant):
    caught_by = ("test_a_slow_network",)

    def connect(self) -> socket.socket:
        sock = super().connect()
        sock.settimeout(0.02)
        return sock


class WaitsForEver(Mutant):
    caught_by = ("test_a_stalled_server_hangs_nobody", "test_a_server_that_does_not_answer")
    timeout_s = 10.0


class DeniesWhatMayBeSent(Mutant):
    caught_by = ("test_an_answer_that_never_came",)

    def send(self, batch: Any) -> Any:
        failures = super().send(batch)
        if failures and failures[0].maybe_sent:
            raise ConnectionLost("nothing was sent, says this mutant")
        return failures


class ClaimsWhatWasNotSent(Mutant):
    caught_by = ("test_cut_in_the_middle_of_sending",)

    def send(self, batch: Any) -> Any:
        try:
            super().send(batch)
        except ConnectionFailed:
            pass
        return []


class NeverReconnects(Mutant):
    caught_by = ("test_a_connection_that_broke_while_idle", "test_held_messages_survive_a_cut")
    opened = False

    def connect(self) -> socket.socket:
        if self.opened and not self.free and self.broken:
            raise ConnectionFailed("the connection is gone")
        self.opened = True
        return super().connect()

    broken = False

    def _drop(self) -> None:
        self.broken = True
        super()._drop()


class GivesUpForGood(Mutant):
    caught_by = ("test_a_connection_that_broke_while_idle",)

    def call(self, method: str, *arguments: Any) -> Any:
        try:
            return super().call(method, *arguments)
        except TransportError as error:
            error.retryable = False
            raise


class LetsForeignErrorsOut(Mutant):
    caught_by = ("test_a_server_that_is_not_there", "test_a_stalled_server_hangs_nobody")

    def call(self, method: str, *arguments: Any) -> Any:
        try:
            return super().call(method, *arguments)
        except TransportError as error:
            raise OSError("broken pipe") from error

    def connect(self) -> socket.socket:
        return socket.create_connection((self.url.host or "", self.url.port or 0))


class LeaksFailedConnections(Mutant):
    caught_by = ("test_a_failed_open_gives_everything_back",)
    leaked: list[Any] = []  # noqa: RUF012

    def open(self) -> None:
        self.leaked.append(socket.socket())
        super().open()


class LosesWhatTheAnswerCarried(Mutant):
    """A batch whose answer was lost is held by the server for a consumer that does not know of it."""

    caught_by = ("test_cuts_at_random_moments",)

    def consumer(self) -> TcpConsumer:
        consumer = super().consumer()
        plain = consumer.fetch

        def fetch(limit: int, wait: float, *, ahead: int = 0) -> Any:
            consumer.turn += 1
            return plain(limit, wait)

        consumer.fetch = fetch  # type: ignore[method-assign]
        return consumer


MUTANTS = Mutant.__subclasses__()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # mutants leave sockets behind
@pytest.mark.parametrize(("mutant", "test"), [(m, t) for m in MUTANTS for t in m.caught_by])
def test_mutant_is_caught(mutant: type[Mutant], test: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKQ_SEED", "5")
    server = Server()
    url = f"kit-tcp://127.0.0.1:{server.port}"
    try:
        assert run(TransportSuite, test, mutant, spec=SPEC, url=url, give_up_s=1.5)
    finally:
        within(20.0, "closing the server", server.close)
