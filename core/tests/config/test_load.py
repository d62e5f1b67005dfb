"""Sources, their order, and the answers to what is wrong in them."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.config import ConfigWarning, Given, LoadedConfig, Origin, QueueSettings, RouteSettings, Settings, load
from taskq.config.merge import dotted, leaves, variables
from taskq.config.sources import read_file
from taskq.errors import ConfigError, UnknownSetting
from taskq.spi import Url

Loader = Callable[..., LoadedConfig]


def problems_of(loader: Loader, *args: Any, **options: Any) -> list[str]:
    found: list[ConfigError] = []
    loader(*args, problems=found, **options)
    return [str(problem) for problem in found]


# ------------------------------------------------------------------------------------------------------------- order


@given(st.sets(st.sampled_from(["plugin", "code", "file", "environment", "command line"])))
def test_the_strongest_source_wins(tmp_path_factory: pytest.TempPathFactory, sources: set[str]) -> None:
    folder = tmp_path_factory.mktemp("c")
    if "file" in sources:
        (folder / "taskq.toml").write_text("max_retries = 3\n")
    loaded = load(
        {"max_retries": 2} if "code" in sources else {},
        cli={"max_retries": 5} if "command line" in sources else {},
        plugin_defaults={"contrib": {"max_retries": 1}} if "plugin" in sources else {},
        environ={"TASKQ_MAX_RETRIES": "4"} if "environment" in sources else {},
        cwd=folder,
    )
    order = ["plugin", "code", "file", "environment", "command line"]
    winner = max(sources, key=order.index, default="default")
    assert loaded.settings.max_retries == (order.index(winner) + 1 if sources else 3)
    assert loaded.origin("max_retries").kind == winner


def test_tables_merge_key_by_key_and_lists_replace(loader: Loader) -> None:
    loaded = loader(
        {"worker": {"pool": "solo", "grace": 1}, "queues": {"a": {"priority": 1, "weight": 2}}, "include": ["x", "y"]},
        file='include = ["z"]\n[worker]\npool = "threads"\n[queues.a]\npriority = 9\n[queues.b]\n',
    )
    assert (loaded.settings.worker.pool, loaded.settings.worker.grace) == ("threads", 1.0)
    assert loaded.settings.queues == {"a": QueueSettings(priority=9, weight=2), "b": QueueSettings()}
    assert loaded.settings.include == ("z",)


def test_where_each_value_came_from(loader: Loader, home: Path) -> None:
    loaded = loader(
        {"serializer": "json", "worker.grace": 3},
        file='broker = "redis://h"\n\n[worker]\n# the pool\npool = "solo"\n[transports.redis]\nsize = 4\n',
        environ={"TASKQ_WORKER_CONCURRENCY": "2"},
        cli={"result_ttl": 60, "worker.log_level": Given("DEBUG", Origin("command line", "-l"))},
        plugin_defaults={"taskq-contrib-x": {"track_started": True}},
        code_where="app.py:3",
    )
    expected = {
        "serializer": "code app.py:3", "worker.grace": "code app.py:3", "broker": f"{home}/taskq.toml:1",
        "worker.pool": f"{home}/taskq.toml:5", "worker.concurrency": "environment TASKQ_WORKER_CONCURRENCY",
        "result_ttl": "command line", "worker.log_level": "command line -l", "track_started": "plugin taskq-contrib-x",
        "accept": "default", "transports.redis.size": f"{home}/taskq.toml:7", "queues.nobody.priority": "default",
        "worker": "command line -l",
    }  # fmt: skip
    assert {name: str(loaded.origin(name)) for name in expected} == expected
    with pytest.raises(UnknownSetting, match=r"did you mean 'worker\.pool'"):
        loaded.origin("worker.pol")


def test_of_several_contributions_the_first_counts(loader: Loader) -> None:
    loaded = loader(plugin_defaults={"plugin a (1)": {"max_retries": 1}, "b": {"max_retries": 2, "result_ttl": 9}})
    assert (loaded.settings.max_retries, loaded.settings.result_ttl) == (1, 9.0)
    assert str(loaded.origin("max_retries")) == "plugin a (1)"


def test_a_contribution_may_not_choose_plugins(loader: Loader) -> None:
    for defaults in ({"plugins": {"only": []}}, {"plugins.blocked": ["x"]}):
        with pytest.raises(ConfigError, match=r"evil offers defaults for plugins\.\*"):
            loader(plugin_defaults={"evil": defaults})


def test_dotted_keys_in_code(loader: Loader) -> None:
    loaded = loader(
        {"worker.pool": "solo", "queues.eu.west.priority": 3, "queues.us": {"ordered": True}, "worker": {"grace": 1}}
    )
    assert loaded.settings.worker.pool == "solo"
    assert loaded.settings.worker.grace == 1.0
    assert loaded.settings.queues == {"eu.west": QueueSettings(priority=3), "us": QueueSettings(ordered=True)}
    assert loaded.origin("queues.eu.west.priority").kind == "code"


def test_none_is_not_given(loader: Loader) -> None:
    loaded = loader(
        {"broker": None, "worker": {"pool": None}}, file='broker = "redis://h"\n', cli={"broker": None, "worker": None}
    )
    assert loaded.settings.broker == (Url.parse("redis://h"),)
    assert loaded.origin("worker.pool").kind == "default"


def test_isolated_ignores_files_and_environment(loader: Loader, home: Path) -> None:
    environ = {"TASKQ_MAX_RETRIES": "9", "TASKQ_CONFIG": "/nowhere", "TASKQ_BOGUS": "1"}
    loaded = loader({"worker.grace": 1}, file="nonsense", environ=environ, isolated=True, cli={"worker.pool": "solo"})
    assert loaded.settings.max_retries == 3
    assert (loaded.settings.worker.grace, loaded.settings.worker.pool) == (1.0, "solo")
    assert loaded.file is None
    assert loaded.warnings == ()
    with pytest.raises(ConfigError, match="isolated"):
        loader(isolated=True, config_file=home / "taskq.toml")


def test_reloaded_keeps_what_is_not_changed(loader: Loader, home: Path) -> None:
    environ = {"TASKQ_RESULT_TTL": "60"}
    (home / "elsewhere" / ".git").mkdir(parents=True)
    first = loader({"max_retries": 7}, file="publish_retries = 1\n", environ=environ, cwd=None)
    os.chdir(home / "elsewhere")
    second = first.reloaded(cli={"worker.pool": "solo"})
    assert (second.settings.max_retries, second.settings.publish_retries, second.settings.result_ttl) == (7, 1, 60)
    assert second.settings.worker.pool == "solo"
    assert first.settings.worker.pool == "auto"


def test_result_store_none_auto_and_url(loader: Loader) -> None:
    assert loader().settings.result_store is None
    assert loader({"result_store": "none"}).settings.result_store == ()
    assert loader({"result_store": "none"}, environ={"TASKQ_RESULT_STORE": "auto"}).settings.result_store is None
    assert loader({"result_store": "redis://h"}).settings.result_store == (Url.parse("redis://h"),)
    assert loader({"broker": ["amqp://a", "amqp://b"]}).settings.broker == (
        Url.parse("amqp://a"),
        Url.parse("amqp://b"),
    )


def test_settings_are_frozen_and_picklable(loader: Loader) -> None:
    settings = loader(file='[queues.a]\n[[routes]]\nmatch = "x.*"\nqueue = "a"\n').settings
    with pytest.raises(AttributeError):
        settings.max_retries = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        settings.worker.grace = 1  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert Settings() == loader(isolated=True).settings


# ------------------------------------------------------------------------------------------------------------- files


def test_search_goes_upward_to_the_first_that_has_settings(home: Path) -> None:
    inner = home / "a" / "b"
    inner.mkdir(parents=True)
    (home / "a" / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["taskq-core"]\n')
    (home / "taskq.toml").write_text("max_retries = 1\n")
    assert load(environ={}, cwd=inner).settings.max_retries == 1
    (home / "a" / "pyproject.toml").write_text("[tool.ruff]\n[tool.taskq]\nmax_retries = 2\n")
    loaded = load(environ={}, cwd=inner)
    assert loaded.settings.max_retries == 2
    assert str(loaded.origin("max_retries")) == f"{home}/a/pyproject.toml:3"
    (inner / "taskq.toml").write_text("max_retries = 4\n")
    assert load(environ={}, cwd=inner).file == str(inner / "taskq.toml")


@pytest.mark.parametrize("marker", [".git", ".hg"])
def test_search_ends_at_the_repository(home: Path, marker: str) -> None:
    (home / "taskq.toml").write_text("max_retries = 1\n")
    inner = home / "repo" / "src"
    inner.mkdir(parents=True)
    (home / "repo" / marker).mkdir()
    assert load(environ={}, cwd=inner).file is None
    (home / "repo" / "taskq.toml").write_text("max_retries = 2\n")
    assert load(environ={}, cwd=inner).settings.max_retries == 2


def test_search_ends_at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "taskq.toml").write_text("max_retries = 1\n")
    (home / "user").mkdir()
    monkeypatch.setenv("HOME", str(home / "user"))
    assert load(environ={}, cwd=home / "user").file is None


def test_both_files_in_one_folder_warn(home: Path) -> None:
    (home / "taskq.toml").write_text("max_retries = 1\n")
    (home / "pyproject.toml").write_text("[tool.taskq]\nmax_retries = 2\n")
    with pytest.warns(ConfigWarning, match=r"pyproject.toml is not read, because .*taskq.toml is there"):
        assert load(environ={}, cwd=home).settings.max_retries == 1


def test_a_deleted_working_directory_is_no_problem(home: Path) -> None:
    (home / "gone").mkdir()
    os.chdir(home / "gone")
    (home / "gone").rmdir()
    assert load(environ={}).file is None


def test_named_file(loader: Loader, home: Path) -> None:
    (home / "other.toml").write_text("max_retries = 8\n")
    (home / "third.toml").write_text("max_retries = 9\n")
    environ = {"TASKQ_CONFIG": str(home / "other.toml")}
    assert loader(file="max_retries = 1", environ=environ).settings.max_retries == 8
    assert loader(environ=environ, config_file=home / "third.toml").settings.max_retries == 9
    assert loader(environ=environ, config_file="third.toml").file == str(home / "third.toml")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.toml", None, "cannot read the configuration file .*missing.toml: No such file"),
        ("folder", "", "cannot read the configuration file .*folder: Is a directory"),
        ("broken.toml", b"a = \n", r"broken.toml is not TOML: syntax error \(at line 1, column 5\)"),
        ("latin.toml", b"a = '\xe9'\n", "latin.toml is not TOML"),
        ("pyproject.toml", b"[project]\nname = 'taskq'\n", r"pyproject.toml has no \[tool.taskq\] section"),
        ("pyproject.toml", b"tool = 3 # taskq\n", r"pyproject.toml has no \[tool.taskq\] section"),
    ],
)
def test_a_named_file_that_cannot_be_used(home: Path, name: str, content: bytes | None, message: str) -> None:
    if content == "":
        (home / name).mkdir()
    elif content is not None:
        (home / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(environ={"TASKQ_CONFIG": name})
    with pytest.raises(ConfigError, match=message):
        load(environ={}, config_file=home / name)


def test_own_file_with_the_header_of_pyproject(loader: Loader) -> None:
    with pytest.raises(UnknownSetting, match=r"without \[tool.taskq\]"):
        loader(file="[tool.taskq]\nmax_retries = 1\n")


keys = st.text("abcdefgh_-", min_size=1, max_size=6) | st.sampled_from(['"a b"', "'c.d'", '"e#"'])
filler = st.sampled_from(['s = """\nx = 1\n[y]\n"""', "# [z]", "", "l = [\n  1,\n  2,\n]", "m = '''\n[w]\nq = 1\n'''"])


@given(st.lists(st.tuples(keys, st.lists(st.tuples(keys, filler), max_size=4, unique_by=lambda p: p[0])),
                max_size=5, unique_by=lambda p: p[0].strip("\"'")))  # fmt: skip
def test_lines_of_a_file(tmp_path_factory: pytest.TempPathFactory, tables: list[Any]) -> None:
    text = ""
    expected: dict[tuple[str, ...], int] = {}
    for number, (table, pairs) in enumerate(tables):
        text += f"[{table}]\n"
        expected[table.strip("\"'"),] = text.count("\n")
        for key, between in pairs:
            path = (table.strip("\"'"), key.strip("\"'") + str(number))
            text += between.replace("s =", f"s{text.count(chr(10))} =").replace("l =", f"l{text.count(chr(10))} =")
            text = text.replace("m =", f"m{text.count(chr(10))} =") + "\n"
            text += f"{key[0] if key[0] in QUOTES else ''}{path[1]}{key[0] if key[0] in QUOTES else ''} = 1\n"
            expected[path] = text.count("\n")
    file = tmp_path_factory.mktemp("t") / "taskq.toml"
    file.write_text(text)
    read = read_file(str(file))
    assert read is not None
    for path, line in expected.items():
        assert read.origin(path).where == f"{file}:{line}", text
        assert read.origin((*path, "below")).where == f"{file}:{line}"


QUOTES = "\"'"

# ------------------------------------------------------------------------------------------------------- environment


def test_every_setting_has_its_own_variable() -> None:
    plain = {path: name for name, path in variables().items() if "__" not in name}
    assert len(set(plain.values())) == len(plain)
    assert set(plain) >= {path for path in leaves() if "*" not in path}
    assert plain["broker",] == "TASKQ_BROKER"
    assert plain["result_store",] == "TASKQ_RESULT_STORE"
    assert plain["worker", "max_tasks_per_child"] == "TASKQ_WORKER_MAX_TASKS_PER_CHILD"
    assert not {"TASKQ_APP", "TASKQ_CONFIG"} & set(variables())
    # Kubernetes makes these beside services called taskq, taskq-worker …
    assert not [name for name in variables() if name.endswith(("_PORT", "_SERVICE_HOST"))]


def test_variables_are_read_as_text(loader: Loader) -> None:
    environ = {
        "TASKQ_BROKER": "redis://a;redis://b", "TASKQ_WORKER_CONCURRENCY": "3", "TASKQ_WORKER__POOL": "solo",
        "TASKQ_WORKER_QUEUES": "a, b", "TASKQ_TRACK_STARTED": "yes", "TASKQ_RESULT_TTL": "1h",
        "TASKQ_QUEUES": '{"Mail": {"priority": 3}}', "TASKQ_QUEUES__MAIL__WEIGHT": "4",
        "TASKQ_QUEUES__NEW__ORDERED": "1",
        "TASKQ_ROUTES": '[{"match": "a.*", "queue": "q", "priority": "2"}]', "TASKQ_WORKER_NAME": "",
        "TASKQ_PLUGINS_CHOOSE": "transport:redis=mine", "TASKQ_WORKER_AUTOSCALE": "2,8",
        "TASKQ_SCHEDULES__TICK__TASK": "t", "TASKQ_SCHEDULES__TICK__RULE": "every 5",
    }  # fmt: skip
    settings = loader(environ=environ).settings
    assert len(settings.broker) == 2
    assert (settings.worker.concurrency, settings.worker.pool, settings.worker.queues) == (3, "solo", ("a", "b"))
    assert (settings.track_started, settings.result_ttl, settings.worker.name) == (True, 3600.0, None)
    assert settings.queues == {"Mail": QueueSettings(priority=3, weight=4), "new": QueueSettings(ordered=True)}
    assert settings.routes == (RouteSettings(match="a.*", queue="q", priority=2),)
    assert settings.plugins.choose == {"transport:redis": "mine"}
    assert settings.worker.autoscale == (2, 8)
    assert settings.schedules["tick"].rule == "every 5"


def test_unknown_variables_only_warn(loader: Loader) -> None:
    environ = {
        "TASKQ_BROKR": "secret1", "TASKQ_PORT": "tcp://10.0.0.1:80", "TASKQ_PORT_80_TCP_ADDR": "10.0.0.1",
        "TASKQ_SERVICE_HOST": "10.0.0.1", "TASKQ_RESULT_BACKEND": "secret2", "TASKQ_QUEUES__A__BOGUS": "secret3",
    }  # fmt: skip
    with pytest.warns(ConfigWarning) as caught:
        loaded = loader(environ=environ)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert loaded.warnings == (text,)
    assert all(name in text for name in environ)
    assert "TASKQ_BROKR (did you mean TASKQ_BROKER or TASKQ_BROKERS?)" in text
    assert "here it is result_store" in text
    assert "Kubernetes" in text
    assert "secret" not in text
    assert loaded.settings == Settings()


def test_variables_that_belong_to_others_are_ignored(loader: Loader) -> None:
    others = ("TASKQ_APP", "TASKQ_TEST_REDIS_URL", "TASKQ_SEED", "TASKQ_SOAK", "CELERY_BROKER_URL", "PATH", "TASKQX")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loader(environ=dict.fromkeys(others, "1")).warnings == ()


def test_two_spellings_of_one_variable(loader: Loader) -> None:
    with pytest.raises(ConfigError, match=r"TASKQ_WORKER_POOL and TASKQ_WORKER__POOL both set worker\.pool"):
        loader(environ={"TASKQ_WORKER_POOL": "solo", "TASKQ_WORKER__POOL": "threads"})


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ({"brokr": "x"}, "unknown setting 'brokr' (code); did you mean 'broker' or 'brokers'?"),
        ({"worker": {"concurency": 1}}, "unknown setting 'worker.concurency' (code); did you mean 'concurrency'?"),
        ({"concurrency": 1}, "unknown setting 'concurrency' (code); did you mean 'worker.concurrency'?"),
        ({"result-store": "x"}, "unknown setting 'result-store' (code); did you mean 'result_store'?"),
        ({"Broker": "x"}, "unknown setting 'Broker' (code); did you mean 'broker'?"),
        ({"transport": {}}, "unknown setting 'transport' (code); did you mean 'transports'?"),
        ({"zzz": 1}, "unknown setting 'zzz' (code)"),
        ({"worker": {"pool": {"x": 1}}}, "worker.pool: expected text, found {'x': 1} (code)"),
        ({"worker": 3}, "worker: expected a table, found 3 (code)"),
        ({"queues": {"a": {"prio": 1}}}, "unknown setting 'queues.a.prio' (code); did you mean 'priority'?"),
        ({"queues": {"ä.": {"weight": 0}}}, 'queues."ä.".weight: expected a whole number, at least 1, found 0 (code)'),
        ({"worker.grace": -1}, "worker.grace: expected a number of seconds, at least 0, found -1 (code)"),
        ({"worker.autoscale": "9,3"}, "worker.autoscale: the minimum 9 is above the maximum 3 (code)"),
        ({"retry_backoff": 700}, "retry_backoff: it is longer than retry_backoff_max (code)"),
        (
            {"broker": "localhost"},
            (
                "broker: expected a URL or a list of URLs: cannot read it as a URL: it has no scheme; write "
                "SCHEME://…, for example sqlite:// or redis://localhost/0 (code)"
            ),
        ),
        (
            {"routes": [{"match": "a", "queue": "b", "prio": 1}]},
            "unknown setting 'prio' in routes[0] (code); did you mean 'priority'?",
        ),
        ({"routes": [{"match": "a"}]}, "routes[0]: expected a table with match and queue, found {'match': 'a'} (code)"),
        ({"routes": {"a": "b"}}, "routes: expected a list of tables with match and queue, found {'a': 'b'} (code)"),
        (
            {"routes": [{"match": "re:(", "queue": "q"}]},
            "routes: 're:(' is not a regular expression: missing ), unterminated subpattern at position 0 (code)",
        ),
        ({"schedules": {"s": {"task": "t"}}}, "schedules.s lacks rule (code)"),
        ({"transports": {"redis": 4}}, "transports.redis: expected a table, found 4 (code)"),
    ],
)  # fmt: skip
def test_what_is_wrong(loader: Loader, code: dict[str, Any], message: str) -> None:
    found: list[ConfigError] = []
    loader(code, problems=found)
    assert [str(problem).replace('"routes[0]"', "routes[0]") for problem in found] == [message]
    assert isinstance(found[0], UnknownSetting) == message.startswith("unknown")
    with pytest.raises(type(found[0])):
        loader(code)


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("task_acks_late", "delivery"), ("CELERY_ACKS_LATE", "delivery"), ("CELERY_TASK_ACKS_LATE", "delivery"),
        ("broker_url", "broker"), ("BROKER_URL", "broker"), ("CELERY_BROKER_URL", "broker"),
        ("result_backend", "result_store"), ("CELERY_RESULT_BACKEND", "result_store"),
        ("task_serializer", "serializer"),
        ("worker_prefetch_multiplier", "worker.prefetch"), ("CELERYD_PREFETCH_MULTIPLIER", "worker.prefetch"),
        ("CELERYD_CONCURRENCY", "worker.concurrency"), ("CELERYBEAT_SCHEDULE", "schedules"), ("imports", "include"),
        ("CELERY_ALWAYS_EAGER", "task_always_eager"), ("CELERY_DEFAULT_QUEUE", "default_queue"),
        ("result_expires", "result_ttl"), ("accept_content", "accept"),
    ],
)  # fmt: skip
def test_names_of_celery_lead_to_ours(loader: Loader, key: str, ours: str) -> None:
    with pytest.raises(UnknownSetting, match=f"that is Celery's name; here it is {ours}"):
        loader({key: "x"})
    with pytest.raises(UnknownSetting, match=f"that is Celery's name; here it is {ours}"):
        loader(file=f"{key} = 1\n")


def test_names_of_celery_name_settings_that_exist() -> None:
    from taskq.config.celery import _OURS

    known = {dotted(path).replace("*", "NAME") for path in leaves()} | {path[0] for path in leaves()}
    for old, new in _OURS.items():
        words = new.removeprefix("the section ").replace(",", " ").split()
        assert words[0] in known or words[0].removesuffix(".NAME") in known, old
        assert old not in known, f"{old} is one of our names: the hint would never be seen"


def test_other_names_of_celery(loader: Loader) -> None:
    with pytest.raises(UnknownSetting, match="here time limits belong to a task"):
        loader({"task_time_limit": 3})
    with pytest.raises(UnknownSetting, match="a name of Celery's without a counterpart"):
        loader({"CELERY_SECURITY_DIGEST": 3})


@pytest.mark.parametrize(
    "given",
    [
        {"code": {"brokers": {"eu": "redis://h"}}},
        {"code": {"brokers.eu": {"url": ["redis://h"]}}},
        {"code": {"brokers.eu.url": "redis://h"}},
        {"file": "[brokers]\neu = 'redis://h'\n"},
        {"file": "[brokers.eu]\nurl = 'redis://h'\n"},
        {"environ": {"TASKQ_BROKERS__EU": "redis://h"}},
        {"environ": {"TASKQ_BROKERS__EU__URL": "redis://h"}},
        {"environ": {"TASKQ_BROKERS": '{"eu": "redis://h"}'}},
    ],
)
def test_further_brokers(loader: Loader, given: dict[str, Any]) -> None:
    loaded = loader(given.pop("code", {}) | {"queues.a.broker": "eu"}, **given)
    assert [str(url) for url in loaded.settings.brokers["eu"].url] == ["redis://h"]
    assert loaded.settings.queues["a"].broker == "eu"


def test_a_queue_on_a_broker_that_nobody_names(loader: Loader) -> None:
    with pytest.raises(ConfigError, match=r"queues\.a\.broker: there is no broker 'eu-wst'; did you mean 'eu-west'"):
        loader({"brokers": {"eu-west": "redis://h"}, "queues": {"a": {"broker": "eu-wst"}}})
    with pytest.raises(ConfigError, match="under brokers there is none"):
        loader({"queues": {"a": {"broker": "eu"}}})
    with pytest.raises(ConfigError, match=r"brokers\.eu\.url: expected a URL"):
        loader({"brokers": {"eu": 17}})


def test_all_problems_at_once(loader: Loader, home: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loader(
            {"brokr": 1},
            file="max_retries = 'x'\n[worker]\nnope = 1\n",
            environ={"TASKQ_RESULT_TTL": "soon"},
            cli={"worker.grace": "-1"},
        )
    assert type(caught.value) is ConfigError
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 problems in the configuration:"
    assert "'brokr' (code)" in lines[1]
    assert f"max_retries: expected a whole number, at least 0, found 'x' ({home}/taskq.toml:1)" in lines[2]
    assert f"'worker.nope' ({home}/taskq.toml:3)" in lines[3]
    assert (
        "result_ttl: expected a number of seconds, at least 1, found 'soon' (environment TASKQ_RESULT_TTL)" in lines[4]
    )
    assert "found '-1' (command line)" in lines[5]
    with pytest.raises(UnknownSetting, match="2 problems"):
        loader({"a_": 1, "b_": 2}, file="")


def test_a_wrong_value_is_found_though_a_stronger_source_hides_it(loader: Loader) -> None:
    assert len(problems_of(loader, {"max_retries": "many"}, file="max_retries = 3\n")) == 1


def test_collecting_problems_keeps_what_is_right(loader: Loader) -> None:
    found: list[ConfigError] = []
    loaded = loader({"nope": 1, "max_retries": 9, "worker.grace": "x", "schedules.s.task": "t"}, problems=found)
    assert len(found) == 3
    assert (loaded.settings.max_retries, loaded.settings.worker.grace) == (9, 25.0)
    assert loaded.settings.schedules == {}
