"""A secret never appears: not in a repr, not in a listing, not in an error or warning."""

from __future__ import annotations

import json
import traceback
import warnings
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from taskq.cli.config import config as command
from taskq.config import Given, LoadedConfig, Origin, load, redact
from taskq.errors import ConfigError
from taskq.spi import option

# Marked at both ends, so that a part that shows is found as well.
secrets = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=12).map(
    lambda inner: f"zq7{inner}zq8"
)
awkward = st.text("@/:?#&=;[]% \"'\\{},", max_size=8).map(lambda inner: f"zq7{inner}zq8")


@dataclass(frozen=True)
class Options:
    innocuous: str | None = option(None, help="A secret whose name does not tell.", secret=True)
    number: int | None = option(None, help="A secret that must be a number.", secret=True)


def everything_shown(code: dict[str, Any], query: list[tuple[str, str]] | None = None) -> str:
    """Return all text that the configuration gives for some settings, right or wrong."""
    texts: list[str] = []

    def attempt(loaded: LoadedConfig) -> None:
        for section, name in [*loaded.unchecked(), ("transports", "x")]:
            try:
                texts.append(repr(loaded.plugin_options(section, name, Options, query or ())))
            except ConfigError as error:
                texts.extend(traceback.format_exception(error))
        result = CliRunner().invoke(command, ["show", "--all"], obj=type("Main", (), {"config": loaded})())
        texts.extend((result.output, repr(loaded), repr(loaded.settings), repr(loaded.rows(every=True))))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        problems: list[ConfigError] = []
        attempt(load(code, isolated=True, problems=problems))
        texts += [line for problem in problems for line in traceback.format_exception(problem)]
        environ = {
            f"TASKQ_{'__'.join(path)}".upper(): value if isinstance(value, str) else json.dumps(value)
            for path, value in flat(code)
        }
        problems = []
        loaded = load(environ=environ, cwd="/", problems=problems)
        attempt(loaded)
        texts += [*loaded.warnings, *map(str, problems)]
        try:
            load(code, isolated=True)
        except ConfigError as error:
            texts += traceback.format_exception(error)
    return "\n".join([*texts, *(str(w.message) for w in caught)])


def flat(tables: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in tables.items():
        deeper = isinstance(value, dict) and len(prefix) < 2
        found += flat(value, (*prefix, key)) if deeper else [((*prefix, key), value)]
    return found


def assert_hidden(shown: str, secret: str) -> None:
    leaked = [line for line in shown.splitlines() if "zq7" in line or "zq8" in line]
    assert not leaked, (secret, leaked)


@settings(max_examples=20)
@given(secrets)
def test_password_of_a_url(secret: str) -> None:
    url = f"redis://user:{quote(secret, safe='')}@host:1/0"
    shown = everything_shown({"broker": url, "result_store": [url, "redis://other"]})
    assert_hidden(shown, secret)
    assert "redis://user:***@host:1/0" in shown


@settings(max_examples=40)
@given(awkward)
def test_password_of_a_url_that_was_not_quoted(secret: str) -> None:
    for url in (
        f"redis://user:{secret}@host/0",
        f"redis:user:{secret}@host",
        f"redis://:{secret}@host;redis://b",
        f"redis://host/0?password={secret}",
        f"redis://user:{secret.replace('@', '')}/",
    ):
        assert_hidden(everything_shown({"broker": url}), secret)


@settings(max_examples=20)
@given(secrets)
def test_query_of_a_url(secret: str) -> None:
    url = f"redis://host/0?innocuous={quote(secret, safe='')}"
    assert_hidden(
        everything_shown({"broker": url}, [("innocuous", secret), ("bogus", secret), ("number", secret)]), secret
    )


@settings(max_examples=20)
@given(secrets)
def test_secret_options_of_plugins(secret: str) -> None:
    table = {"innocuous": secret, "number": secret, "bogus": secret}
    assert_hidden(everything_shown({"transports": {"x": table, "unknown_plugin": table}}), secret)


@settings(max_examples=20)
@given(secrets)
def test_secrets_in_free_tables_and_wrong_places(secret: str) -> None:
    for code in (
        {
            "queues": {
                "q": {"options": {"password": secret, "url": f"amqp://u:{secret}@h", "deep": [{"api_key": secret}]}}
            }
        },
        {"schedules": {"s": {"task": "t", "rule": "every 1", "kwargs": {"token": secret}}}},
        {"schedules": {"s": {"task": "t", "kwargs": {"token": secret}}}},
        {"queues": {"q": {"weight": {"password": secret}}}},
        {"queues": {"q": {"weight": '{"password": "' + secret}}},
        {"worker": {"concurrency": f"amqp://u:{secret}@h"}},
        {"routes": [{"match": "m", "password": secret}]},
        {
            "unknown": secret,
            "pasword": {"a": secret},
            "broker_url": secret,
            "transports": {"x": {"a": {"b": secret}}},
        },
        {"brokers": {"a": secret}},
    ):
        assert_hidden(everything_shown(code), secret)


@given(st.integers(min_value=10**6))
def test_numbers_that_are_secret(secret: int) -> None:
    assume(str(secret) not in repr(load({}, isolated=True).rows(every=True)))  # a default of another setting
    loaded = load({"transports.x.number": secret}, isolated=True)
    assert loaded.plugin_options("transport", "x", Options).number == secret
    assert str(secret) not in repr(loaded.rows(every=True))


def test_a_file_that_is_not_toml(tmp_path: Any) -> None:
    (tmp_path / "taskq.toml").write_text('broker = "redis://u:zq7zq8@h"\nbroker = "redis://u:zq7zq8@h"\n')
    with pytest.raises(ConfigError) as error:
        load(environ={}, cwd=tmp_path)
    assert_hidden("".join(traceback.format_exception(error.value)), "")


def test_values_on_their_way() -> None:
    assert "zq7" not in repr(Given("zq7", Origin("command line", "--broker")))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)
                    | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_what_is_shown_is_plain_data(value: Any) -> None:
    shown = redact(value)
    assert json.loads(json.dumps(shown)) == shown
