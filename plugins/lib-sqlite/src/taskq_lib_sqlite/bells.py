"""How processes on one file wake each other: a datagram socket per waiter, and a board that says who is waiting.

**Bells** are sockets in the directory ``FILE-bells`` beside the database, or, where its path is too long for a socket's
address or the file system has no sockets, in a private directory under the temporary directory, named after a hash
of the file's path. A socket of a dead process refuses connections, so a bell also tells whether its owner lives.

**The board** is the small file ``FILE-bells/board``: eight bytes that change whenever a consumer comes, goes or
subscribes anew, and one byte for each consumer that is 1 while it waits. Who sends a message reads it in one system
call and rings as many waiting consumers as there are messages, none when all are busy. Every hint may get lost: a
slow poll finds what a bell did not announce.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import select
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

log = logging.getLogger("taskq.sqlite")

ADDRESS = re.compile(r"[01][cw]-[0-9a-f]{12}\Z")
_LONGEST = 107 if sys.platform == "linux" else 103  # bytes of a socket's path
_SLOTS = 4096
_HEAD = 8
_CHECK_BOARD_S = 1.0

AVAILABLE = hasattr(socket, "AF_UNIX") and hasattr(os, "pread")


class Bell:
    """A socket that others ring; ``address`` is what they need to know."""

    def __init__(self, sock: socket.socket, address: str, path: str) -> None:
        self.socket = sock
        self.address = address
        self.path = path

    def drain(self) -> list[bytes]:
        """Return what was rung since the last call, in order; never blocks."""
        heard: list[bytes] = []
        try:
            while len(heard) < 1000:
                heard.append(self.socket.recv(262144))
        except OSError:
            pass
        return heard

    def in_place(self) -> bool:
        """Whether the socket can still be found (temporary directories are cleaned by others)."""
        return os.path.exists(self.path)

    def close(self) -> None:
        """Take the bell down."""
        try:
            os.unlink(self.path)
        except OSError:
            pass
        self.socket.close()


class Nudge:
    """A pipe to oneself: ``ring`` may be called anywhere, a signal handler included."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)

    def ring(self) -> None:
        try:
            self._writer.send(b"!")
        except OSError:  # full: rung already; or closed
            pass

    def drain(self) -> None:
        try:
            while self.reader.recv(4096):
                pass
        except OSError:
            pass

    def close(self) -> None:
        self.reader.close()
        self._writer.close()


def wait_readable(sockets: Sequence[socket.socket], timeout: float) -> None:
    """Wait until one of the sockets can be read, at most ``timeout`` seconds."""
    if hasattr(select, "poll"):
        poll = select.poll()
        for sock in sockets:
            if (fd := sock.fileno()) >= 0:
                poll.register(fd, select.POLLIN)
        poll.poll(max(0, int(timeout * 1000 + 0.999)))
    else:  # Windows, and eventlet takes poll away
        select.select([s for s in sockets if s.fileno() >= 0], [], [], max(0.0, timeout))


