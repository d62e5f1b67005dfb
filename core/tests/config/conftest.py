"""A folder that no search for a configuration file leaves, and a short way to load from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from taskq.config import LoadedConfig, load


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, current, where the upward search ends."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


Loader = Callable[..., LoadedConfig]


@pytest.fixture
def loader(home: Path) -> Loader:
    """``load`` with the text of a ``taskq.toml`` as ``file``, and an empty environment unless one is given."""

    def call(code: Mapping[str, Any] | None = None, *, file: str | None = None, **options: Any) -> LoadedConfig:
        if file is not None:
            (home / "taskq.toml").write_text(file)
        return load(code, **{"environ": {}, "cwd": home, **options})

    return call
