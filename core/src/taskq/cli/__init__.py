"""The command line. Every command lives in a module of its own that is imported when the command is used."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command ``taskq``."""
    if sys.argv[1:] in (["--version"], ["-V"]):  # answered before anything is imported
        from taskq import __version__

        print(f"taskq {__version__}")  # noqa: T201  that is the answer
        return
    from taskq.cli.group import taskq

    taskq(prog_name="taskq")


__all__ = ["main"]
