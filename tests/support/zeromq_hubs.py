"""ZeroMQ hubs for tests: one process forks a hub for each that is asked for, so that a hub costs milliseconds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Any

_FORGE = """
import json, os, sys
from taskq_lib_zeromq.hub import Hub, HubOptions
for line in sys.stdin:
    if line.startswith("reap "):
        try:
            os.waitpid(int(line[5:]), 0)
        except ChildProcessError:
            pass
        print("{}", flush=True)
        continue
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        import signal
        try:
            asked = json.loads(line)
            if asked.get("client_keys") is not None:
                asked["client_keys"] = frozenset(asked["client_keys"])
            hub = Hub(HubOptions(**{**asked, "bind": tuple(asked["bind"])}))
            signal.signal(signal.SIGTERM, lambda *_: hub.stop())
            answer = {"addresses": hub.addresses}
        except Exception as error:
            os.write(write, json.dumps({"error": str(error)}).encode())
            os._exit(1)
        os.write(write, json.dumps(answer).encode())
        os.close(write)
        hub.run()
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = json.loads(pipe.read())
    if "error" in said:
        os.waitpid(child, 0)
    print(json.dumps({**said, "pid": child}), flush=True)
"""


class Hub:
    """A running hub: its URL, and the ways to end it."""

    def __init__(self, forge: HubForge, options: dict[str, Any], said: dict[str, Any]) -> None:
        self._forge = forge
        self._options = options
        self.pid: int = said["pid"]
        self.address: str = said["addresses"][0]
        self.url = "zeromq" + self.address.removeprefix("tcp").removeprefix("ipc")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; by default the one that leaves no time to write anything, and wait for its effect."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        if number == signal.SIGKILL:
            self._forge.reap(self.pid)

    def restart(self) -> Hub:
        """Start it again where it was, with the same options, once the old one is out of the way."""
        end = time.monotonic() + 10.0
        while True:
            try:
                return self._forge.start(**{**self._options, "bind": [self.address]})
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)


class HubForge:
    """Starts hubs, and ends all of them with itself."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FORGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._pids: list[int] = []
        self._lock = threading.Lock()

    def start(self, **options: Any) -> Hub:
        """Start a hub; options as of ``HubOptions``. Raises: RuntimeError: it says why it cannot start."""
        options.setdefault("bind", ["tcp://127.0.0.1:*"])
        options.setdefault("heartbeat", 1.0)
        said = self._ask(json.dumps(options))
        if "error" in said:
            raise RuntimeError(said["error"])
        self._pids.append(said["pid"])
        return Hub(self, options, said)

    def reap(self, pid: int) -> None:
        """Wait until a hub that was killed is gone, its connections included."""
        self._ask(f"reap {pid}")

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End all hubs."""
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def __enter__(self) -> HubForge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
