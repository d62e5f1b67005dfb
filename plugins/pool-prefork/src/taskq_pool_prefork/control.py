"""A child's control thread: answers the parent while the main thread runs a task, and carries requests to it."""

from __future__ import annotations

import itertools
import os
import queue
import select
import socket
import sys
import threading
import traceback
from collections import deque

from taskq_pool_prefork.processes import EXIT_ORPHAN
from taskq_pool_prefork.protocol import (
    PING,
    PONG,
    REPLY,
    REQUEST,
    STACKS,
    Control,
    Frames,
    decode_control,
    encoded_frame,
)


class ControlThread(threading.Thread):
    """Owns the control socket. Nobody else writes to it: a signal's exception must not leave half a frame behind."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(name="taskq-control", daemon=True)
        self._socket = sock
        self._outgoing: deque[bytearray] = deque()
        self._asked: dict[int, queue.SimpleQueue[bytes]] = {}
        self._numbers = itertools.count(1)
        self._bell, self._ring = os.pipe()
        self._main = threading.get_ident()
        self._ended = threading.Event()

    def call(self, data: bytes) -> bytes:
        """Have the worker's process carry out a request, and wait for its answer; any thread."""
        number = next(self._numbers)
        answer = self._asked[number] = queue.SimpleQueue()
        try:
            self.send(REQUEST, Control(number, data))
            return answer.get()
        finally:
            self._asked.pop(number, None)

    def send(self, kind: int, message: Control) -> None:
        """Send a frame soon; any thread."""
        self._outgoing.append(encoded_frame(kind, message))
        os.write(self._ring, b"\0")

    def finish(self) -> None:
        """Wait until what was sent has gone out."""
        self._ended.set()
        os.write(self._ring, b"\0")
        self.join(5.0)

    def forget(self) -> None:
        """Close the descriptors in a process that a task has forked."""
        for descriptor in (self._bell, self._ring, self._socket.fileno()):
            try:
                os.close(descriptor)
            except OSError:
                pass

    def run(self) -> None:
        frames = Frames()
        sock, bell = self._socket, self._bell
        poll = select.poll()  # unlike select(), it takes descriptors of any number
        poll.register(sock, select.POLLIN)
        poll.register(bell, select.POLLIN)
        try:
            while True:
                ready = [descriptor for descriptor, _ in poll.poll()]
                if bell in ready:
                    os.read(bell, 4096)
                while self._outgoing:
                    sock.sendall(self._outgoing.popleft())
                if self._ended.is_set():
                    return
                if sock.fileno() in ready:
                    data = sock.recv(1 << 18)
                    if not data:
                        break
                    for kind, payload in frames.feed(data):
                        self._take(kind, decode_control(payload))
        except OSError:
            pass
        except Exception:
            traceback.print_exc()
        # The worker's process is gone, or a task has closed this socket: there is nobody to work for.
        os._exit(EXIT_ORPHAN)

    def _take(self, kind: int, message: Control) -> None:
        if kind == REPLY:
            answer = self._asked.get(message.number)
            if answer is not None:
                answer.put(message.data)
        elif kind == PING:
            self._outgoing.append(encoded_frame(PONG, Control(message.number)))
            os.write(self._ring, b"\0")
        elif kind == STACKS:
            self.send(STACKS, Control(message.number, self._stack().encode(errors="replace")))

    def _stack(self) -> str:
        found = sys._current_frames().get(self._main)
        return "" if found is None else "".join(traceback.format_stack(found))
