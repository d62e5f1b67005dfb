"""A hub's socket with encryption: a ROUTER of libzmq."""

from __future__ import annotations

from collections.abc import Sequence

import zmq
import zmq.utils.z85

from taskq.errors import ConfigError
from taskq_lib_zeromq.hub.door import AddressInUse, Unreachable

_SLICE_MS = 100
"""Longest single wait for a request, after which a wake is noticed."""


class Router:
    """Listens with CURVE.

    Raises:
        AddressInUse: one of the addresses is not to be had.
        ConfigError: the key is none.
    """

    def __init__(
        self, bind: Sequence[str], *, max_bytes: int, heartbeat: float, secret_key: str, clients: frozenset[str] | None
    ) -> None:
        self.addresses: list[str] = []
        self.strange = 0
        self._clients = clients
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._zap: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()
        self._slice = -1
        try:
            self._encrypt(secret_key)
            self._bind(bind, max_bytes, heartbeat)
        except BaseException:
            self.close()
            raise

    def _encrypt(self, secret_key: str) -> None:
        router = self._router
        try:
            zmq.curve_public(secret_key.encode())
            router.curve_secretkey = secret_key.encode()
        except (zmq.ZMQError, ValueError, UnicodeEncodeError) as error:
            raise ConfigError("the hub's secret key is no CURVE key; `taskq zeromq keys` makes a pair") from error
        router.curve_server = True
        if self._clients is not None:
            self._zap = self._context.socket(zmq.REP)
            self._zap.bind("inproc://zeromq.zap.01")
            router.zap_domain = b"taskq"
            self._poller.register(router, zmq.POLLIN)
            self._poller.register(self._zap, zmq.POLLIN)

    def _bind(self, bind: Sequence[str], max_bytes: int, heartbeat: float) -> None:
        router = self._router
        router.setsockopt(zmq.LINGER, 200)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.SNDHWM, 100_000)
        router.setsockopt(zmq.RCVHWM, 10_000)
        router.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        beat = round(heartbeat * 1000)
        router.setsockopt(zmq.HEARTBEAT_IVL, beat)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, beat * 3)
        for address in bind:
            if "[" in address:
                router.setsockopt(zmq.IPV6, 1)
            try:
                router.bind(address)
            except zmq.ZMQError as error:
                raise AddressInUse(address, error) from error
            self.addresses.append(router.getsockopt(zmq.LAST_ENDPOINT).decode().rstrip("\0"))  # type: ignore[union-attr]

    def receive(self, seconds: float) -> tuple[bytes, bytes] | None:
        patience = min(max(0, round(seconds * 1000 + 0.499)), _SLICE_MS)
        if self._zap is not None:
            if any(source is self._zap for source, _ in self._poller.poll(patience)):
                self._authenticate(self._zap)
            patience = 0
        if patience != self._slice:
            self._router.setsockopt(zmq.RCVTIMEO, patience)
            self._slice = patience
        try:
            frames = self._router.recv_multipart()
        except zmq.Again:
            return None
        if len(frames) == 2:
            return frames[0], frames[1]
        self.strange += 1
        return None

    def send(self, connection: bytes, frame: bytes) -> None:
        try:
            self._router.send(connection, zmq.SNDMORE | zmq.NOBLOCK)
            self._router.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise Unreachable from error

    def _authenticate(self, zap: zmq.Socket[bytes]) -> None:
        """Answer who asks whether a client's key is known (ZeroMQ's RFC 27)."""
        frames = zap.recv_multipart()
        known = False
        if len(frames) >= 7 and frames[5] == b"CURVE" and self._clients is not None:
            known = zmq.utils.z85.encode(frames[6]).decode() in self._clients
        code, text = (b"200", b"OK") if known else (b"400", b"unknown key")
        zap.send_multipart([b"1.0", frames[1], code, text, b"", b""])

    def sweep(self) -> None:
        """Do nothing: libzmq gives up what does not shake hands."""

    def wake(self) -> None:
        """Do nothing: no wait is long."""

    def close(self) -> None:
        self._router.close()
        if self._zap is not None:
            self._zap.close(0)
        self._context.term()
