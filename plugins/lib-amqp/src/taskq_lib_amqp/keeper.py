"""The thread that keeps connections alive while nobody waits on them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from taskq.errors import TaskQError
from taskq_lib_amqp.link import Link

logger = logging.getLogger("taskq.amqp")


class Keeper:
    """The thread that keeps links alive: it sends heartbeats and reads what nobody waits for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._links: dict[Link, Callable[[], bool] | None] = {}
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, link: Link, tick: Callable[[], bool] | None = None) -> None:
        """Look after a link; ``tick`` is called a few times a second and says whether to come again soon."""
        with self._guard:
            self._links[link] = tick
            if self._thread is None:
                self._stop = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(self._stop,), name=self._name, daemon=True)
                self._thread.start()

    def remove(self, link: Link) -> None:
        """Look after it no more."""
        with self._guard:
            self._links.pop(link, None)

    def close(self, timeout: float = 2.0) -> None:
        """End the thread."""
        with self._guard:
            thread, self._thread = self._thread, None
            self._stop.set()
            self._links.clear()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self, stop: threading.Event) -> None:
        pause = 0.1
        while not stop.wait(pause):
            with self._guard:
                links = list(self._links.items())
            pause = 0.5
            for link, tick in links:
                link.read_now()
                link.beat()
                if link.heartbeat:
                    pause = min(pause, link.heartbeat / 4)
                try:
                    if tick is not None and tick():
                        pause = min(pause, 0.1)
                except TaskQError:
                    continue  # the owner finds out
                except Exception:
                    logger.exception("looking after the connection to %s failed; it goes on", link.name)
