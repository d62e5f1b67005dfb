"""What the kit allows its users: no silent overrides, documented skips, and helpers that do what they say."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

import pytest

from taskq.testing import StoreSuite, TcpProxy, TransportSuite, VirtualClock
from taskq.testing.base import eventually, within
from taskq.testing.leaks import Held

pytest_plugins = ["pytester"]


def test_overriding_a_kit_test_is_refused() -> None:
    with pytest.raises(TypeError, match="test_roundtrip"):

        class Silent(TransportSuite):
            def test_roundtrip(self) -> None:
                pass


def test_removing_a_kit_test_is_refused() -> None:
    with pytest.raises(TypeError, match="test_wake_ends_the_wait"):
        type("Silent", (StoreSuite,), {"test_wake_ends_the_wait": None})


def test_overriding_through_a_mixin_is_refused() -> None:
    mixin = type("Mixin", (), {"test_roundtrip": lambda self: None})
    with pytest.raises(TypeError, match="Mixin overrides"):
        type("Silent", (mixin, TransportSuite), {})


def test_an_override_with_a_reason_is_allowed() -> None:
    class Honest(TransportSuite):
        @pytest.mark.xfail(reason="the server forgets")
        def test_roundtrip(self) -> None:
            pass

        def test_of_its_own(self) -> None:
            pass


@pytest.mark.parametrize("skips", [{"test_no_such_test": "why"}, {"test_roundtrip": " "}])
def test_skips_need_a_test_and_a_reason(skips: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="skip_reasons"):
        type("Skipping", (TransportSuite,), {"skip_reasons": skips})


def test_a_documented_skip_is_shown(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from taskq.testing import StoreSuite

        class TestConformance(StoreSuite):
            scheme = "memory"
            skip_reasons = {"test_long_ids": "the server cuts ids"}

            @pytest.fixture
            def url(self):
                return "memory://"
        """
    )
    result = pytester.runpytest_inprocess("-rs", "-p", "no:cacheprovider", "-k", "long_ids or empty_batches")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*the server cuts ids*"])


def test_an_undeclared_ability_is_a_warning_at_the_end(pytester: pytest.Pytester) -> None:
    """Not a failure, also where warnings are errors."""
    pytester.makepyfile(
        """
        import pytest
        from msgspec.structs import replace
        from taskq.testing import TransportSuite
        from taskq.testing.base import select
        from taskq_transport_memory.transport import MemoryTransport

        class Modest(MemoryTransport):
            @property
            def capabilities(self):
                return replace(super().capabilities, peek=False)

        class TestConformance(TransportSuite):
            scheme = "memory"

            @pytest.fixture
            def url(self):
                return "memory://"

        TestConformance.load_spec = lambda self: replace(select("transport", "memory"), factory=Modest)
        """
    )
    result = pytester.runpytest_inprocess("-Werror", "-p", "no:cacheprovider", "-k", "what_works_is_declared")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*UndeclaredAbility: memory can do what it does not declare: peek*"])


def test_importing_the_package_needs_neither_pytest_nor_hypothesis() -> None:
    code = "import sys, taskq.testing; taskq.testing.VirtualClock(); print({'pytest', 'hypothesis'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "set()"


def test_every_name_of_the_package_exists() -> None:
    import taskq.testing as kit

    assert sorted(kit.__all__) == sorted(kit._WHERE)
    missing = [n for n in kit.__all__ if n != "taskq_app" and getattr(kit, n, None) is None]
    assert not missing


def test_every_kit_test_says_what_to_check() -> None:
    """A failing test is read by somebody who does not know the kit."""
    from taskq.testing import CoordinationSuite

    silent = [
        f"{kit.__name__}.{name}"
        for kit in (TransportSuite, StoreSuite, CoordinationSuite)
        for name in dir(kit)
        if name.startswith("test_") and "heck" not in (getattr(kit, name).__doc__ or "")
        if name != "test_what_works_is_declared"
    ]
    assert not silent


# ---------------------------------------------------------------------------------------------------- helpers


def test_within_reports_a_hang_and_passes_errors_on() -> None:
    ended = threading.Event()
    with pytest.raises(pytest.fail.Exception, match="slow call did not return"):
        within(0.05, "slow call", lambda: ended.wait(5))
    ended.set()
    with pytest.raises(KeyError):
        within(1.0, "call", lambda: {}["x"])
    assert within(1.0, "call", lambda: 7) == 7


def test_eventually_gives_up() -> None:
    with pytest.raises(pytest.fail.Exception, match="never true"):
        eventually(0.03, "never true", lambda: 0)


def test_held_sees_threads_and_sockets() -> None:
    held = Held()
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    left, right = socket.socketpair()
    assert len(held.more()) == 2
    left.close()
    right.close()
    ended.set()
    thread.join()
    held.check(1.0, "nothing")


def test_virtual_clock() -> None:
    clock = VirtualClock(now=100.0)
    moves: list[float] = []
    stop = clock.on_advance(lambda: moves.append(clock.monotonic()))
    clock.advance(2.5)
    stop()
    clock.advance(1.0)
    assert (clock.now(), clock.monotonic(), moves) == (103.5, 3.5, [2.5])
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


class Echo:
    """A server that answers each line with itself."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.received = b""
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            with sock:
                try:
                    while data := sock.recv(1000):
                        self.received += data
                        sock.sendall(data)
                except OSError:
                    pass

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(20)


@pytest.fixture
def echo():  # type: ignore[no-untyped-def]
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo):  # type: ignore[no-untyped-def]
    with TcpProxy("127.0.0.1", echo.listener.getsockname()[1]) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: TcpProxy):  # type: ignore[no-untyped-def]
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        yield client


def silent(client: socket.socket, seconds: float = 0.1) -> bool:
    client.settimeout(seconds)
    try:
        client.recv(100)
    except TimeoutError:
        return True
    finally:
        client.settimeout(20)
    return False


def test_proxy_cuts(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as again:
        again.sendall(b"x")
        assert again.recv(100) == b"x"
    assert proxy.connections == 2


def test_proxy_cuts_in_the_middle(proxy: TcpProxy, client: socket.socket, echo: Echo) -> None:
    proxy.swallow("down")  # the echo of what was passed on
    proxy.cut_after(3, "up")
    client.sendall(b"abcdef")
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    eventually(2.0, "what was passed on arrives", lambda: echo.received == b"helloabc")


def test_proxy_stalls_and_heals(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.stall()
    client.sendall(b"x")
    assert silent(client)
    proxy.heal()
    assert client.recv(100) == b"x"


def test_proxy_swallows_answers(proxy: TcpProxy, client: socket.socket, echo: Echo) -> None:
    proxy.swallow("down")
    client.sendall(b"x")
    assert silent(client)
    assert echo.received == b"hellox"


def test_proxy_delays(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.delay(0.05)
    started = time.monotonic()
    client.sendall(b"x")
    assert client.recv(100) == b"x"
    assert time.monotonic() - started >= 0.09


def test_proxy_half_closes(proxy: TcpProxy, client: socket.socket, echo: Echo) -> None:
    proxy.half_close()
    assert client.recv(100) == b""
    client.sendall(b"still heard")
    eventually(2.0, "the server hears", lambda: echo.received.endswith(b"still heard"))
