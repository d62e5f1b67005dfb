"""Signal handlers in a process of greenlets."""

from __future__ import annotations

import atexit
import signal
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

Handler = Callable[[int, Any], Any]


def handle_on_greenlets(in_hub: Callable[[], bool], spawn: Callable[[Callable[[], None]], Any]) -> None:
    """Have handlers that are installed from now on run on a greenlet.

    Python runs a handler wherever the main thread is, which may be the hub; there it could wait for nothing, not even
    for a lock or for a thread to start.
    """
    due: deque[tuple[Handler, int]] = deque()
    here, there = socket.socketpair()
    there.setblocking(False)
    atexit.register(here.close)
    atexit.register(there.close)
    install = signal.signal

    def run() -> None:
        while here.recv(64):
            while due:
                handler, number = due.popleft()
                handler(number, None)

    def install_deferred(number: Any, handler: Any) -> Any:
        if not callable(handler) or handler is signal.default_int_handler:
            return install(number, handler)

        def handle(number: int, frame: Any) -> None:
            if not in_hub():
                handler(number, frame)
                return
            due.append((handler, number))
            try:
                there.send(b"x")  # also wakes a hub that sleeps
            except BlockingIOError:
                pass  # it has been woken many times

        return install(number, handle)

    signal.signal = install_deferred  # type: ignore[assignment]
    spawn(run)


__all__ = ["handle_on_greenlets"]
