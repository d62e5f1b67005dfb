"""Hook implementations: readiness, status and watchdog by systemd's notification socket.

The protocol is one datagram of ``NAME=VALUE`` lines to the socket that ``NOTIFY_SOCKET`` names (sd_notify(3)). Nothing
happens where the variable is not set.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import Any

from taskq.errors import WorkerError
from taskq.spi import hookimpl

logger = logging.getLogger("taskq.systemd")
_stops: dict[int, threading.Event] = {}


def notify(**values: str) -> bool:
    """Tell the service manager; return whether there is one and it could be told."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    message = "\n".join(f"{name}={value}" for name, value in values.items()).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.sendall(message)
    except OSError as error:
        logger.warning("the service manager cannot be told %s: %s", ", ".join(values), error)
        return False
    return True


def watchdog_s() -> float | None:
    """Return the seconds between two signs of life, None where nobody waits for them (sd_watchdog_enabled(3))."""
    try:
        limit = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
        mine = int(os.environ.get("WATCHDOG_PID", os.getpid())) == os.getpid()
    except ValueError:
        return None
    return limit / 3 if limit > 0 and mine else None


@hookimpl
def taskq_worker_ready(worker: Any) -> None:
    """Say that the service is up, and from now on that it lives, as long as its health says so."""
    if not notify(READY="1", STATUS=f"worker {worker.name} takes messages"):
        return
    pause = watchdog_s()
    if pause is not None:
        stop = _stops[id(worker)] = threading.Event()
        threading.Thread(target=_watch, args=(worker, pause, stop), name="taskq-systemd", daemon=True).start()


@hookimpl
def taskq_worker_stopping(worker: Any) -> None:
    """Say that the service ends, or that it starts anew: what says that it ends is killed if it does not."""
    status = f"worker {worker.name} finishes what runs"
    if worker.restart_wanted:
        notify(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000), STATUS=f"{status}, and starts anew")
    else:
        notify(STOPPING="1", STATUS=status)


@hookimpl
def taskq_worker_stopped(worker: Any) -> None:
    """Stop the signs of life."""
    stop = _stops.pop(id(worker), None)
    if stop is not None:
        stop.set()


def _watch(worker: Any, pause: float, stop: threading.Event) -> None:
    while not stop.wait(pause):
        try:
            health = worker.health()
        except WorkerError:
            continue
        if not health.live:
            logger.error("no sign of life for the watchdog: %s", "; ".join(health.reasons))
            continue
        state = "" if health.ready else "; not ready: " + "; ".join(health.reasons)
        notify(WATCHDOG="1", STATUS=f"worker {health.worker}: {health.ended} ended, {health.held} held{state}")
