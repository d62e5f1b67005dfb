"""Hearing what is broadcast, by the server's publish and subscribe."""

from __future__ import annotations

import time

from taskq.errors import TransportError
from taskq_lib_redis.connection import RedisLink, ServerError, Target


class Listener:
    """One channel, heard from the first ``listen`` on; for one thread."""

    def __init__(self, target: Target, channel: str) -> None:
        self._target = target
        self._channel = channel
        self._link = RedisLink(target)

    def listen(self, wait: float) -> list[bytes]:
        """Return what was said since the last call, waiting up to ``wait`` seconds for something.

        Raises:
            TransportError: the connection broke; what was said until the next call is missed.
        """
        link = self._link
        heard: list[bytes] = []
        end = time.monotonic() + wait
        try:
            if not link.connected:
                link.call(b"SUBSCRIBE", self._channel)
            while link.readable(0.0 if heard else end - time.monotonic()):
                kind, _, payload = link.receive()
                if kind == b"message":
                    heard.append(payload)
        except ServerError as error:
            link.close()
            raise TransportError(f"{self._target.name} refused to let us listen: {error}") from error
        return heard

    def close(self) -> None:
        """Stop hearing."""
        self._link.close()
