"""``taskq queues``, ``taskq purge`` and ``taskq maintain``."""

from __future__ import annotations

import json
from typing import Any

import click

from taskq.app import TaskQ
from taskq.cli.group import Context, shared_options
from taskq.errors import NotSupported
from taskq.message import QueueStats
from taskq.routing import DEAD_SUFFIX
from taskq.spi.store import SupportsStoreMaintenance
from taskq.spi.transport import SupportsMaintenance, SupportsPurge, SupportsStats


def queue_names(context: Context, given: str | None) -> list[str]:
    """Return the queues named on the command line, or all that application and settings name."""
    if given:
        return [name.strip() for name in given.split(",") if name.strip()]
    if context.app_path:
        context.app.import_tasks()
    return context.app.queue_names()


@click.command()
@click.option("-Q", "--queues", "names", metavar="NAME,…", help="Queues; default: all that the application names.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shared_options
@click.pass_obj
def queues(context: Context, names: str | None, as_json: bool) -> None:
    """Count ready, running, delayed and dead messages."""
    components = context.app.components
    wanted = queue_names(context, names)
    counts: dict[str, QueueStats] = {}
    for broker, own_queues in components.by_broker(wanted).items():
        transport = components.broker(broker)
        if not isinstance(transport, SupportsStats):
            raise NotSupported(f"{components.label(broker)} cannot count messages")
        counts |= transport.stats([*own_queues, *(name + DEAD_SUFFIX for name in own_queues)])
    rows = []
    for name in wanted:
        own, dead = counts.get(name), counts.get(name + DEAD_SUFFIX)
        rows.append({
            "queue": name, "ready": own.ready if own else 0, "in_flight": own.in_flight if own else 0,
            "delayed": own.delayed if own else 0, "oldest_s": own.oldest_age if own else None,
            "dead": dead.ready if dead else 0,
        })  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows))
        return
    click.echo(f"{'QUEUE':24} {'READY':>8} {'RUNNING':>8} {'DELAYED':>8} {'DEAD':>8}  OLDEST")
    for row in rows:
        oldest = row["oldest_s"]
        age = "-" if not isinstance(oldest, float) else f"{oldest:.1f} s"
        figures = " ".join(f"{'?' if row[k] is None else row[k]:>8}" for k in ("ready", "in_flight", "delayed", "dead"))
        click.echo(f"{row['queue']:24} {figures}  {age}")


@click.command()
@click.option("-Q", "--queues", "names", metavar="NAME,…", help="Queues; default: all that the application names.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shared_options
@click.pass_obj
def purge(context: Context, names: str | None, force: bool, as_json: bool) -> None:
    """Throw away waiting and delayed messages; what runs goes on."""
    wanted = queue_names(context, names)
    components = context.app.components
    brokers = components.by_broker(wanted)
    for broker in brokers:
        if not isinstance(components.broker(broker), SupportsPurge):
            raise NotSupported(f"{components.label(broker)} cannot empty a queue")
    if not force:
        where = " and ".join(map(components.label, brokers))
        click.confirm(f"Throw away all messages of {', '.join(wanted)} on {where}?", abort=True, err=True)
    counts: dict[str, int] = {}
    for broker, own_queues in brokers.items():
        transport: Any = components.broker(broker)
        counts |= transport.purge(own_queues)
    if as_json:
        click.echo(json.dumps(counts))
        return
    for name in wanted:
        click.echo(f"{name}: {counts.get(name, 0)} removed")


@click.command()
@shared_options
@click.pass_obj
def maintain(context: Context) -> None:
    """Reap dead workers' messages, promote delayed ones, sweep expired results, until nothing is due."""
    app: TaskQ = context.app
    parts: list[tuple[str, Any]] = [("broker", app.transport)]
    parts += [(f"broker {name}", app.components.broker(name)) for name in app.settings.brokers]
    parts.append(("result store", app.store))
    for label, part in parts:
        if not isinstance(part, SupportsMaintenance | SupportsStoreMaintenance):
            click.echo(f"{label}: nothing to maintain")
            continue
        rounds = 0
        while part.maintain(1.0) <= 0 and rounds < 10_000:
            rounds += 1
        click.echo(f"{label}: done")
