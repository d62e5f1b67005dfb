"""The servers of one run: which are installed, which start, which are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.servers.server import Missing, Server, say


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def install(kinds: Sequence[type[Server]]) -> None:
    """Install Debian packages, where we may; failing is no error here, the server is then reported as missing."""
    packages = sorted({package for kind in kinds for package in kind.packages.split()})
    if not packages or os.geteuid() != 0 or not Path("/etc/debian_version").exists() or not shutil.which("apt-get"):
        return
    say(f"installing what is missing: apt-get install {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    for step in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            [*apt, *step],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            say(f"apt-get {step[0]} failed:\n{done.stdout[-2000:]}")


class Fleet:
    """The servers of one run."""

    def __init__(self, *, durable: bool) -> None:
        self.durable = durable
        self.running: list[Server] = []
        self.missing: dict[type[Server], str] = {}
        self.urls: dict[str, str] = {}

    def start(self, kinds: Sequence[type[Server]]) -> None:
        given = [kind for kind in kinds if os.environ.get(kind.variable())]
        for kind in given:
            say(f"{kind.name}: yours, from {kind.variable()}")
        wanted = [kind for kind in kinds if kind not in given]
        install([kind for kind in wanted if not kind.optional and kind.program() is None])
        present = [kind for kind in wanted if kind.program() is not None]
        self.missing |= {kind: "not installed" for kind in wanted if kind not in present and not kind.optional}
        with ThreadPoolExecutor(len(present) or 1) as pool:  # side by side: each mostly waits
            list(pool.map(self._start, present))

    def _start(self, kind: type[Server]) -> None:
        started = time.monotonic()
        try:
            for attempt in (1, 2):  # a second port if somebody was quicker to take the first
                server = kind(durable=self.durable)
                try:
                    server.start()
                    break
                except Missing:
                    if attempt == 2:
                        raise
        except Missing as error:
            self.missing[kind] = str(error)
        else:
            self.running.append(server)
            self.urls[kind.variable()] = server.url()
            say(f"{kind.name}: {server.url()} ({time.monotonic() - started:.1f} s)")

    def stop(self) -> None:
        with ThreadPoolExecutor(len(self.running) or 1) as pool:
            list(pool.map(Server.stop, self.running))
        self.running.clear()

    def report(self) -> None:
        """The table of what was not tested."""
        if self.missing:
            rows = [(kind.name, why, kind.how_to_get()) for kind, why in self.missing.items()]
            rows.insert(0, ("NOT TESTED", "WHY", "HOW TO GET IT"))
            widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
            print(file=sys.stderr)
            for name, why, how in rows:
                print(f"  {name:<{widths[0]}}  {why:<{widths[1]}}  {how}", file=sys.stderr)
