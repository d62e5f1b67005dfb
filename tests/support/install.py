"""Make the environment, and the wheels, without ever asking an index for a taskq-* name.

Those names are not ours on the public index: whoever registers one there would have their code run here. So third-party
requirements are collected from every pyproject.toml of the tree and installed first, then the tree's own distributions
by path, with --no-deps and --no-index. Runs before anything is installed: standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = ("--no-deps", "--no-index", "--no-build-isolation")


def distributions() -> list[Path]:
    """The folders that hold a distribution, the kernel first."""
    return [f.parent for p in ("core", "plugins/*", "contrib/*") for f in sorted(ROOT.glob(f"{p}/pyproject.toml"))]


def normalized(requirement: str) -> str:
    """The project name a requirement starts with, as PEP 503 compares names."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    if not match:
        raise SystemExit(f"install: no name in the requirement {requirement!r}")
    return re.sub(r"[-_.]+", "-", match[1]).lower()


def is_ours(requirement: str) -> bool:
    name = normalized(requirement)
    return name == "taskq" or name.startswith("taskq-")


def read(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))


def project_name(folder: Path) -> str:
    return normalized(read(folder)["project"]["name"])


def runtime_requirements(folder: Path) -> list[str]:
    """What a distribution needs to run, all its extras included."""
    project = read(folder)["project"]
    extras = project.get("optional-dependencies", {}).values()
    return [*project.get("dependencies", ()), *(r for extra in extras for r in extra)]


def third_party(*, dev: bool) -> list[str]:
    """Every requirement of the tree that is not itself in the tree; with `dev`, build backends and tools too."""
    found: set[str] = set()
    for folder in distributions():
        found.update(runtime_requirements(folder))
        if dev:
            found.update(read(folder)["build-system"]["requires"])
    if dev:
        found.update(read(ROOT)["dependency-groups"]["dev"])
    return sorted(r for r in found if not is_ours(r))


def pinned() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return {normalized(line) for line in lines if line.strip() and not line.startswith("#")}


def pip(python: Path, *arguments: str | Path) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise SystemExit(f"install: this failed: {' '.join(command)}")


def installed(python: Path) -> set[str]:
    """Our distributions that the environment has."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {normalized(row["name"]) for row in json.loads(listed) if is_ours(row["name"])}


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """One installation in this tree at a time."""
    handle = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def make_environment(venv: Path) -> None:
    """Everything of the tree, editable, with the development tools."""
    started = time.time()
    stamp = venv / ".up-to-date"
    python = venv / "bin" / "python"
    if not python.exists():
        create = subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=False)
        if create.returncode:
            shutil.rmtree(venv, ignore_errors=True)
            raise SystemExit(
                "install: Python cannot make a virtual environment here; its venv or ensurepip module is missing.\n"
                "         On Debian and Ubuntu: apt-get install python3-venv"
            )
    pip(python, "install", "-q", "-c", "constraints.txt", *third_party(dev=True))
    names = {project_name(folder): folder for folder in distributions()}
    have = installed(python)
    if gone := sorted(have - names.keys()):  # their entry points would still be found
        pip(python, "uninstall", "-q", "-y", *gone)
    # Building the editable wheels takes a second each: only those that are new or changed.
    last = stamp.stat().st_mtime if stamp.exists() else 0.0
    due = [f for name, f in names.items() if name not in have or (f / "pyproject.toml").stat().st_mtime > last]
    # Somebody has only begun with these: no reason to stop everybody else (tests/packaging insists on them later).
    begun = [f for f in due if not (f / "README.md").exists() or not list(f.glob("src/*/__init__.py"))]
    if due := [f for f in due if f not in begun]:
        pip(python, "install", "-q", *OFFLINE, *(a for folder in due for a in ("-e", folder)))
    if begun:
        which = ", ".join(str(f.relative_to(ROOT)) for f in begun)
        print(f"install: left out until they have a README.md and a package: {which}", file=sys.stderr)
        return
    stamp.touch()
    os.utime(stamp, (started, started))  # what changed meanwhile is newer


def make_wheels(venv: Path, target: Path) -> None:
    """Our wheels, and those of what they need: `pip install --no-index --find-links dist` then works by itself."""
    python = venv / "bin" / "python"
    shutil.rmtree(target, ignore_errors=True)
    pip(python, "wheel", "-q", "-w", target, *OFFLINE, *distributions())
    pip(python, "wheel", "-q", "-w", target, "-c", "constraints.txt", *third_party(dev=False))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--env", action="store_true", help="make or refresh the environment")
    what.add_argument("--wheels", type=Path, metavar="FOLDER", help="build all wheels into FOLDER")
    what.add_argument("--list", action="store_true", help="print the third-party requirements")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    options = parser.parse_args(arguments)
    requirements = third_party(dev=True)
    if options.list:
        print(*requirements, sep="\n")
        return
    if loose := [r for r in requirements if normalized(r) not in pinned()]:
        raise SystemExit(f"install: not in constraints.txt, add a pinned version there: {', '.join(loose)}")
    with lock():
        if options.env:
            make_environment(options.venv)
        else:
            make_wheels(options.venv, options.wheels)


if __name__ == "__main__":
    main()
