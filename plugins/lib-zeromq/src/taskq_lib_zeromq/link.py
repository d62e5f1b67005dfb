"""A connection to a hub that is made when it is needed, and again after it broke, in the same session.

The hub does not carry out a session's last request twice. A link is used by one thread at a time. Nothing here survives
a fork; owners check the process.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from taskq.errors import TaskQError
from taskq_lib_client.bell import Source
from taskq_lib_zeromq import protocol
from taskq_lib_zeromq.protocol import Answer, Failed, Refused, Reset, Welcome, decode_from_hub, encode
from taskq_lib_zeromq.stream import NO_HUB, Stream
from taskq_lib_zeromq.wire import Broken, Denied

if TYPE_CHECKING:
    from taskq_lib_zeromq.target import Target
    from taskq_lib_zeromq.wire import Wire


class Link:
    """One session with a hub, and the connection that it has at a time."""

    def __init__(self, target: Target, bell: Source | None = None) -> None:
        """``bell`` ends a ``poll``."""
        self.target = target
        self.session = uuid.uuid4().hex
        self.welcome: Welcome | None = None
        self._bell = bell
        self._wire: Wire | None = None
        self._n = 0

    # ------------------------------------------------------------------------------------------------ connecting

    @property
    def connected(self) -> bool:
        """Whether there is a connection; that it broke may show only when it is used."""
        return self._wire is not None

    def _stands(self) -> bool:
        """Whether the connection stands, as far as can be known without asking."""
        try:
            self.poll(0.0, wakes=False)
        except Broken:
            self.close()
            return False
        return True

    def connect(self, timeout: float | None = None) -> Welcome:
        """As ``_connect``, with another try where that has brought a hub to life."""
        try:
            return self._connect(timeout)
        except self.target.errors.failed:
            if self.target.revive is None or not self.target.revive():
                raise
            return self._connect(timeout)

    def _connect(self, timeout: float | None) -> Welcome:
        """Connect to the first address that answers, and say hello; what was connected is closed.

        Raises:
            The target's ``failed``, ``refused`` or ``mismatch``.
        """
        target = self.target
        problem: TaskQError | None = None
        count = len(target.addresses)
        wait = target.connect_timeout if timeout is None else min(timeout, target.connect_timeout)
        for step in range(count):
            index = (target.first[0] + step) % count
            address = target.addresses[index]
            try:
                self.welcome = self._greet(address, wait)
                target.first[0] = index
                return self.welcome
            except Denied as error:
                problem = target.errors.refused(str(error))
            except Broken as error:
                problem = target.errors.failed(
                    f"no hub answers at {address}: {error}; start one with `taskq zeromq hub`, or correct the URL"
                )
            except TaskQError as error:
                problem = error
        assert problem is not None
        raise problem

    def _greet(self, address: str, timeout: float) -> Welcome:
        self.close()
        end = time.monotonic() + timeout
        self._wire = self._open(address, timeout)
        try:
            self.say_hello()
            while (left := end - time.monotonic()) > 0:
                if not self.poll(left, wakes=False):
                    continue
                frame = self.receive()
                if isinstance(frame, Welcome):
                    return frame
                if isinstance(frame, Refused):
                    raise self.target.errors.mismatch(f"the hub at {address} refuses this client: {frame.text}")
            raise Broken(f"no answer within {timeout:g} s")
        except BaseException:
            self.close()
            raise

    def _open(self, address: str, timeout: float) -> Wire:
        target = self.target
        if target.curve is None:
            return Stream(address, connect_timeout=timeout, timeout=target.timeout, heartbeat=target.heartbeat)
        from taskq_lib_zeromq.curve import CurveSocket

        return CurveSocket(address, target.curve, connect_timeout=timeout, heartbeat=target.heartbeat)

    def say_hello(self) -> None:
        """Name the session on this connection. Raises: Broken."""
        self.send(encode(protocol.Hello(protocol.VERSION, self.session, f"pid {os.getpid()}")))

    def close(self) -> None:
        """Close the connection at once; what was not written yet is dropped."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    # ---------------------------------------------------------------------------------------------------- frames

    def send(self, data: bytes) -> None:
        """Send a frame. Raises: Broken: it may have been sent or not."""
        if self._wire is None:
            raise Broken("not connected")
        self._wire.send(data)

    def poll(self, seconds: float, *, wakes: bool = True) -> bool:
        """Wait until a frame is there (True), or the bell rings or the time has passed (False). Raises: Broken."""
        if self._wire is None:
            raise Broken("not connected")
        return self._wire.poll(seconds, self._bell if wakes else None)

    def receive(self) -> Any:
        """Return the next frame that is there, None where there is none. Raises: Broken."""
        if self._wire is None:
            raise Broken("not connected")
        data = self._wire.receive()
        if data is None:
            return None
        try:
            return decode_from_hub(data)
        except msgspec.MsgspecError as error:
            self.close()
            raise Broken(f"{NO_HUB} ({error})") from error

    # -------------------------------------------------------------------------------------------------- requests

    def number(self) -> int:
        """Return a new request number."""
        self._n += 1
        return self._n

    def request(self, make: Callable[[int], Any]) -> msgspec.Raw:
        """Carry out a request, over a new connection too if it must be; return the answer's value.

        Raises:
            The target's errors: ``failed`` where nothing was done, ``lost`` where that is not known.
        """
        n = self.number()
        data = encode(make(n))
        end = time.monotonic() + self.target.timeout
        epoch = None
        if not self._stands():
            self.connect()
        for again in (False, True):
            assert self.welcome is not None
            try:
                if again:
                    self._reconnect(end)
                    if self.welcome.epoch != epoch or not self.welcome.session_known:
                        raise Broken("another hub has taken its place")
                epoch = self.welcome.epoch
                self.send(data)
                return self._answer(n, data, end)
            except Broken as error:
                self.close()
                if again or time.monotonic() >= end:
                    raise self.target.errors.lost(
                        f"no answer from the hub {self.target.name} ({error}); it may have done what it was asked"
                    ) from error
        raise AssertionError

    def _reconnect(self, end: float) -> None:
        try:
            self.connect(max(0.05, end - time.monotonic()))
        except TaskQError as error:
            raise Broken(str(error)) from error

    def _answer(self, n: int, data: bytes, end: float) -> msgspec.Raw:
        while (left := end - time.monotonic()) > 0:
            if not self.poll(left, wakes=False):
                continue
            frame = self.receive()
            if type(frame) is Answer and frame.n == n:
                return frame.value
            if type(frame) is Failed and frame.n == n:
                raise self.failure(frame)
            if type(frame) is Reset:
                self.say_hello()
            elif type(frame) is Welcome:
                self.welcome = frame
                self.send(data)
        raise Broken(f"silence for {self.target.timeout:g} s")

    def lost(self, why: object) -> TaskQError:
        """Return the error of a connection that broke where none is waited for."""
        return self.target.errors.lost(f"the connection to the hub {self.target.name} broke: {why}")

    def failure(self, frame: Failed) -> TaskQError:
        """Return the error of an answer."""
        error = self.target.errors.full if frame.code == "full" else self.target.errors.wrong
        return error(f"the hub {self.target.name}: {frame.text}")


class Links:
    """Idle connections of one transport or store; each thread that asks something borrows one."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._idle: deque[Link] = deque()
        self._closed = False

    def open(self) -> Welcome:
        """Connect once, so that what is wrong is found."""
        self._closed = False
        link = Link(self._target)
        welcome = link.connect()
        self._idle.append(link)
        return welcome

    def request(self, make: Callable[[int], Any]) -> msgspec.Raw:
        """Carry out a request on a borrowed link. Raises: as ``Link.request``."""
        try:
            link = self._idle.pop()
        except IndexError:
            link = Link(self._target)
        try:
            return link.request(make)
        finally:
            if self._closed:
                link.close()
            else:
                self._idle.append(link)

    def close(self) -> None:
        """Close all that is idle; what is borrowed closes when it comes back."""
        self._closed = True
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return
