"""``taskq worker``."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from taskq.cli.group import Context, shared_options
from taskq.errors import ConfigError
from taskq.logs import set_up_logging


@click.command()
@click.option("-Q", "--queues", metavar="NAME,…", help="Queues to serve; default: all that the application names.")
@click.option("-c", "--concurrency", metavar="N", type=click.IntRange(min=1), help="Tasks at a time.")
@click.option("-P", "--pool", metavar="NAME", help="auto, NAME or NAME=SLOTS,… (taskq plugins list --kind pool).")
@click.option("-l", "--log-level", "--loglevel", metavar="LEVEL", help="DEBUG, INFO, WARNING, ERROR or CRITICAL.")
@click.option("-n", "--name", metavar="NAME", help="Name in logs.")
@click.option("--grace", metavar="SECONDS", type=click.FloatRange(min=0), help="Time for running tasks after TERM.")
@click.option("--prefetch", metavar="N", type=click.IntRange(min=1), help="Most messages held at once.")
@click.option("--autoscale", metavar="MIN,MAX", help="Let the autoscaler choose the concurrency.")
@click.option("--queue-order", type=click.Choice(["fair", "strict", "weighted"]), help="How queues share the worker.")
@click.option("-I", "--include", metavar="MODULE,…", help="Modules to import for their tasks.")
@click.option("--reload", is_flag=True, help="Restart when code changes (the command reload, of a contribution).")
@shared_options
@click.pass_obj
def worker(context: Context, /, **options: Any) -> None:
    """Take messages and run their tasks, until TERM or INT.

    The first TERM or INT lets running tasks finish within the grace, a second one interrupts them, QUIT ends at once.
    HUP stops it likewise and starts it anew with new code and configuration; USR1 logs what runs where, with stacks.

    It exits with 0 when all work has ended, 1 when it could not go on, 3 when tasks were interrupted and handed back,
    4 after QUIT.
    """
    if os.getpid() == 1:
        from taskq.cli.init import run_below

        run_below()
    if options.pop("reload"):
        _hand_over("reload")
    _settings(context, options)
    _patch(context)
    app = context.named_app
    if app.settings.broker[0].scheme == "memory":
        raise ConfigError(
            "a worker process cannot serve memory://: nobody outside this process could reach it. "
            "Use app.worker().start() in the program that sends, or another broker"
        )
    set_up_logging(app)
    running = app.worker()
    code = running.run()
    app.close()
    if running.restart_wanted:
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  the very command that runs
    sys.exit(code)


def _hand_over(command: str) -> None:
    """Become another command with the same options.

    Raises:
        ConfigError: no installed distribution offers it.
    """
    from taskq._plugins import PluginManager

    if all(record.name != command for record in PluginManager().commands()):
        raise ConfigError(f"--{command} needs the command `taskq {command}`; install taskq-contrib-supervise")
    arguments = [a for a in sys.orig_argv[1:] if a != f"--{command}"]
    arguments[arguments.index("worker")] = command
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606  the same program


def _patch(context: Context) -> None:
    """Let the pool patch the process, if it is one that does; the application must not have been imported by then.

    Hence it must be named on the command line, in the environment or in a file, not in the application's code.
    """
    from taskq._plugins import PluginManager
    from taskq.config import load

    settings = load(config_file=context.config_file, cli=context.settings).settings
    chosen = settings.plugins
    plugins = PluginManager(blocked=chosen.blocked, only=chosen.only, choose=dict(chosen.choose))
    for part in settings.worker.pool.split(","):
        name = part.partition("=")[0].strip()
        if name and name != "auto":
            patch = plugins.select("pool", name).patch
            if patch is not None:
                patch()


def _settings(context: Context, options: dict[str, Any]) -> None:
    from taskq.config import Given, Origin

    for name, value in options.items():
        if value is None:
            continue
        setting = "include" if name == "include" else f"worker.{name}"
        if name in ("queues", "include"):
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif name == "log_level":
            value = value.upper()
        context.settings[setting] = Given(value, Origin("command line", f"--{name.replace('_', '-')}"))
