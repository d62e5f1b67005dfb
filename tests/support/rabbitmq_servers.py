"""Virtual hosts for tests, and a RabbitMQ of a test's own, to be killed, restarted and starved."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any, Self
from urllib.parse import SplitResult, parse_qs, quote, urlsplit

from tests.support.servers import RabbitMQ


def ask(server: str, method: str, path: str, body: Any = None) -> Any:
    """Ask the management plugin of the server of this URL; it stands in the query, ?management=PORT."""
    url: SplitResult = urlsplit(server)
    port = parse_qs(url.query)["management"][0]
    request = urllib.request.Request(
        f"http://{url.hostname}:{port}/api/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": "Basic " + base64.b64encode(f"{url.username}:{url.password}".encode()).decode(),
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


@contextlib.contextmanager
def fresh_vhost(server: str) -> Iterator[str]:
    """Make a virtual host, yield the broker's URL with it, drop it with all that is in it."""
    url = urlsplit(server)
    if "management" not in url.query:  # somebody's own server without the plugin: its virtual host as it is
        yield server
        return
    name = f"taskq-{uuid.uuid4().hex[:12]}"
    ask(server, "PUT", f"vhosts/{name}")
    ask(server, "PUT", f"permissions/{name}/{url.username}", {"configure": ".*", "write": ".*", "read": ".*"})
    try:
        yield url._replace(path=f"/{name}", query="").geturl()
    finally:
        ask(server, "DELETE", f"vhosts/{name}")


def names(server: str, url: str) -> set[str]:
    """All queues and exchanges of a virtual host, but those of the server itself."""
    vhost = quote(urlsplit(url).path[1:], safe="")
    found = {row["name"] for row in ask(server, "GET", f"queues/{vhost}?columns=name")}
    return found | {
        row["name"]
        for row in ask(server, "GET", f"exchanges/{vhost}?columns=name")
        if row["name"][:4] not in ("", "amq.")
    }


class OwnRabbit(RabbitMQ):
    """A broker of a test's own; its messages survive a restart on the same port."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The Erlang machine's."""
        return int((self.folder / f"{self.node}.pid").read_text())

    def kill(self) -> None:
        """End it as a power cut would; `again` starts it."""
        os.kill(self.pid, signal.SIGKILL)
        self._gone()

    def terminate(self) -> None:
        """End it in good order; `again` starts it."""
        os.kill(self.pid, signal.SIGTERM)
        self._gone()

    def _gone(self) -> None:
        assert self.guard is not None
        self.guard.wait(30)
        self.guard = None

    def again(self) -> None:
        """Start it with the data that it had."""
        self.keep = True
        self.start()

    def control(self, *arguments: str) -> None:
        """Run rabbitmqctl."""
        self.tool("env", *self.environment(), str(self.program()).replace("rabbitmq-server", "rabbitmqctl"), *arguments)

    def await_alarm(self, on: bool) -> None:
        """Wait until the memory alarm is as it should be."""
        deadline = time.monotonic() + 10
        while ask(self.url(), "GET", "nodes?columns=mem_alarm")[0]["mem_alarm"] is not on:
            assert time.monotonic() < deadline
            time.sleep(0.1)
