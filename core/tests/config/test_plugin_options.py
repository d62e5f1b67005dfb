"""Options of plugins: the sources in order, the checks, and the messages that name plugin and place."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.config import ConfigWarning, LoadedConfig, load
from taskq.errors import ConfigError, UnknownSetting
from taskq.spi import NoOptions, option

Loader = Callable[..., LoadedConfig]


@dataclass(frozen=True)
class Options:
    synchronous: Literal["FULL", "NORMAL"] = option("FULL", help="Safety against power loss.")
    busy_timeout: float = option(5.0, help="Wait for a lock.", unit="s", minimum=0)
    password: str | None = option(None, help="Password.", secret=True)
    hosts: tuple[str, ...] = option((), help="Further hosts.")
    extra: dict[str, Any] = option({}, help="Passed on.")  # noqa: RUF009


@dataclass(frozen=True)
class Needy:
    region: str = option(help="Region of the queues")

    def __post_init__(self) -> None:
        if self.region == "moon":
            raise ValueError("no queues on the moon")


def test_defaults(loader: Loader) -> None:
    assert loader().plugin_options("transport", "sqlite", Options) == Options()
    assert loader().plugin_options("pool", "solo", NoOptions) == NoOptions()


ORDER = ["plugin", "code", "file", "environment", "url", "command line"]


@given(st.sets(st.sampled_from(ORDER)))
def test_the_strongest_source_wins(tmp_path_factory: pytest.TempPathFactory, sources: set[str]) -> None:
    folder = tmp_path_factory.mktemp("c")
    if "file" in sources:
        (folder / "taskq.toml").write_text("[transports.sqlite]\nbusy_timeout = 2\n")
    section: dict[str, Any] = {"transports": {"sqlite": {}}}
    loaded = load(
        {"transports": {"sqlite": {"busy_timeout": 1}}} if "code" in sources else section,
        cli={"transports.sqlite.busy_timeout": 5} if "command line" in sources else {},
        plugin_defaults={"c": {"transports.sqlite.busy_timeout": 0}} if "plugin" in sources else {},
        environ={"TASKQ_TRANSPORTS__SQLITE__BUSY_TIMEOUT": "3s"} if "environment" in sources else {},
        cwd=folder,
    )
    query = [("busy_timeout", "4")] if "url" in sources else []
    options = loaded.plugin_options("transport", "sqlite", Options, query)
    winner = max(sources, key=ORDER.index, default="default")
    assert options.busy_timeout == (ORDER.index(winner) if sources else 5)
    assert loaded.origin("transports.sqlite.busy_timeout").kind == winner


def test_texts_are_converted_by_type(loader: Loader) -> None:
    query = [("synchronous", "NORMAL"), ("busy-timeout", "2m"), ("hosts", "a"), ("hosts", "b"), ("extra", '{"x": 1}')]
    options = loader().plugin_options("transport", "sqlite", Options, query)
    assert options == Options(synchronous="NORMAL", busy_timeout=120.0, hosts=("a", "b"), extra={"x": 1})
    assert loader().plugin_options("transport", "sqlite", Options, [("hosts", "a,b")]).hosts == ("a", "b")


@pytest.mark.parametrize("kind", ["result_store", "result_stores"])
def test_kind_and_section_both_name_it(loader: Loader, kind: str) -> None:
    loaded = loader(file="[result_stores.sqlite]\nbusy_timeout = 1\n")
    assert loaded.plugin_options(kind, "sqlite", Options).busy_timeout == 1


def test_names_with_signs_and_aliases(loader: Loader) -> None:
    environ = {"TASKQ_TRANSPORTS__REDIS_CLUSTER__BUSY_TIMEOUT": "3"}
    file = '[transports."redis+cluster"]\nbusy_timeout = 1\nhosts = ["a"]\n[transports.redis]\nsynchronous = "NORMAL"\n'
    loaded = loader(file=file, environ=environ)
    assert loaded.plugin_options("transport", "redis", Options) == Options(synchronous="NORMAL")
    options = loaded.plugin_options("transport", "redis", Options, aliases=["redis+cluster"])
    assert options == Options(synchronous="NORMAL", busy_timeout=3, hosts=("a",))
    assert loaded.unchecked() == []


def test_unknown_options(loader: Loader, home: Path) -> None:
    loaded = loader(
        file="[transports.sqlite]\nsyncronous = 'FULL'\n", environ={"TASKQ_TRANSPORTS__SQLITE__BOGUS": "s3cret"}
    )
    with (
        pytest.warns(ConfigWarning, match="no effect: 'transports.sqlite.bogus'") as caught,
        pytest.raises(UnknownSetting) as error,
    ):
        loaded.plugin_options("transport", "sqlite", Options)
    assert "s3cret" not in str(caught[0].message)
    assert str(error.value) == (
        f"unknown setting 'transports.sqlite.syncronous' ({home}/taskq.toml:2): sqlite has no such option; "
        "did you mean 'synchronous'?"
    )
    with pytest.raises(UnknownSetting, match=r"\(url broker\?hots\): sqlite has no such option; did you mean 'hosts'"):
        loader(file="").plugin_options("transport", "sqlite", Options, [("hots", "a")])
    with pytest.raises(UnknownSetting, match="solo has no such option"):
        loader({"pools.solo.size": 3}).plugin_options("pool", "solo", NoOptions)


def test_wrong_values_name_where_they_came_from(loader: Loader) -> None:
    loaded = loader({"transports.sqlite.busy_timeout": -1}, environ={"TASKQ_TRANSPORTS__SQLITE__SYNCHRONOUS": "OFF"})
    with pytest.raises(ConfigError) as error:
        loaded.plugin_options("transport", "sqlite", Options, [("password", "x"), ("password", "hunter2")])
    assert str(error.value).splitlines() == [
        "3 problems in the configuration:",
        "  transports.sqlite.busy_timeout: expected a number of seconds, at least 0, found -1 (code)",
        (
            "  transports.sqlite.synchronous: expected one of FULL, NORMAL, found 'OFF' "
            "(environment TASKQ_TRANSPORTS__SQLITE__SYNCHRONOUS)"
        ),
        '  transports.sqlite.password: expected text or "none" (url broker?password)',
    ]


def test_required_option(loader: Loader) -> None:
    expected = (
        r"transports\.sqs\.region is needed \(Region of the queues\); set it there or as TASKQ_TRANSPORTS__SQS__REGION"
    )
    with pytest.raises(ConfigError, match=expected):
        loader().plugin_options("transport", "sqs", Needy)
    environ = {"TASKQ_TRANSPORTS__SQS__REGION": "eu"}
    assert loader(environ=environ).plugin_options("transport", "sqs", Needy) == Needy("eu")


def test_a_check_of_the_class_itself(loader: Loader) -> None:
    with pytest.raises(ConfigError, match=r"the options of transports\.sqs were refused: no queues on the moon"):
        loader({"transports.sqs.region": "moon"}).plugin_options("transport", "sqs", Needy)


def test_rows_show_the_section_before_and_after(loader: Loader) -> None:
    loaded = loader({"transports.sqlite": {"busy_timeout": 7, "synchronous": "NORMAL"}})
    before = {row.name: row.value for row in loaded.rows()}
    assert before["transports.sqlite.busy_timeout"] == 7
    assert before["transports.sqlite.synchronous"] == "***"
    assert loaded.unchecked() == [("transports", "sqlite")]
    loaded.plugin_options("transport", "sqlite", Options)
    after = {row.name: row.value for row in loaded.rows()}
    assert after["transports.sqlite.synchronous"] == "NORMAL"
    assert "transports.sqlite.hosts" not in after
    assert loaded.unchecked() == []
    every = {row.name: (row.value, row.origin.kind) for row in loaded.rows(every=True)}
    assert every["transports.sqlite.hosts"] == ([], "default")
    assert every["transports.sqlite.busy_timeout"] == (7.0, "code")


def test_options_of_a_contribution(loader: Loader) -> None:
    loaded = loader(file="[extensions.statsd]\nbusy_timeout = 1\n")
    assert loaded.plugin_options("extension", "statsd", Options).busy_timeout == 1


def test_every_kind_has_a_section() -> None:
    from taskq._plugins import KINDS
    from taskq.config import PLUGIN_SECTIONS

    assert set(KINDS) < set(PLUGIN_SECTIONS)
    assert len(set(itertools.chain(PLUGIN_SECTIONS.values()))) == len(PLUGIN_SECTIONS)
