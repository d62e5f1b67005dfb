"""Fresh environments for tests that install wheels: in them is what was installed, and nothing came from an index.

An environment starts with the third-party packages that its test names, and what these need, linked from the one that
runs the tests; none of ours, since those are what is being installed. pip then does everything else with
PIP_NO_INDEX=1: what is not in a folder given by --find-links is an error, be it ours or not.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from tests.support.install import distributions, is_ours, normalized

if TYPE_CHECKING:
    import pytest

# hatchling's entry for build front-ends builds the current folder. One process for all is ten times as fast.
BUILD = """
import os, sys
from hatchling.build import build_wheel
target, *folders = sys.argv[1:]
for folder in folders:
    os.chdir(folder)
    print(build_wheel(target))
"""


def run(*command: str | Path, cwd: Path | None = None, ok: int | None = 0, **environment: str) -> str:
    """Run a command without our own settings, and return what it printed on both streams.

    Raises:
        AssertionError: it ended with another exit code than ``ok`` (None: any will do).
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TASKQ_", "PYTEST_", "PIP_", "PYTHON"))}
    clean |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUTF8": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ok is None or done.returncode == ok, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def buildable() -> list[Path]:
    """Our distributions but those that somebody has only begun with: tests/packaging/test_repository sees to them."""
    return [f for f in distributions() if (f / "README.md").exists() and list(f.glob("src/*/__init__.py"))]


def build(folders: Iterable[Path], target: Path) -> list[Path]:
    """Build wheels with the build backend of this environment, and return their paths in the order given."""
    target.mkdir(parents=True, exist_ok=True)
    return [target / line for line in run(sys.executable, "-c", BUILD, target, *folders).split()]


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that ``make`` has filled, once per test run, however many processes the run has."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of the run, above the worker's
    folder = base / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / f"{name}.done").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (base / f"{name}.done").touch()
    return folder


def closure(requirements: Iterable[str]) -> list[importlib.metadata.Distribution]:
    """Return the installed distributions that satisfy requirements, and those that these need; ours are left out."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [(Requirement(text), "") for text in requirements]
    seen = set()
    while todo:
        requirement, extra = todo.pop()
        key = (normalized(requirement.name), frozenset(requirement.extras))
        marker = requirement.marker
        if key in seen or is_ours(requirement.name) or (marker and not marker.evaluate({"extra": extra})):
            continue
        seen.add(key)
        distribution = importlib.metadata.distribution(requirement.name)
        found[key[0]] = distribution
        for text in distribution.requires or ():
            todo += [(Requirement(text), extra) for extra in ("", *requirement.extras)]
    return list(found.values())


def link(requirements: Iterable[str], folder: Path) -> None:
    """Put the packages that satisfy requirements into a folder of packages, as links to this environment's."""
    for distribution in closure(requirements):
        source = Path(str(distribution.locate_file("")))
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            target = folder / top
            if not target.exists():
                target.symlink_to(source / top)


class Environment:
    """A virtual environment with the given third-party requirements, without pip and without anything of ours.

    One that exists is used as it is.
    """

    def __init__(self, folder: Path, *requirements: str) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
        if not self.python.exists():
            run(sys.executable, "-m", "venv", "--without-pip", folder)
        link(requirements, self.packages)

    def pip(self, *arguments: str | Path, ok: int | None = 0) -> str:
        """Run pip on this environment; it knows no index."""
        return run(sys.executable, "-m", "pip", "--python", self.python, *arguments, ok=ok)

    def install(self, *requirements: str | Path, find_links: Sequence[Path] = (), ok: int | None = 0) -> str:
        """Install as the documentation says: from folders of wheels, never from an index."""
        links = [part for folder in find_links for part in ("--find-links", folder)]
        return self.pip("install", "-q", "--no-index", *links, *requirements, ok=ok)

    def run(self, *command: str | Path, cwd: Path | None = None, ok: int | None = 0, **environment: str) -> str:
        """Run a command of this environment (``taskq``, ``python``) outside the source tree."""
        name, *arguments = command
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return run(self.folder / "bin" / name, *arguments, cwd=cwd or self.folder, ok=ok, PATH=path, **environment)
