"""Connections without encryption: with libzmq on the other side, and with clients and hubs that misbehave."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from taskq.errors import ConfigError
from taskq_lib_zeromq import protocol, zmtp
from taskq_lib_zeromq.hub import AddressInUse, Hub, HubOptions, HubThread
from taskq_lib_zeromq.hub import streams as streams_module
from taskq_lib_zeromq.hub.door import Unreachable
from taskq_lib_zeromq.hub.streams import Streams
from taskq_lib_zeromq.stream import Stream
from taskq_lib_zeromq.wire import Broken

PATIENCE = 20.0
LARGE = bytes(range(256)) * 40_000


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def connected(address: str, heartbeat: float = 5.0) -> Stream:
    return Stream(address, connect_timeout=PATIENCE, timeout=PATIENCE, heartbeat=heartbeat)


def next_of(stream: Stream) -> bytes:
    assert stream.poll(PATIENCE)
    frame = stream.receive()
    assert frame is not None
    return frame


def read_all(stream: Stream) -> None:
    while stream.poll(PATIENCE):
        stream.receive()


class Served:
    """A door that a thread serves: it sends back what comes, but for orders."""

    def __init__(self, *bind: str) -> None:
        self.door = Streams(bind or ("tcp://127.0.0.1:*",), max_bytes=1 << 25, heartbeat=1.0)
        self.address = self.door.addresses[0]
        self.unreachable = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stopping:
            arrived = self.door.receive(0.05)
            if arrived is None:
                self.door.sweep()
                continue
            connection, frame = arrived
            for _ in range(50 if frame == b"flood" else 1):
                try:
                    self.door.send(connection, LARGE if frame == b"flood" else frame)
                except Unreachable:
                    self.unreachable += 1

    def close(self) -> None:
        self._stopping = True
        self.door.wake()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self.door.close()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.close()


# ------------------------------------------------------------------------------------------------------ with libzmq


def test_a_client_understands_libzmq() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.HEARTBEAT_IVL, 50)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(PATIENCE * 1000))
        port = router.bind_to_random_port("tcp://127.0.0.1")
        stream = connected(f"tcp://127.0.0.1:{port}")
        for frame in (b"", b"small", LARGE):
            sender = threading.Thread(target=stream.send, args=(frame,))
            sender.start()
            assert router.poll(int(PATIENCE * 1000))
            name, came = router.recv_multipart()
            sender.join(PATIENCE)
            assert came == frame
            router.send_multipart([name, frame])
            assert next_of(stream) == frame
        assert not stream.poll(0.2), "heartbeats are no messages"
        stream.close()


def test_a_hub_understands_libzmq(served: Served) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.HEARTBEAT_IVL, 50)
        dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(PATIENCE * 1000))
        dealer.connect(served.address)
        for frame in (b"", b"small", LARGE):
            dealer.send(frame)
            assert dealer.poll(int(PATIENCE * 1000))
            assert dealer.recv() == frame
        dealer.send_multipart([b"several", b"frames"])
        until(lambda: served.door.strange == 1)


# ------------------------------------------------------------------------------------------------------- misbehaving


def test_who_does_not_read_is_dropped_and_hinders_nobody(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "_UNREAD_BYTES", 30 << 20)
    lazy, busy = connected(served.address), connected(served.address)
    lazy.send(b"flood")  # 500 MB
    until(lambda: served.unreachable)
    busy.send(b"hello")
    assert next_of(busy) == b"hello"
    with pytest.raises(Broken):
        read_all(lazy)
    busy.close()


def test_a_client_that_is_slow_gets_all_in_order(served: Served) -> None:
    slow = connected(served.address)
    for n in range(5):
        slow.send(b"%d" % n + LARGE[:3_000_000])
    for n in range(5):
        frame = next_of(slow)
        assert frame[:1] == b"%d" % n
        assert frame[1:] == LARGE[:3_000_000]
    slow.close()


def test_who_never_shakes_hands_is_dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    shaken = connected(served.address)
    shaken.send(b"here")
    assert next_of(shaken) == b"here"
    _, _, port = served.address.rpartition(":")
    with socket.create_connection(("127.0.0.1", int(port)), PATIENCE) as silent:
        assert silent.recv(100)
        monkeypatch.setattr(streams_module, "_UNSHAKEN_S", -1.0)
        assert silent.recv(100) == b""
    shaken.send(b"still here")
    assert next_of(shaken) == b"still here"
    shaken.close()


@pytest.mark.parametrize(
    "said",
    [
        zmtp.SIGNATURE + b"CURVE".ljust(20, b"\0") + bytes(32),
        zmtp.SIGNATURE + zmtp.REST + zmtp.frame(b"before the handshake"),
        zmtp.SIGNATURE + zmtp.REST + zmtp.ready(b"DEALER") + b"\2" + b"\x7f" * 8,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["encryption", "hasty", "huge", "http"],
)
def test_a_hub_hangs_up_on_who_talks_nonsense(served: Served, said: bytes) -> None:
    _, _, port = served.address.rpartition(":")
    with socket.create_connection(("127.0.0.1", int(port)), PATIENCE) as client:
        client.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1000):
                continue


def test_a_hub_without_descriptors_accepts_again_when_one_is_free(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = connected(served.address)
    failing = True
    accept = socket.socket.accept

    def scarce(self: socket.socket) -> Any:
        if failing:
            raise OSError(errno.EMFILE, "too many open files")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", scarce)
    _, _, port = served.address.rpartition(":")
    with socket.create_connection(("127.0.0.1", int(port)), PATIENCE) as waiting:
        until(lambda: served.door._deaf)
        failing = False
        first.close()
        assert waiting.recv(1)


def test_an_interrupted_send_leaves_no_half_message() -> None:
    class Struck(Exception):
        pass

    def strike(*_: Any) -> None:
        raise Struck

    def serve() -> None:
        accepted.append(server.accept()[0])
        accepted[0].sendall(zmtp.SIGNATURE + zmtp.REST + zmtp.ready(b"ROUTER"))
        heard = 0
        while heard < 10_000:  # greeting and handshake are less: it is in the middle of its message
            heard += len(accepted[0].recv(1000))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        stream = connected(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        before = signal.signal(signal.SIGALRM, strike)
        try:
            with pytest.raises(Struck):
                stream.send(LARGE * 10)  # more than systems buffer, and nobody reads on
        finally:
            signal.signal(signal.SIGALRM, before)
        thread.join(PATIENCE)
        with pytest.raises(Broken):
            stream.poll(0.0)
        accepted[0].close()


# --------------------------------------------------------------------------------------------------------- listening


def test_a_client_that_is_not_read_for_long_stays_connected() -> None:
    """A worker whose only thread runs a long task reads nothing; that is no reason to hang up."""
    hub = HubThread(HubOptions(bind=("tcp://127.0.0.1:*",), heartbeat=0.1))
    stream = connected(hub.hub.addresses[0])
    try:
        stream.send(protocol.encode(protocol.Hello(protocol.VERSION, "me")))
        assert isinstance(protocol.decode_from_hub(next_of(stream)), protocol.Welcome)
        time.sleep(1.0)
        stream.send(protocol.encode(protocol.Stats(1, [])))
        assert isinstance(protocol.decode_from_hub(next_of(stream)), protocol.Answer)
    finally:
        stream.close()
        hub.stop()


def test_a_socket_file_of_a_killed_hub_is_replaced_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "hub"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    served = Served(f"ipc://{path}")
    try:
        with pytest.raises(AddressInUse, match="cannot listen"):
            Hub(HubOptions(bind=(f"ipc://{path}",)))
        stream = connected(f"ipc://{path}")
        stream.send(b"a")
        assert next_of(stream) == b"a"
        stream.close()
    finally:
        served.close()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(AddressInUse):
        Streams([f"ipc://{path}"], max_bytes=1000, heartbeat=1.0)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    "address", ["udp://127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "tcp://127.0.0.1:99999"]
)
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        Hub(HubOptions(bind=(address,)))


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "[::1]", "[::]"])
def test_hosts(host: str) -> None:
    try:
        served = Served(f"tcp://{host}:*")
    except AddressInUse:
        pytest.skip(f"this machine has no {host}")
    try:
        _, _, port = served.address.rpartition(":")
        stream = connected(f"tcp://{'[::1]' if host == '[::1]' else '127.0.0.1'}:{port}")
        stream.send(b"a")
        assert next_of(stream) == b"a"
        stream.close()
    finally:
        served.close()
