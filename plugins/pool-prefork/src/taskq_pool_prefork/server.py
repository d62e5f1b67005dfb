"""The fork server: a clean process that imports the application once and from which children are forked.

It has one thread and no connection, so that a fork copies neither locks nor sockets. It is the children's parent: it
tells the worker's process of their ends, and buries them when told, so that a process id stays theirs until then. On
Linux it is also the parent of what programs of tasks leave behind, and buries that at once: nothing else in here
waits for processes, so no exit code is taken from anybody.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from typing import NoReturn

from taskq.spi import Runtime
from taskq_pool_prefork import child
from taskq_pool_prefork.processes import QUIET_SIGNALS, adopt_orphans, die_with_parent, do_nothing, kill_group
from taskq_pool_prefork.protocol import (
    ALIVE,
    BROKEN,
    DIED,
    FORK,
    FORK_FAILED,
    FORKED,
    HEADER,
    ORDER,
    PRELOADED,
    REAP,
    Report,
    Setup,
    decode_setup,
    encode,
    frame,
)

preloading = False
"""Whether this process is a fork server that imports the application: a pool must not be started here."""


class Server:
    """Forks children on order; ends with the worker's process."""

    def __init__(self, sock: socket.socket, setup: Setup) -> None:
        self._socket = sock
        self._setup = setup
        self._runtime: Runtime | None = None
        self._children: dict[int, int] = {}
        self._dead: set[int] = set()
        self._bell, self._ring = os.pipe()
        for end in (self._bell, self._ring):
            os.set_blocking(end, False)

    def preload(self) -> bool:
        """Import the application; report threads that this left running."""
        global preloading
        if not self._setup.spawn:
            preloading = True
            try:
                self._runtime = child.restore(self._setup)
            except BaseException as error:
                text = str(error) if type(error).__name__ == "WorkerError" else traceback.format_exc()
                self._report(BROKEN, Report(text=text))
                return False
            finally:
                preloading = False
        threads = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
        gc.collect()
        gc.freeze()  # what is here now is shared with the children until somebody writes to it
        self._report(PRELOADED, Report(names=threads))
        return True

    def serve(self) -> None:
        """Carry out orders until the worker's process closes the socket."""
        signal.signal(signal.SIGCHLD, do_nothing)
        signal.set_wakeup_fd(self._ring, warn_on_full_buffer=False)
        adopt_orphans()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._bell in ready:
                os.read(self._bell, 4096)
                self._look_after()
            if self._socket.fileno() in ready:
                try:
                    data, descriptors, _, _ = socket.recv_fds(self._socket, ORDER.size, 3)
                except ConnectionError:
                    return
                if not data:
                    return
                while len(data) < ORDER.size:
                    data += self._socket.recv(ORDER.size - len(data))
                order, number = ORDER.unpack(data)
                if order == FORK:
                    self._start_child(number, descriptors)
                elif order == REAP:
                    self._bury(number)
                else:
                    self._report(ALIVE, Report())

    def end(self) -> None:
        """End what is left."""
        for pid in self._children.keys() - self._dead:
            kill_group(pid)

    def _start_child(self, number: int, descriptors: list[int]) -> None:
        try:
            pid = self._spawn(descriptors) if self._setup.spawn else self._fork(descriptors)
        except OSError as error:
            self._report(FORK_FAILED, Report(number=number, text=f"{type(error).__name__}: {error}"))
        else:
            self._children[pid] = number
            self._report(FORKED, Report(number=number, pid=pid))
        for descriptor in descriptors:
            os.close(descriptor)

    def _fork(self, descriptors: list[int]) -> int:
        runtime, parent = self._runtime, os.getpid()
        assert runtime is not None
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                self._socket.close()
                os.close(self._bell)
                os.close(self._ring)
                child.live(lambda: runtime, descriptors, self._setup, parent)
            finally:
                os._exit(1)
        return pid

    def _spawn(self, descriptors: list[int]) -> int:
        """Start a fresh interpreter; its setup goes through a pipe."""
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        command = command_line("taskq_pool_prefork.child", "spawned", *descriptors, os.getpid())
        reading, writing = os.pipe()
        try:
            actions = [(os.POSIX_SPAWN_DUP2, reading, 0)]
            pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        with open(writing, "wb") as pipe:
            try:
                pipe.write(encode(self._setup))
            except BrokenPipeError:
                pass  # it has died; its end is reported like any other
        return pid

    def _look_after(self) -> None:
        """Report children that have ended; they stay zombies until the worker's process knows."""
        for pid, number in self._children.items():
            if pid in self._dead:
                continue
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                self._dead.add(pid)
                status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
                self._report(DIED, Report(number=number, pid=pid, status=status))
        self._bury_orphans()

    def _bury(self, pid: int) -> None:
        if self._children.pop(pid, None) is not None:
            self._dead.discard(pid)
            os.waitpid(pid, 0)
            self._bury_orphans()

    def _bury_orphans(self) -> None:
        """Clear away what programs of tasks have left behind; a child that waits for its burial may hold it up."""
        try:
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if found.si_pid in self._children:
                    return
                os.waitpid(found.si_pid, 0)
        except ChildProcessError:
            pass  # there is nobody

    def _report(self, kind: int, report: Report) -> None:
        try:
            self._socket.sendall(frame(kind, encode(report)))
        except OSError:
            pass  # the worker's process is gone; serve() sees it, too


def command_line(module: str, function: str, *arguments: int) -> list[str]:
    """Return the command that runs a function in a fresh interpreter with this one's options and path."""
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    code = f"import sys; n = {len(arguments) + 1}; sys.path[:] = sys.argv[n:]; del sys.argv[n:]; "
    code += f"from {module} import {function}; {function}()"
    return [sys.executable, *options, "-c", code, *map(str, arguments), *sys.path]


def main() -> NoReturn:
    """Be a fork server: the socket's descriptor is the argument."""
    code = 1
    try:
        os.setpgid(0, 0)
        for number in QUIET_SIGNALS:
            signal.signal(number, do_nothing)
        sock = socket.socket(fileno=int(sys.argv[1]))
        sock.set_inheritable(False)
        with sock.makefile("rb", buffering=0) as file:
            head = file.read(HEADER.size) or b""
            length = HEADER.unpack(head)[0]
            data = bytearray()
            while len(data) < length:
                part = file.read(length - len(data))
                if not part:
                    os._exit(1)
                data += part
        setup = decode_setup(bytes(data))
        die_with_parent(setup.parent)
        server = Server(sock, setup)
        if server.preload():
            try:
                server.serve()
                code = 0
            finally:
                server.end()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
