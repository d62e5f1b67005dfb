"""Virtual hosts for tests, and a RabbitMQ of a test's own, to be killed, restarted and starved."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import SplitResult, parse_qs, quote, urlsplit

import pytest

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


class OnRabbit:
    """What the conformance kits need to know, for the transport and the store alike; mix it into a suite."""

    scheme = "amqp"
    patience_s = 15.0  # a quorum queue on a busy machine takes seconds to be made
    fault_options: ClassVar[dict[str, Any]] = {"timeout": 1.0, "connect_timeout": 1.0, "heartbeat": 1}

    @pytest.fixture
    def url(self, rabbitmq_url: str) -> str:
        return rabbitmq_url

    def server_keys(self, url: str) -> set[str] | None:
        server = os.environ.get(RabbitMQ.variable(), "")
        return names(server, url) if "management" in server else None


class OwnRabbit(RabbitMQ):
    """A broker of a test's own; what it has survives a restart on the same port."""

    managed = False  # it starts sooner

    def __enter__(self) -> Self:
        self.data = Path(tempfile.mkdtemp(prefix="taskq-rabbitmq-data-"))  # its guard removes the other folder
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)

    def end(self, number: signal.Signals) -> None:
        """End it in good order (TERM), or as a power cut would (KILL); ``again`` starts it."""
        os.kill(int((self.data / f"{self.node}.pid").read_text()), number)
        assert self.guard is not None
        assert self.guard.stdin is not None
        self.guard.wait(30)
        self.guard.stdin.close()

    def again(self) -> None:
        """Start it with the data that it had."""
        self.folder.mkdir(exist_ok=True)
        self.start()

    def control(self, *arguments: str) -> None:
        """Run rabbitmqctl."""
        self.tool("env", *self.environment(), str(self.program()).replace("rabbitmq-server", "rabbitmqctl"), *arguments)
