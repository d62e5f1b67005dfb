"""Real servers for the tests.

    python -m tests.support.servers run [--only NAME,…] [--durable] -- COMMAND…   start, run the command, stop
    python -m tests.support.servers up NAME [--durable]                           start one, print its URL, until Ctrl-C

A server whose URL is in the environment (TASKQ_TEST_POSTGRESQL_URL, …) is used as it is. The others are started from
what is installed, on free loopback ports, with their data in a temporary folder, and the command finds their URLs in
the same variables. On Debian and Ubuntu, as root, missing ones are installed first; elsewhere they are left out, and a
table at the end says what was not tested and how to get it. With CI=true a missing server is a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from tests.support.servers.fleet import Fleet, in_ci
from tests.support.servers.kinds import SERVERS
from tests.support.servers.server import Server, say


class Stopped(Exception):
    """A signal, or the end of our own parent, told us to stop."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


def on_signals(act: Callable[[signal.Signals], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: act(signal.Signals(n)))


def raise_stopped(number: signal.Signals) -> None:
    # Once: a second signal must not interrupt the stopping.
    on_signals(lambda _: None)
    raise Stopped(number)


def run(kinds: Sequence[type[Server]], command: Sequence[str], *, durable: bool) -> int:
    """Run a command with servers; its exit code, or 128 + the signal that stopped us."""
    fleet = Fleet(durable=durable)
    parent = os.getppid()
    child: subprocess.Popen[bytes] | None = None
    on_signals(raise_stopped)
    try:
        fleet.start(kinds)
        child = subprocess.Popen(command, env={**os.environ, **fleet.urls})
        while (code := child.poll()) is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1)
            if os.getppid() != parent:  # make was killed: nobody waits for this any more
                raise Stopped(signal.SIGTERM)
    except Stopped as stopped:
        code = 128 + stopped.number
        say(f"stopping ({stopped})")
        if child is not None:
            end(child, told=stopped.number is signal.SIGINT)
    except FileNotFoundError as error:
        say(f"cannot run {error.filename}")
        code = 127
    finally:
        on_signals(lambda _: None)
        fleet.stop()
    fleet.report()
    if fleet.missing and in_ci():
        say("CI=true: every server has to be there")
        code = code or 1
    # A command that a signal ended: as a shell says it.
    return code if code >= 0 else 128 - code


def end(child: subprocess.Popen[bytes], *, told: bool) -> None:
    """End the command. `told`: the terminal's Ctrl-C has reached it too, so it is closing already."""
    for number in (None if told else signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
            return


def up(kind: type[Server], *, durable: bool) -> int:
    fleet = Fleet(durable=durable)
    os.environ.pop(kind.variable(), None)  # a new one is wanted
    on_signals(raise_stopped)
    try:
        fleet.start([kind])
        if kind.program() is None or fleet.missing:
            say(f"{kind.name}: {fleet.missing.get(kind, 'not installed')}; {kind.how_to_get()}")
            return 1
        for url in fleet.urls.values():
            print(url, flush=True)
        threading.Event().wait()
    except Stopped:
        return 0
    finally:
        on_signals(lambda _: None)
        fleet.stop()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.support.servers", description=__doc__)
    parser.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, width=120)
    commands = parser.add_subparsers(dest="what", required=True)
    running = commands.add_parser("run", help="run a command with servers")
    running.add_argument("--only", metavar="NAME,…", default=",".join(SERVERS), help="just these")
    running.add_argument("command", nargs="+", metavar="COMMAND")
    single = commands.add_parser("up", help="start one server for a developer")
    single.add_argument("name", choices=list(SERVERS))
    for command in (running, single):
        command.add_argument("--durable", action="store_true", help="safe against power loss, as for measurements")
    options = parser.parse_args(arguments)
    if options.what == "up":
        return up(SERVERS[options.name], durable=options.durable)
    names = [name for name in options.only.split(",") if name]
    if unknown := [name for name in names if name not in SERVERS]:
        parser.error(f"no server called {', '.join(unknown)}; there are {', '.join(SERVERS)}")
    return run([SERVERS[name] for name in names], options.command, durable=options.durable)


if __name__ == "__main__":
    sys.exit(main())
