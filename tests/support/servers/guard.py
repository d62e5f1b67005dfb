"""Run one server and stop it when whoever started it is gone, however that one died.

    python guard.py '{"command": […], "user": null, "stop": "SIGTERM", "folder": "/tmp/…"}'

Standard input is a pipe that the starter holds open and never writes to. Its end is the order to stop, and the system
gives it even when the starter was killed with -9: the server gets its stop signal, 15 s later KILL, and the folder is
removed. A server that ends by itself ends its guard too, with the last lines of its log. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


def main(order: dict[str, Any]) -> int:
    # Stopping is the starter's decision alone. A handler, not SIG_IGN: the server would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    folder = Path(order["folder"])
    log = folder / "server.log"
    with log.open("ab") as output:
        server = subprocess.Popen(
            order["command"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            user=order["user"],
            group=order["user"],
            extra_groups=None if order["user"] is None else [],
        )
    ordered = threading.Event()

    def stop_at_the_end_of_input() -> None:
        os.read(0, 1)  # not sys.stdin: its lock would be held when the interpreter shuts down
        ordered.set()
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(signal.Signals[order["stop"]])
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()

    threading.Thread(target=stop_at_the_end_of_input, daemon=True).start()
    code = server.wait()
    if not ordered.is_set():
        tail = "\n  ".join(log.read_text(errors="replace").splitlines()[-10:])
        print(f"{order['command'][0]} ended by itself ({code}); its log ends:\n  {tail}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