class Bells:
    """The bells of one database file, as one process sees them. Every method is safe on any thread; none raises."""

    def __init__(self, database: str) -> None:
        self._database = database
        beside = database + "-bells"
        digest = hashlib.sha256(os.fsencode(database)).hexdigest()[:16]
        user = os.geteuid() if hasattr(os, "geteuid") else 0
        name = f"taskq-{user}-{digest}"
        temporary = os.path.join(tempfile.gettempdir(), name)
        if len(os.fsencode(temporary)) > _LONGEST - 16:
            temporary = os.path.join("/tmp", name)  # noqa: S108  checked for owner and mode before use
        self.directories = (beside, temporary)
        self._board = os.path.join(beside, "board")
        self._board_fd = -1
        self._board_seen = (0, 0)
        self._board_checked = 0.0
        self._lock = threading.Lock()  # a number of a closed file may be somebody else's file a moment later
        self._ringer: socket.socket | None = None
        self._hung: list[Bell] = []
        self._closed = False

    # ------------------------------------------------------------------------------------------------------ bells

    def hang(self, kind: str) -> Bell | None:
        """Make a bell of a kind (``c``: a consumer's, ``w``: of who waits for results); None where none can be made."""
        if not AVAILABLE:
            return None
        for number, directory in enumerate(self.directories):
            address = f"{number}{kind}-{os.urandom(6).hex()}"
            path = os.path.join(directory, address)
            if len(os.fsencode(path)) > _LONGEST:
                continue
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            sock.setblocking(False)
            try:
                self._bind(sock, number, path)
            except OSError as exc:
                sock.close()
                log.debug("no bell in %s: %s", directory, exc)
                continue
            bell = Bell(sock, address, path)
            self._hung.append(bell)
            return bell
        log.warning(
            "cannot make a socket beside %s nor in %s: messages of other processes are found by polling",
            self._database, self.directories[1],
        )  # fmt: skip
        return None

    def _bind(self, sock: socket.socket, number: int, path: str) -> None:
        for last in (False, True):
            self._make_directory(number)
            try:
                sock.bind(path)
                break
            except FileNotFoundError:  # another process has just removed the empty directory
                if last:
                    raise
        if number == 0:
            os.chmod(path, self._shared_mode() & 0o666)

    def take_down(self, bell: Bell) -> None:
        """Close a bell of this process."""
        bell.close()
        self._remove_temporary()
        if bell in self._hung:
            self._hung.remove(bell)

    def ring(self, address: str | None, message: bytes = b"") -> bool | None:
        """Ring one bell. True: rung (or rung so often that it is full); False: its owner is dead; None: not found."""
        path = self.path_of(address)
        if path is None or self._closed:
            return None
        try:
            (self._ringer or self._make_ringer()).sendto(message, path)
        except BlockingIOError:
            return True
        except OSError as exc:
            if exc.errno in (errno.ENOBUFS, errno.EAGAIN):
                return True
            return False if exc.errno == errno.ECONNREFUSED else None
        return True

    def _make_ringer(self) -> socket.socket:
        with self._lock:
            if self._ringer is None:
                ringer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                ringer.setblocking(False)
                self._ringer = ringer
            return self._ringer

    def is_dead(self, address: str | None) -> bool:
        """Whether a bell is there and surely nobody hears it; False where it cannot be known."""
        path = self.path_of(address)
        if path is None:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as prober:
            prober.setblocking(False)
            try:
                prober.connect(path)
            except OSError as exc:
                return exc.errno == errno.ECONNREFUSED
        return False

    def path_of(self, address: str | None) -> str | None:
        """Return the socket of an address, which may come from a stranger's message, or None."""
        if not address or not AVAILABLE or ADDRESS.match(address) is None:
            return None
        return os.path.join(self.directories[int(address[0])], address)

    def sweep(self) -> int:
        """Remove the bells of dead processes; return how many."""
        swept = 0
        for directory in self.directories:
            try:
                names = os.listdir(directory)
            except OSError:
                continue
            for name in names:
                if ADDRESS.match(name) and self.is_dead(name):
                    try:
                        os.unlink(os.path.join(directory, name))
                        swept += 1
                    except OSError:
                        pass
        self._remove_temporary()
        return swept

    def _remove_temporary(self) -> None:
        try:
            os.rmdir(self.directories[1])
        except OSError:  # not there, or in use
            pass

    def _make_directory(self, number: int) -> None:
        directory = self.directories[number]
        if number == 0:
            try:
                os.mkdir(directory)
                os.chmod(directory, self._shared_mode())
            except FileExistsError:
                pass
            return
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        # Others may write to the temporary directory: only a directory that is ours alone will do.
        status = os.lstat(directory)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "not a directory of this user alone", directory)

    def _shared_mode(self) -> int:
        """Rights for who may write the database, and nobody else."""
        try:
            mode = os.stat(self._database).st_mode
        except OSError:
            mode = 0
        return 0o700 | (0o070 if mode & 0o020 else 0) | (0o007 if mode & 0o002 else 0)

    # ------------------------------------------------------------------------------------------------------ board

    def board(self) -> bytes:
        """Return the board, empty where there is none."""
        with self._lock:
            fd = self._open_board(create=False)
            if fd < 0:
                return b""
            try:
                return os.pread(fd, _HEAD + _SLOTS, 0)
            except OSError:
                return b""

    def announce(self) -> None:
        """Tell everybody that the set of consumers or their subscriptions changed, after the commit that says so."""
        self._write(os.urandom(_HEAD), 0)

    def set_waiting(self, slot: int | None, waiting: bool) -> None:
        """Note on the board whether a consumer waits."""
        if slot is not None and 0 <= slot < _SLOTS:
            self._write(b"\1" if waiting else b"\0", _HEAD + slot)

    def _write(self, data: bytes, offset: int) -> None:
        with self._lock:
            fd = self._open_board(create=True)
            if fd >= 0:
                try:
                    os.pwrite(fd, data, offset)
                except OSError as exc:
                    log.debug("cannot write to %s: %s", self._board, exc)

    def _open_board(self, *, create: bool) -> int:
        if not AVAILABLE:
            return -1
        if self._closed:
            return -1
        now = time.monotonic()
        if now - self._board_checked > _CHECK_BOARD_S:
            self._board_checked = now
            try:
                status = os.stat(self._board)
                seen = (status.st_dev, status.st_ino)
            except OSError:
                seen = (0, 0)
            if seen != self._board_seen:
                self._close_board()
        if self._board_fd < 0:
            self._open_board_file(os.O_CREAT if create else 0)
        return self._board_fd

    def _open_board_file(self, flags: int) -> None:
        try:
            if flags:
                self._make_directory(0)
            fd = os.open(self._board, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
            status = os.fstat(fd)
            if flags and status.st_uid == os.geteuid():
                os.fchmod(fd, self._shared_mode() & 0o666)
        except OSError:
            return
        self._close_board()
        self._board_seen = (status.st_dev, status.st_ino)
        self._board_fd = fd

    def _close_board(self) -> None:
        fd, self._board_fd = self._board_fd, -1
        self._board_seen = (0, 0)
        if fd >= 0:
            os.close(fd)

    # -------------------------------------------------------------------------------------------------------- end

    def close(self) -> None:
        """Take down what this process has hung."""
        self._closed = True
        for bell in list(self._hung):
            self.take_down(bell)
        self._close_sockets()

    def after_fork_in_child(self) -> None:
        """Let go of the parent's sockets: while a child keeps them, the parent cannot be seen to be dead."""
        self._lock = threading.Lock()
        for bell in self._hung:
            bell.socket.close()
        self._hung.clear()
        self._close_sockets()

    def _close_sockets(self) -> None:
        with self._lock:
            ringer, self._ringer = self._ringer, None
            if ringer is not None:
                ringer.close()
            self._close_board()
