"""``taskq dead``: dead letters, without the application's code."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import click

from taskq import envelope
from taskq.cli.group import Context, shared_options
from taskq.cli.queues import queue_names
from taskq.dead import DeadLetter, DeadLetters
from taskq.errors import ConfigError, DecodeError

_queues = click.option(
    "-Q", "--queues", "names", metavar="NAME,…", help="Queues they died in; default: all that are named."
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def dead() -> None:
    """Look at, replay or purge dead letters.

    A message dies when its task failed for good, when it cannot be decoded, when no worker knows its task, or when it
    took its worker down too often. It is kept unchanged in QUEUE.dead.
    """


@dead.command("list")
@_queues
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="At most so many per queue.")
@_as_json
@shared_options
@click.pass_obj
def list_(context: Context, names: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, oldest first."""
    wanted = queue_names(context, names)
    found = [letter for queue in wanted for letter in _letters(context, queue).list(queue, limit=limit)]
    if as_json:
        click.echo(json.dumps([_entry(letter) for letter in found]))
        return
    if not found:
        click.echo(f"no dead letters in {', '.join(wanted)}")
        return
    for letter in found:
        info = letter.info
        died = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.died_at)) if info.died_at else "?"
        click.echo(f"{info.id}  {letter.queue}  {died}  {info.task or '?'}  {info.reason.splitlines()[0][:100]}")


@dead.command()
@click.argument("task_id")
@_queues
@_as_json
@shared_options
@click.pass_obj
def show(context: Context, task_id: str, names: str | None, as_json: bool) -> None:
    """Show one dead letter with its history and traceback. TASK_ID may be its beginning."""
    wanted = queue_names(context, names)
    for queue in wanted:
        letter = _letters(context, queue).find(queue, task_id)
        if letter is not None:
            break
    else:
        raise ConfigError(f"no dead letter (or several) with an id starting {task_id!r} in {', '.join(wanted)}")
    entry = {**_entry(letter), "message": _message(letter.payload)}
    if as_json:
        click.echo(json.dumps(entry, default=str))
        return
    for key, value in entry.items():
        if key == "traceback":
            continue
        click.echo(f"{key:12} {value if isinstance(value, str) else json.dumps(value, default=str)}")
    if letter.info.detail:
        click.echo("\n" + letter.info.detail)


@dead.command()
@click.argument("task_ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of the queues.")
@click.option("--task", metavar="NAME", help="Only of this task.")
@click.option("--to", metavar="QUEUE", help="Send to this queue; default: where each came from.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@_queues
@_as_json
@shared_options
@click.pass_obj
def replay(
    context: Context, task_ids: tuple[str, ...], every: bool, task: str | None, to: str | None, limit: int | None,
    names: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Send dead letters back to their queues, to run again."""
    wanted = _wanted(task_ids, every, task)
    counts: dict[str, int] = {}
    for queue in queue_names(context, names):
        left = None if limit is None else limit - sum(counts.values())
        if left is None or left > 0:
            counts[queue] = _letters(context, queue).replay(queue, wanted, to=to, limit=left)
    _report(counts, "replayed", as_json)


@dead.command()
@click.argument("task_ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of the queues.")
@click.option("--task", metavar="NAME", help="Only of this task.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@_queues
@_as_json
@shared_options
@click.pass_obj
def purge(
    context: Context,
    task_ids: tuple[str, ...],
    every: bool,
    task: str | None,
    force: bool,
    names: str | None,
    as_json: bool,
) -> None:
    """Throw dead letters away."""
    wanted = _wanted(task_ids, every, task)
    queues = queue_names(context, names)
    if not force:
        click.confirm(f"Throw away dead letters of {', '.join(queues)} for ever?", abort=True, err=True)
    _report({queue: _letters(context, queue).purge(queue, wanted) for queue in queues}, "removed", as_json)


def _letters(context: Context, queue: str) -> DeadLetters:
    find = context.app.components.transport_of
    return DeadLetters(find(queue), find)


def _wanted(task_ids: tuple[str, ...], every: bool, task: str | None) -> Callable[[DeadLetter], bool]:
    if not task_ids and not every and task is None:
        raise click.UsageError("Which ones? Give ids, --task NAME, or --all.")
    return lambda letter: (
        (not task_ids or any(letter.info.id.startswith(i) for i in task_ids))
        and (task is None or letter.info.task == task)
    )


def _report(counts: dict[str, int], verb: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(counts))
        return
    for queue, count in counts.items():
        click.echo(f"{queue}: {count} {verb}")


def _entry(letter: DeadLetter) -> dict[str, Any]:
    info = letter.info
    return {
        "id": info.id, "queue": letter.queue, "task": info.task, "state": info.state, "reason": info.reason,
        "died_at": info.died_at, "attempts": info.attempts, "deliveries": info.deliveries, "epoch": info.epoch,
        "worker": info.worker, "history": info.history, "size": len(letter.payload), "traceback": info.detail,
    }  # fmt: skip


def _message(payload: bytes) -> dict[str, Any]:
    """Return what can be shown of a message; the body only as text where it is text."""
    try:
        header, body = envelope.decode(payload)
    except DecodeError as error:
        return {"unreadable": str(error), "bytes": payload[:200].hex()}
    content = payload[body : body + 2000]
    return {
        "content_type": header.content_type,
        "enqueued_at": header.enqueued_at,
        "extra": {
            k: v if isinstance(v, str | int | float | list | dict) else repr(v) for k, v in (header.extra or {}).items()
        },
        "body": content.decode("utf-8", "replace"),
    }
