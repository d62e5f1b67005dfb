"""``taskq beat``."""

from __future__ import annotations

import signal

import click

from taskq.cli.group import Context, shared_options
from taskq.logs import set_up_logging


class _Stop(BaseException):
    """Ends a wait in the scheduler from a signal handler."""


def _raise(number: int, frame: object) -> None:
    raise _Stop


@click.command()
@shared_options
@click.pass_obj
def beat(context: Context) -> None:
    """Send the tasks of the setting `schedules` when they are due, until TERM or INT."""
    from taskq.beat import Beat

    app = context.named_app
    set_up_logging(app)
    running = Beat(app)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise)
    try:
        running.run()
    except _Stop:
        pass
    finally:
        app.close()
