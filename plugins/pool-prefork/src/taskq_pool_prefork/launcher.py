"""The parent's side of the fork server: starting it, and giving it orders."""

from __future__ import annotations

import os
import pickle  # noqa: TID251 - for this program's own child processes
import socket
import subprocess
import sys
from time import monotonic
from typing import Any

from taskq.errors import WorkerError
from taskq.spi import PoolConfig, Runtime
from taskq_pool_prefork import server
from taskq_pool_prefork.protocol import ASK, FORK, HEADER, ORDER, REAP, Board, Channel, Setup, encode


def make_setup(config: PoolConfig, runtime: Runtime) -> Setup:
    """Return what children must know.

    Raises:
        WorkerError: the application cannot be found by another process, or this process is one that looks for it.
    """
    if not hasattr(os, "fork") or not hasattr(socket, "send_fds"):
        raise WorkerError(
            f"The prefork pool needs a POSIX system; this is {sys.platform}. Choose -P threads, and several workers to "
            "use several CPUs."
        )
    if server.preloading:
        raise WorkerError(
            "A worker was started while a child process imported the application. Start it under "
            "if __name__ == '__main__': only, or choose a pool without processes (pool='threads')."
        )
    try:
        data = pickle.dumps(runtime)
    except WorkerError:
        raise
    except Exception as error:
        raise WorkerError(f"The application cannot be handed to child processes: {error}") from error
    return Setup(
        parent=os.getpid(),
        runtime=data,
        main=_main_module(data),
        arguments=list(sys.argv),
        spawn=config.options.start_method == "spawn",
        own_connections=config.options.own_connections,
        max_tasks=config.max_tasks_per_child,
        max_memory=config.max_memory_per_child,
    )


def _main_module(runtime: bytes) -> dict[str, Any] | None:
    """Say where the program's main module is, if children must import it under the name ``__mp_main__``.

    A script that is run may hold tasks; a command (``taskq``, ``gunicorn``) is imported only if the application is said
    to be in it.
    """
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if b"__main__" not in runtime and (path is None or not path.endswith(".py")):
        return None
    from multiprocessing.spawn import get_preparation_data

    facts = get_preparation_data("taskq")
    return {name: facts[name] for name in ("init_main_from_name", "init_main_from_path") if name in facts} or None


class ForkServer:
    """One fork server process. Made on the thread that lives as long as the pool: the server dies with it."""

    def __init__(self, setup: Setup) -> None:
        ours, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(
                server.command_line("taskq_pool_prefork.server", "main", theirs.fileno()),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.spawns = setup.spawn
        self.loaded = False
        self.born = monotonic()
        self.channel = Channel(ours)
        data = encode(setup)
        self.channel.send(HEADER.pack(len(data), 0) + data)

    def fork(self, number: int) -> tuple[Channel, Channel, Board]:
        """Order a child; return this side's ends of what connects to it. Errors: OSError."""
        descriptors: list[int] = []
        ours: list[socket.socket] = []
        try:
            for _ in range(2):
                mine, its = socket.socketpair()
                ours.append(mine)
                descriptors.append(its.detach())
            descriptors.append(Board.create())
            board = Board(descriptors[-1])
        except BaseException:
            for sock in ours:
                sock.close()
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        self.channel.send(ORDER.pack(FORK, number), descriptors)
        if self.channel.pending:
            self.process.kill()  # it has not read for hundreds of orders
        for descriptor in descriptors:
            os.close(descriptor)
        return Channel(ours[0]), Channel(ours[1]), board

    def bury(self, pid: int) -> None:
        """Have a child's remains cleared away: from here on its process id may be another's."""
        self.channel.send(ORDER.pack(REAP, pid))

    def ask(self) -> None:
        """Have the server give a sign of life."""
        self.channel.send(ORDER.pack(ASK, 0))

    def close(self, *, patience: float) -> None:
        """End the server and wait for it."""
        self.channel.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
