"""An encrypted connection: a DEALER socket of libzmq that lives as long as its TCP connection.

libzmq reconnects in silence and forgets what was under way, so that is switched off here, and a monitor tells of a
broken connection.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from taskq_lib_client.bell import Source
from taskq_lib_zeromq.stream import greeting_mechanism, other_mechanism
from taskq_lib_zeromq.target import Curve
from taskq_lib_zeromq.wire import Broken, Denied

_EVENTS = (
    zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)  # fmt: skip
_SENT_AT_ONCE = 100_000
"""Messages that may wait in a socket to be written; ours are batches, each answered, so that it is never reached."""

_context: zmq.Context[zmq.Socket[bytes]] | None = None
_context_pid = 0
_inherited: list[Any] = []
"""Contexts of a parent process, kept so that nothing touches them here."""
_context_lock = threading.Lock()


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return this process's ZeroMQ context, with its one I/O thread."""
    global _context, _context_pid
    with _context_lock:
        if _context is None or _context_pid != os.getpid():
            if _context is not None:
                _inherited.append(_context)
            _context = zmq.Context()
            _context.set(zmq.MAX_SOCKETS, 16_000)
            _context_pid = os.getpid()
        return _context


class CurveSocket:
    """One connection under way or made: libzmq shakes hands behind the first frames."""

    def __init__(self, address: str, curve: Curve, *, connect_timeout: float, heartbeat: float) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self._socket = dealer = context().socket(zmq.DEALER)
        self._monitor: zmq.Socket[bytes] | None = None
        try:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.RECONNECT_IVL, -1)
            dealer.setsockopt(zmq.SNDHWM, _SENT_AT_ONCE)
            dealer.setsockopt(zmq.RCVHWM, _SENT_AT_ONCE)
            dealer.setsockopt(zmq.IPV6, int("[" in address))
            beat = round(heartbeat * 1000)
            dealer.setsockopt(zmq.HEARTBEAT_IVL, beat)
            dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, beat * 3)
            dealer.curve_serverkey = curve.server.encode()
            dealer.curve_publickey = curve.public.encode()
            dealer.curve_secretkey = curve.secret.encode()
            self._monitor = dealer.get_monitor_socket(_EVENTS)
            dealer.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise Broken(str(error)) from error

    def close(self) -> None:
        monitor, self._monitor = self._monitor, None
        if not self._socket.closed:
            try:
                self._socket.disable_monitor()
            finally:
                if monitor is not None:
                    monitor.close(0)
                self._socket.close(0)

    def send(self, frame: bytes) -> None:
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self._look()
            raise Broken(str(error)) from error

    def poll(self, seconds: float, bell: Source | None = None) -> bool:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        if bell is not None:
            poller.register(bell.fileno(), zmq.POLLIN)
        found = [source for source, _ in poller.poll(max(0, round(seconds * 1000 + 0.499)))]
        if self._socket in found:
            return True
        if self._monitor in found:
            self._look()
        return False

    def receive(self) -> bytes | None:
        try:
            return self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            raise Broken(str(error)) from error

    def _look(self) -> None:
        """Raise what the monitor has to say, if it has: a refusal of keys looks much like a network that broke."""
        reasons, refused = [], False
        monitor = self._monitor
        while monitor is not None and int(monitor.get(zmq.EVENTS)) & zmq.POLLIN:
            event = recv_monitor_message(monitor)["event"]
            if event == zmq.EVENT_CLOSED:
                reasons.append("connection refused")
            elif event == zmq.EVENT_DISCONNECTED:
                reasons.append("the connection broke")
            else:
                refused = True
                reasons.append("the handshake failed")
        if refused:
            theirs = greeting_mechanism(self._address, self._connect_timeout)
            if theirs == "CURVE":
                raise Denied(
                    f"the hub at {self._address} does not accept the keys of this connection; compare curve_server_key "
                    "with the hub's public key, and see whether the hub knows curve_public_key"
                )
            if theirs is not None:
                raise Denied(other_mechanism(self._address, encrypted=True))
        if reasons:
            raise Broken(", ".join(dict.fromkeys(reasons)))
