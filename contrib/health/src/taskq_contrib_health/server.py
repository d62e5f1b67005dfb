"""The HTTP server of the probes: a few paths, read only."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import stat
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import urlsplit

import msgspec

from taskq.errors import WorkerError

_STARTING = {"live": True, "ready": False, "reasons": ["it is starting"]}
_TIMEOUT = 5.0


class ProbeServer:
    """Answers probes about one worker on a thread of its own.

    Raises:
        WorkerError: the address is in use, or not ours to use.
    """

    def __init__(self, worker: Any, address: tuple[str, int] | str, *, tasks: bool) -> None:
        handler = type("_Handler", (_Handler,), {"worker": worker, "tasks": tasks})
        self._path = address if isinstance(address, str) else None
        try:
            if isinstance(address, str):
                _clear(address)
                self._server: socketserver.BaseServer = _UnixServer(address, handler)
            else:
                self._server = (_TcpServer6 if ":" in address[0] else _TcpServer)(address, handler)
        except OSError as error:
            where = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
            raise WorkerError(
                f"health probes cannot be answered on {where}: {error.strerror}. Give each worker of this machine an "
                "address of its own (extensions.health.address)"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="taskq-health", daemon=True
        )

    @property
    def address(self) -> Any:
        """Where it listens."""
        return self._server.server_address

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_TIMEOUT)
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)


def _clear(path: str) -> None:
    """Remove the socket of a worker that was killed; one that answers, and any other file, are in use."""
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


class _TcpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class _TcpServer6(_TcpServer):
    address_family = socket.AF_INET6


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    worker: ClassVar[Any]
    tasks: ClassVar[bool]
    timeout = _TIMEOUT

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        try:
            health = msgspec.to_builtins(self.worker.health())
        except WorkerError:
            health = _STARTING
        if path == "/live":
            self._answer(200 if health["live"] else 503, {"live": health["live"], "reasons": health["reasons"]})
        elif path == "/ready":
            self._answer(200 if health["ready"] else 503, {"ready": health["ready"], "reasons": health["reasons"]})
        elif path == "/health":
            self._answer(200, health)
        elif path == "/running" and self.tasks:
            self._answer(200, {"tasks": [] if health is _STARTING else msgspec.to_builtins(self.worker.running())})
        else:
            paths = ["/live", "/ready", "/health", *(["/running"] if self.tasks else [])]
            self._answer(404, {"error": f"there is no {path}", "paths": paths})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def address_string(self) -> str:
        """Return who asks; nobody's name on a Unix socket."""
        client: Any = self.client_address
        return str(client[0]) if isinstance(client, tuple) else "unix"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: probes come every few seconds."""
