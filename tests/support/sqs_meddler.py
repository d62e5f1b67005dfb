"""An HTTP proxy that a test may have answer for the server, or change what it answers."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Answer = tuple[int, dict[str, Any]]
Rule = Callable[[str, dict[str, Any], Callable[[], Answer]], Answer]
"""Operation, its parameters and a call that asks the server with them, as changed → status and body of the answer."""


def refusal(code: str, text: str = "because") -> dict[str, Any]:
    return {"__type": f"com.amazonaws.sqs#{code}", "message": text}


class Meddler:
    """Stands in front of a server. ``rule`` decides on every call; ``calls`` has their names, in order."""

    def __init__(self, host: str, port: int) -> None:
        self.rule: Rule = lambda operation, body, ask: ask()
        self.calls: list[str] = []
        meddler = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                operation = self.headers["X-Amz-Target"].rpartition(".")[2]
                meddler.calls.append(operation)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")}

                body = json.loads(raw)

                def ask() -> Answer:
                    connection = http.client.HTTPConnection(host, port, timeout=30)
                    try:
                        connection.request("POST", "/", json.dumps(body), headers)
                        found = connection.getresponse()
                        return found.status, json.loads(found.read() or b"{}")
                    finally:
                        connection.close()

                status, answer = meddler.rule(operation, body, ask)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.0")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: object) -> None:
                pass  # a client that went away

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *arguments: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def fail_entry(number: int, code: str, *, sender: bool, times: int = 1) -> Rule:
    """Return a rule: one entry of a batch call fails, and is not done."""
    left = [times]

    def rule(operation: str, body: dict[str, Any], ask: Callable[[], Answer]) -> Answer:
        if not operation.endswith("Batch") or not left[0] or len(body["Entries"]) <= number:
            return ask()
        left[0] -= 1
        entry = body["Entries"][number]
        failed = {"Id": entry["Id"], "Code": code, "SenderFault": sender, "Message": "because"}
        done = [{"Id": e["Id"]} for e in body["Entries"] if e is not entry]
        return 200, {"Successful": done, "Failed": [failed]}

    return rule
