"""The peers' own environments in build/bench/, one for each section of peers.txt, made anew when that one changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

LIST = Path(__file__).with_name("peers.txt")
INSTALL_TIMEOUT = 600.0


class Missing(Exception):
    """An environment cannot be made; the text says why."""


def sections() -> dict[str, list[str]]:
    """Return the lines of each section."""
    found: dict[str, list[str]] = {}
    for line in LIST.read_text("utf-8").splitlines():
        if line.startswith("["):
            found[line.strip("[]")] = []
        elif line and found:
            found[[*found][-1]].append(line)
    return found


def make(folder: Path, kind: str) -> tuple[Path, dict[str, str]]:
    """Return the environment's interpreter, and what could not be installed with the reason.

    Raises:
        Missing: there is no interpreter to make it with.
    """
    lines = sections()[kind]
    home, stamp = folder / f"venv-{kind}", folder / f"venv-{kind}/.made-from"
    program = home / "bin/python" if kind != "node" else Path(shutil.which("node") or "")
    made_from = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if program.exists() and stamp.exists() and stamp.read_text() == made_from:
        return program, {}
    with_what = interpreter(kind)
    print(f"bench: installing the peers of {kind} into {home.name}/ (once)", file=sys.stderr, flush=True)
    shutil.rmtree(home, ignore_errors=True)
    pins = folder / f"{kind}.txt"
    pins.write_text("\n".join(lines))
    if kind == "node":
        home.mkdir(parents=True)
        why = tell(["npm", "install", "--silent", "--no-fund", "--prefix", str(home), *lines])
        if not why:
            stamp.write_text(made_from)
        return program, dict.fromkeys(lines, why) if why else {}
    if why := tell([with_what, "-m", "venv", str(home)]):
        raise Missing(why)
    pip = [str(program), "-m", "pip", "-q", "--disable-pip-version-check", "install", "--prefer-binary"]
    if not tell([*pip, "-r", str(pins)]):
        stamp.write_text(made_from)
        return program, {}
    peers = [line for line in lines[: lines.index("# what they need")] if not line.startswith("#")]
    return program, {peer: why for peer in peers if (why := tell([*pip, "-c", str(pins), peer]))}


def interpreter(kind: str) -> str:
    """Return the program that an environment is made with.

    Raises:
        Missing: there is none.
    """
    if kind == "node":
        if not (shutil.which("node") and shutil.which("npm")):
            raise Missing("needs node and npm")
        return "node"
    if kind != "python3.13" or sys.version_info >= (3, 13):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = ["python3.14", "python3.13", *map(str, sorted(pyenv.glob("versions/3.1[3-9].*/bin/python3")))]
    for candidate in candidates:
        if shutil.which(candidate) and not tell([candidate, "-c", "import sys; sys.exit(sys.version_info < (3, 13))"]):
            return candidate
    raise Missing("needs Python 3.13 or newer beside this one")


def tell(command: list[str]) -> str:
    """Run a command; "" or the last line of what it said when it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ((done.stderr + done.stdout).strip().splitlines() or [f"{command[0]} failed"])[-1] if done.returncode else ""
