"""Fake distributions: hand-written ``*.dist-info`` folders and modules in a folder on ``sys.path``. No pip."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from taskq._plugins import PluginManager

HEAD = """
from dataclasses import dataclass
from taskq.spi import *
from taskq.spi import hookimpl
def factory(config):
    return config
def capabilities(options):
    return Capabilities()
"""


class Site:
    """A folder that stands for ``site-packages``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def distribution(
        self,
        name: str,
        entries: Mapping[str, Mapping[str, str]] | str = "",
        version: str = "1.0",
        requires: Sequence[str] = (),
        metadata: str | None = None,
    ) -> Path:
        """Write the metadata of a distribution; ``entries`` is group → name → value, or the text of the file."""
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        if metadata is None:
            metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            metadata += "".join(f"Requires-Dist: {r}\n" for r in requires)
        (info / "METADATA").write_text(metadata)
        if not isinstance(entries, str):
            entries = "\n".join(
                f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in pairs.items()) for group, pairs in entries.items()
            )
        (info / "entry_points.txt").write_text(entries)
        importlib.invalidate_caches()
        return info

    def module(self, name: str, body: str, *, head: str = HEAD) -> None:
        (self.folder / f"{name}.py").write_text(head + body)
        importlib.invalidate_caches()

    def transport(self, distribution: str, module: str, *schemes: str, spec: str = "", version: str = "1.0") -> None:
        """Write a working transport; ``spec`` are more arguments of its ``TransportSpec``."""
        self.distribution(distribution, {"taskq.transports": dict.fromkeys(schemes, module)}, version)
        self.module(module, _transport(schemes, spec))

    def contribution(self, distribution: str, module: str, body: str, name: str = "") -> None:
        self.distribution(distribution, {"taskq.plugins": {name or module: module}})
        self.module(module, body)

    def manager(self, **settings: Any) -> PluginManager:
        """Return a manager that sees these distributions alone."""
        found = list(importlib.metadata.distributions(path=[str(self.folder)]))
        return PluginManager(distributions=found, **settings)

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script in a fresh interpreter that has this folder first on its path."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("TASKQ_", "COVERAGE_"))}
        environ |= {"PYTHONPATH": os.pathsep.join([str(self.folder), *filter(None, sys.path)]), **environment}
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=50)


def _transport(schemes: Sequence[str], spec: str = "") -> str:
    return f"""
@hookimpl
def taskq_transport(scheme):
    return TransportSpec(**dict(spi='0.1', name={schemes[0]!r}, schemes={tuple(schemes)!r}, factory=factory,
                                capabilities=capabilities) | dict({spec}))
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    before = set(sys.modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    folder = tmp_path / "site"
    made = Site(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield made
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]
