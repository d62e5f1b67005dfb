"""``taskq health``: a probe for containers and scripts."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from typing import Any

import click

from taskq.cli.group import Context, shared_options
from taskq.errors import ConfigError
from taskq_contrib_health.options import HealthOptions, parse


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@click.command()
@click.option("--address", metavar="HOST:PORT", help="Where the worker answers; default: extensions.health.address.")
@click.option("--name", "-n", metavar="NAME", help="The worker's name, where its address has {name}.")
@click.option("--live", "what", flag_value="live", help="Ask whether it is alive: no restart would help.")
@click.option("--ready", "what", flag_value="ready", default="ready", help="Ask whether it gets on with its work.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(min=0.1), default=3.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print all that the worker tells, as JSON.")
@shared_options
@click.pass_obj
def health(
    context: Context, /, address: str | None, name: str | None, what: str, timeout: float, as_json: bool, **_: Any
) -> None:
    """Ask a worker on this machine how it is; exit with 0 if well, 1 if not, or if it does not answer."""
    given = address or context.config.plugin_options("extension", "health", HealthOptions).address
    if given is None:
        raise ConfigError("say where the worker answers: --address, or extensions.health.address in the configuration")
    try:
        status, body = _ask(parse(given, name), "/health" if as_json else f"/{what}", timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        click.echo(f"no worker answers on {given}: {error}", err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(body))
        sys.exit(0 if body.get(what) else 1)
    reasons = "; ".join(body.get("reasons", ()))
    click.echo(f"{what}" if status == 200 else f"not {what}: {reasons}")
    sys.exit(0 if status == 200 else 1)


def _ask(where: tuple[str, int] | str, path: str, timeout: float) -> tuple[int, Any]:
    connection: http.client.HTTPConnection
    if isinstance(where, str):
        connection = _UnixConnection(where, timeout)
    else:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(where[0], where[0])  # noqa: S104  what it listens on
        connection = http.client.HTTPConnection(host, where[1], timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
