"""``taskq call`` and ``taskq result``."""

from __future__ import annotations

import datetime as dt
import difflib
import json
from typing import Any

import click

from taskq.cli.group import Context, shared_options
from taskq.errors import ConfigError, TaskTimeout
from taskq.states import SUCCESS


@click.command()
@click.argument("name")
@click.option("-a", "--args", "args_json", metavar="JSON", default="[]", help="Positional arguments, as '[1, 2]'.")
@click.option("-k", "--kwargs", "kwargs_json", metavar="JSON", default="{}", help="Keyword arguments, as '{\"x\": 1}'.")
@click.option("-q", "--queue", help="Queue to send to.")
@click.option("--countdown", type=float, metavar="SECONDS", help="Earliest start, from now.")
@click.option("--eta", metavar="ISO", help="Earliest start, as 2030-01-31T12:00:00+00:00.")
@click.option("--expires", type=float, metavar="SECONDS", help="Latest start, from now.")
@click.option("--priority", type=click.IntRange(0, 9), help="0-9, higher first.")
@click.option("--task-id", help="The task's id; default: a new one.")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait for the result and print it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shared_options
@click.pass_obj
def call(
    context: Context, /, name: str, args_json: str, kwargs_json: str, eta: str | None, wait: float | None,
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Send task NAME; print its id."""
    args, kwargs = _json(args_json, list, "--args"), _json(kwargs_json, dict, "--kwargs")
    given = {k: v for k, v in options.items() if v is not None}
    if eta is not None:
        try:
            given["eta"] = dt.datetime.fromisoformat(eta)
        except ValueError as error:
            raise click.BadParameter(f"{eta!r} is not an ISO time: {error}", param_hint="--eta") from error
    app = context.app
    if context.app_path:
        app.import_tasks()
        if name not in app.tasks:
            near = difflib.get_close_matches(name, list(app.tasks), 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            click.echo(f"warning: {context.app_path} knows no task {name!r}{hint} It is sent all the same.", err=True)
    sent = app.send_task(name, args, kwargs, **given)
    if wait is None:
        click.echo(json.dumps({"id": sent.id}) if as_json else sent.id)
        return
    _print_result(context, sent, wait, as_json, False)


@click.command()
@click.argument("task_id")
@click.option("--wait", type=float, metavar="SECONDS", default=0.0, help="Wait for the task to end.")
@click.option("--traceback", is_flag=True, help="Show a failure's traceback.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shared_options
@click.pass_obj
def result(context: Context, task_id: str, wait: float, traceback: bool, as_json: bool) -> None:
    """Show the state and result of the task TASK_ID. The exit code is 1 unless it succeeded."""
    if context.app_path:
        context.app.import_tasks()
    _print_result(context, context.app.AsyncResult(task_id), wait, as_json, traceback)


def _json(text: str, kind: type, option: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint=option) from error
    if not isinstance(value, kind):
        raise click.BadParameter(f"must be a JSON {'array' if kind is list else 'object'}", param_hint=option)
    return value


def _print_result(context: Context, sent: Any, wait: float, as_json: bool, traceback: bool) -> None:
    value: Any = None
    try:
        value = sent.get(timeout=wait, propagate=False) if wait else sent.result
    except TaskTimeout as error:
        raise ConfigError(str(error)) from error
    state = sent.state
    failed = isinstance(value, BaseException)
    text = f"{type(value).__name__}: {value}" if failed else value
    if as_json:
        entry = {"id": sent.id, "state": state, "result": None if failed else value, "error": text if failed else None}
        click.echo(json.dumps({**entry, "traceback": sent.traceback if failed else None}, default=str))
    else:
        click.echo(
            state if value is None and state != SUCCESS else f"{state}: {text!r}" if not failed else f"{state}: {text}"
        )
        if traceback and sent.traceback:
            click.echo(sent.traceback)
    if state != SUCCESS:
        click.get_current_context().exit(1)
