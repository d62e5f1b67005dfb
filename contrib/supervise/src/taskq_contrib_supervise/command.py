"""The commands ``taskq multi`` and ``taskq reload``."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from taskq.cli.group import Context, shared_options
from taskq.errors import ConfigError
from taskq.logs import TextFormatter
from taskq_contrib_supervise.supervisor import Node, Supervisor

_NODE = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(?:\*(?P<count>[1-9][0-9]*))?(?:\s*:\s*(?P<options>.*))?", re.DOTALL)
_PASSED_ON = ("-A", "--app", "-b", "--broker", "--result-store", "--config")


@click.command()
@click.argument("nodes", metavar="'NAME[*COUNT][: OPTIONS]'…", nargs=-1, required=True)
@shared_options
@click.pass_obj
def multi(context: Context, /, nodes: tuple[str, ...], **_: Any) -> None:
    """Run several workers from one command, and start again what dies.

    Each NODE is a worker of that name, or COUNT of them, with the options of taskq worker:

        taskq -A shop multi 'mail*2: -Q mail -P threads -c 20' 'rest: -P prefork'

    TERM, INT, QUIT, HUP and USR1 are passed on to all. It ends when all workers have ended, with 0 or the first exit
    code that is not.
    """
    context.named_app  # noqa: B018  an application that cannot be imported is said once, not by every worker
    _log()
    sys.exit(Supervisor(parse_nodes(nodes, _shared(sys.argv[1:]))).run())


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--watch", metavar="FOLDER", multiple=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder to watch, repeatable; default: the working directory.")  # fmt: skip
@click.argument("options", metavar="[OPTIONS OF taskq worker]…", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def reload(context: Context, /, watch: tuple[Path, ...], options: tuple[str, ...]) -> None:
    """Run a worker for development: it restarts when a Python or TOML file changes.

    Running tasks may end first, within the worker's grace. A worker that died of an error is started again by the next
    change.
    """
    from taskq_contrib_supervise.changes import Changes

    _log()
    changes = Changes(watch or (Path.cwd(),))
    command = [sys.executable, "-m", "taskq", *_shared(sys.argv[1 : sys.argv.index("reload")]), "worker", *options]
    try:
        sys.exit(Supervisor([Node("worker", command)], changes).run())
    finally:
        changes.close()


def parse_nodes(texts: Sequence[str], shared: Sequence[str]) -> list[Node]:
    """Return the nodes that the arguments describe; ``shared`` are options of the main command, for all of them.

    Raises:
        ConfigError: an argument is malformed, or a name is there twice.
    """
    nodes: list[Node] = []
    for text in texts:
        match = _NODE.fullmatch(text.strip())
        if match is None:
            raise ConfigError(f"a node is 'NAME', 'NAME*COUNT' or 'NAME: OPTIONS', not {text!r}")
        try:
            options = shlex.split(match["options"] or "")
        except ValueError as error:
            raise ConfigError(f"the options of {text!r} cannot be read: {error}") from error
        count = int(match["count"] or 1)
        for number in range(1, count + 1):
            name = match["name"] if count == 1 else f"{match['name']}-{number}"
            if any(node.name == name for node in nodes):
                raise ConfigError(f"two nodes are named {name!r}")
            nodes.append(Node(name, [sys.executable, "-m", "taskq", *shared, "worker", "-n", name, *options]))
    return nodes


def _shared(arguments: Sequence[str]) -> list[str]:
    """Return the options that every command shares, as they were given."""
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in _PASSED_ON:
            found += (argument, next(rest, ""))
        elif argument.startswith(tuple(f"{name}=" for name in _PASSED_ON)):
            found.append(argument)
    return found


def _log() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter(colour=sys.stderr.isatty()))
    logger = logging.getLogger("taskq")
    logger.handlers[:] = [handler]
    logger.setLevel("INFO")
    logger.propagate = False
