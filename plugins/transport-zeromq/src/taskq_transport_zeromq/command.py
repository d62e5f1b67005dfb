"""The command ``taskq zeromq``: runs a hub, makes keys."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import click


@click.group()
def command() -> None:
    """Run a ZeroMQ hub, or make keys for it."""


@command.command()
@click.option("--bind", multiple=True, help="Address, such as tcp://0.0.0.0:7311 or ipc:///run/taskq; may be repeated.")
@click.option("--journal", type=click.Path(dir_okay=False), help="File that makes the hub durable.")
@click.option(
    "--result-bytes", type=click.IntRange(min=1), default=256 << 20, show_default=True, help="Cap of results."
)
@click.option("--results-full", type=click.Choice(["evict", "refuse"]), default="evict", show_default=True,
              help="At the cap: drop the oldest results, or take no more.")  # fmt: skip
@click.option("--max-message-bytes", type=click.IntRange(min=1), default=32 << 20, show_default=True,
              help="Largest message or result.")  # fmt: skip
@click.option("--heartbeat", type=click.FloatRange(min=0.1), default=5.0, show_default=True,
              help="Seconds between looks at idle connections.")  # fmt: skip
@click.option("--secret-key-file", type=click.Path(exists=True, dir_okay=False),
              help="File with the hub's secret key; connections are encrypted then.")  # fmt: skip
@click.option("--client-keys-file", type=click.Path(exists=True, dir_okay=False),
              help="File with the public keys that may connect; else all who know the hub's may.")  # fmt: skip
@click.option("--log-level", default="INFO", show_default=True)
def hub(
    bind: tuple[str, ...], journal: str | None, result_bytes: int, results_full: str, max_message_bytes: int,
    heartbeat: float, secret_key_file: str | None, client_keys_file: str | None, log_level: str,
) -> None:  # fmt: skip
    """Run a hub until INT or TERM."""
    from taskq.errors import TaskQError
    from taskq_lib_zeromq.hub import Hub, HubOptions

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options: dict[str, Any] = {"bind": bind} if bind else {}
    if secret_key_file is not None:
        options["curve_secret_key"] = Path(secret_key_file).read_text("ascii").strip()
    if client_keys_file is not None:
        lines = Path(client_keys_file).read_text("ascii").splitlines()
        options["client_keys"] = frozenset(line.strip() for line in lines if line.strip() and line[0] != "#")
    try:
        server = Hub(HubOptions(
            journal=journal, result_bytes=result_bytes, results_full=results_full,
            max_message_bytes=max_message_bytes, heartbeat=heartbeat, **options,
        ))  # fmt: skip
    except TaskQError as error:
        raise click.ClickException(str(error)) from error
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    click.echo(f"listening at {' '.join(server.addresses)}")
    server.run()


@command.command()
@click.argument("file", type=click.Path(dir_okay=False))
def keys(file: str) -> None:
    """Write a new secret key to FILE, readable by its owner only, and print its public key."""
    import os

    import zmq

    public, secret = zmq.curve_keypair()
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from error
    with open(descriptor, "wb") as written:
        written.write(secret + b"\n")
    click.echo(public.decode())
