"""The peers' own environment: build/bench/venv, from peers.txt, made anew when that file changes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

LIST = Path(__file__).with_name("peers.txt")


def make(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return the environment's Python, and what could not be installed with the reason."""
    python, stamp = folder / "bin/python", folder / ".made-from"
    made_from = hashlib.sha256(LIST.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == made_from:
        return python, {}
    print(f"bench: installing the peers into {folder.name}/ (once)", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    if not install(python, "-r", LIST):
        stamp.write_text(made_from)
        return python, {}
    lines = LIST.read_text().partition("\n# what they need\n")[0].splitlines()
    peers = [line for line in lines if line and not line.startswith("#")]
    return python, {peer: why for peer in peers if (why := install(python, "-c", LIST, peer))}


def install(python: Path, *what: str | Path) -> str:
    """Run pip; "" or the last line of what it said."""
    command = [python, "-m", "pip", "-q", "--disable-pip-version-check", "install", "--prefer-binary", *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["pip failed"])[-1] if done.returncode else ""
