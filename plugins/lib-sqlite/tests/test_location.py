"""Which file a URL names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from taskq.errors import ConfigError, UrlError
from taskq.spi import parse_urls
from taskq_lib_sqlite import file_for


def path_of(url: str, app: str = "hello") -> str:
    return file_for(parse_urls(url), app)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////var/lib/jobs.db", "/var/lib/jobs.db"),
        ("sqlite:////jobs.db", "/jobs.db"),
        ("sqlite:///var/lib/jobs.db", "/var/lib/jobs.db"),
        ("sqlite:///with%20space/jobs.db", "/with space/jobs.db"),
    ],
)
def test_absolute(url: str, path: str) -> None:
    assert path_of(url) == path


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///jobs.db", "jobs.db"),
        ("sqlite:jobs.db", "jobs.db"),
        ("sqlite://jobs.db", "jobs.db"),
        ("sqlite://./data/jobs.db", "data/jobs.db"),
        ("sqlite://data/jobs.db", "data/jobs.db"),
        ("sqlite://../jobs.db", "../jobs.db"),
    ],
)
def test_relative(url: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_of(url) == os.path.normpath(f"{tmp_path}/{path}")


def test_no_path_is_a_file_named_after_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert path_of("sqlite://") == f"{tmp_path}/taskq/hello.db"
    monkeypatch.setenv("XDG_STATE_HOME", "relative: to be ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("sqlite://") == f"{tmp_path}/.local/state/taskq/hello.db"


@pytest.mark.parametrize("app", ["../../etc/passwd", "a b", "a/b", "", ".", "…", "x" * 300])
def test_the_apps_name_cannot_leave_the_directory(app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = path_of("sqlite://", app)
    assert os.path.dirname(path) == f"{tmp_path}/taskq"
    assert os.path.basename(path).isascii()
    assert len(os.path.basename(path)) < 100


def test_two_apps_never_share_a_file_by_accident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    names = ["a b", "a/b", "a-b", "a.b", "a b "]
    assert len({path_of("sqlite://", name) for name in names}) == len(names)


def test_no_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="name a file"):
        path_of("sqlite://")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:///:memory:", "memory://"),
        ("sqlite::memory:", "memory://"),
        ("sqlite:///a/b/", "names a directory"),
        ("sqlite://user@host/a.db", "no user"),
        ("sqlite://host:12/a.db", "no user, password or port"),
        ("sqlite:///a.db;sqlite:///b.db", "no fail-over"),
    ],
)
def test_refused(url: str, says: str) -> None:
    with pytest.raises(UrlError, match=says):
        path_of(url)
