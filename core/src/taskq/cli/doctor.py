"""``taskq doctor``: would a fresh worker be able to serve this application?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import click

from taskq.app import TaskQ
from taskq.cli.group import Context, shared_options
from taskq.errors import TaskQError

Check = tuple[str, Callable[[], str | None]]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shared_options
@click.pass_obj
def doctor(context: Context, as_json: bool) -> None:
    """Check configuration, plugins, broker, result store, and that a fresh process knows every task."""
    app = context.app
    checks: list[Check] = [
        ("configuration", lambda: _made(app.config)),
        ("tasks", lambda: _tasks(context)),
        ("broker", lambda: _made(app.transport)),
        *((f"broker {name}", partial(_reached, app, name)) for name in app.settings.brokers),
        ("result store", lambda: "off: AsyncResult.get() will refuse" if app.store is None else None),
        ("serializer", lambda: _made(app.codec.serializer(app.settings.serializer))),
    ]
    results = []
    try:
        checks += app.plugins.doctor_checks(app)
    except TaskQError as error:
        results.append({"check": "contributions", "problem": str(error)})
    for name, check in checks:
        try:
            problem = check()
        except TaskQError as error:
            problem = str(error)
        results.append({"check": name, "problem": problem or ""})
    if as_json:
        click.echo(json.dumps(results))
    else:
        for row in results:
            mark = click.style("ok", fg="green") if not row["problem"] else click.style("problem", fg="red")
            click.echo(f"{row['check']:16} {mark}  {row['problem']}")
    if any(row["problem"] for row in results):
        click.get_current_context().exit(1)


def _made(part: object) -> None:
    """Say nothing is wrong: what could be wrong was raised while the part was made."""


def _reached(app: TaskQ, broker: str) -> None:
    app.components.broker(broker)


def _tasks(context: Context) -> str | None:
    """Import the application in a fresh process, as a worker would, and compare the tasks."""
    if not context.app_path:
        return "no application named; use -A module[:attribute]"
    app = context.app
    app.import_tasks()
    code = (
        "import sys, json; from taskq.cli.group import load_app; a = load_app(sys.argv[1]); a.import_tasks(); "
        "print(json.dumps(sorted(a.tasks)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, context.app_path], capture_output=True, text=True, timeout=60, check=False
    )
    if run.returncode != 0:
        return f"a fresh process cannot import the application: {run.stderr.strip().splitlines()[-1:]}"
    missing = sorted(set(app.tasks) - set(json.loads(run.stdout.strip().splitlines()[-1])))
    return f"a fresh worker would not know: {', '.join(missing)}; add their modules to `include`" if missing else None
