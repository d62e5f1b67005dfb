"""Options and promises of the prefork pool; asking for them imports no driver."""

from __future__ import annotations

from dataclasses import dataclass

from taskq.spi import PoolCapabilities, Support, option


@dataclass(frozen=True)
class PreforkOptions:
    """Options of the pool ``prefork``."""

    start_method: str = option(
        "auto",
        help="auto: children are forked from a clean process that has imported the application, and spawned where "
        "importing it leaves threads running; forkserver: the former or an error; spawn: each child imports it",
        choices=("auto", "forkserver", "spawn"),
    )
    own_connections: bool = option(
        False, help="children open connections to broker and result store themselves instead of using the worker's"
    )
    child_unresponsive: float | None = option(
        None,
        help="a child that runs a task and has not answered for this long (it was stopped, or C code holds the GIL) is "
        "killed; without it, it is only reported",
        minimum=0.1,
        unit="s",
    )
    start_timeout: float = option(
        60.0, help="how long importing the application and the start hooks of a child may take", minimum=0.1, unit="s"
    )


CAPABILITIES = PoolCapabilities(
    isolation=True,
    async_tasks=Support.EMULATED,
    soft_limit=Support.NATIVE,
    hard_limit=Support.NATIVE,
    cancel_running=Support.NATIVE,
    terminate=True,
    resize=True,
    recycle=True,
    notes=(
        "Needs a POSIX system; the application must be importable, or the script that was started.",
        "Soft limits and cancelling interrupt Python code; only the hard limit and terminating end a call into C.",
        "An async def task occupies a process and runs there to its end.",
        "SIGALRM is the pool's in its children; INT, TERM, HUP and USR1 do nothing there: the worker sees to them.",
        "What a child sends and reads goes through the worker's connections, unless own_connections is set.",
    ),
)
