"""A hub inside a process of the application: whoever comes first runs it, the others connect."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from typing import Protocol

from taskq.errors import ConfigError
from taskq_lib_zeromq.target import Target

logger = logging.getLogger("taskq.zeromq.hub")


class EmbedOptions(Protocol):
    """The options that an embedded hub takes from a transport's."""

    @property
    def journal(self) -> str: ...
    @property
    def heartbeat(self) -> float: ...


class Embedded:
    """This process's part in running the hub of one address. Transports of one process share it."""

    def __init__(self, target: Target, journal: str, heartbeat: float) -> None:
        self._address = target.addresses[0]
        self._journal = journal
        self._heartbeat = heartbeat
        self._users = 0
        self._hub: object | None = None
        self._lock = threading.Lock()

    def reviving(self, target: Target) -> Target:
        """Return a target that comes back here when nobody runs the hub."""
        return dataclasses.replace(target, revive=self._revive)

    def start(self) -> None:
        """Run the hub here, where nobody runs it yet; released by ``release``. Raises: ConfigError."""
        with self._lock:
            self._users += 1
        self._revive()

    def _revive(self) -> bool:
        """Run the hub where nobody does any more; whether it runs here now."""
        from taskq_lib_zeromq.hub import AddressInUse, HubOptions, HubThread

        with self._lock:
            if self._hub is not None or not self._users:
                return self._hub is not None
            options = HubOptions(bind=(self._address,), journal=self._journal or None, heartbeat=self._heartbeat)
            try:
                self._hub = HubThread(options)
            except AddressInUse:
                return False  # another process was first
            logger.info("this process runs the hub at %s", self._address)
            return True

    def release(self) -> None:
        """Stop the hub with its last user here."""
        from taskq_lib_zeromq.hub import HubThread

        with self._lock:
            self._users -= 1
            if self._users or not isinstance(self._hub, HubThread):
                return
            hub, self._hub = self._hub, None
        hub.stop()


_embedded: dict[tuple[int, str], Embedded] = {}
_lock = threading.Lock()


def embedded(target: Target, options: EmbedOptions) -> Embedded:
    """Return this process's embedded hub of an address. Raises: ConfigError."""
    if len(target.addresses) != 1 or target.curve is not None:
        raise ConfigError("hub=embed is for one address without encryption; run `taskq zeromq hub` for anything more")
    key = (os.getpid(), target.addresses[0])
    with _lock:
        found = _embedded.get(key)
        if found is None:
            found = _embedded[key] = Embedded(target, options.journal, options.heartbeat)
        return found
