"""``taskq config show`` and ``check``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from taskq.cli.config import config
from taskq.config import load
from taskq.errors import ConfigError


def run(*arguments: str, obj: Any = None, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(config, arguments, obj=obj, env=env)


def test_show_what_differs(home: Path) -> None:
    (home / "taskq.toml").write_text(
        'broker = "redis://u:pw@h/0"\n[worker]\npool = "solo"\n[queues.a]\n[queues."b c"]\nweight = 2\n'
    )
    result = run("show", env={"TASKQ_RESULT_TTL": "1h"})
    assert result.exit_code == 0
    lines = [[part.strip() for part in line.split("  # ")] for line in result.output.splitlines()]
    assert lines == [
        ['broker = "redis://u:***@h/0"', f"{home}/taskq.toml:1"],
        ['result_store = "auto"', "default"],
        ['queues."b c".weight = 2', f"{home}/taskq.toml:6"],
        ["result_ttl = 3600.0", "environment TASKQ_RESULT_TTL"],
        ['worker.pool = "solo"', f"{home}/taskq.toml:3"],
        ["queues.a = {}", f"{home}/taskq.toml:4"],
    ]


def test_show_all_is_a_file_that_can_be_read_back(home: Path) -> None:
    import tomllib

    (home / "taskq.toml").write_text(
        '[[routes]]\nmatch = "a"\nqueue = "b"\n[queues.a]\noptions = { x = [1, { y = "z" }] }\n'
    )
    result = run("show", "--all")
    assert result.exit_code == 0
    again = tomllib.loads(result.output)
    assert again["queues"]["a"]["options"] == {"x": [1, {"y": "z"}]}
    assert again["routes"] == [{"match": "a", "queue": "b"}]
    assert again["worker"]["grace"] == 25.0
    assert "# default; time for running tasks to end after TERM [s]" in result.output
    (home / "taskq.toml").write_text("")
    assert (
        load(again, environ={}).settings
        == load({"routes": again["routes"], "queues": again["queues"]}, environ={}).settings
    )


def test_show_json(home: Path) -> None:
    (home / "taskq.toml").write_text('broker = "redis://u:pw@h/0"\n')
    result = run("show", "--json", env={"TASKQ_NOPE": "1"})
    data = json.loads(result.output)
    assert data["file"] == str(home / "taskq.toml")
    assert data["settings"][0] == {
        "name": "broker",
        "value": "redis://u:***@h/0",
        "source": "file",
        "where": f"{home}/taskq.toml:1",
    }
    assert "TASKQ_NOPE" in data["warnings"][0]


def test_show_uses_the_application(home: Path) -> None:
    (home / "taskq.toml").write_text("max_retries = 1\n")
    app = SimpleNamespace(config=load({"worker.pool": "solo"}, isolated=True, code_where="app.py:1"))
    output = run("show", obj=app).output
    assert "worker.pool" in output
    assert "# code app.py:1" in output
    assert "max_retries" not in output


def test_show_of_a_broken_configuration(home: Path) -> None:
    (home / "taskq.toml").write_text("brokr = 1\nmax_retries = 'x'\n")
    result = run("show")
    assert result.exit_code == 1
    assert "did you mean 'broker'" in result.output
    assert "max_retries" in result.output


def test_check_lists_every_problem(home: Path) -> None:
    (home / "taskq.toml").write_text("brokr = 1\nmax_retries = 'x'\n")
    result = run("check", env={"TASKQ_WORKER_GRACE": "-1", "TASKQ_NOPE": "1"})
    assert result.exit_code == 1
    assert [line.partition(" (")[0] for line in result.stdout.splitlines()] == [
        "error: unknown setting 'brokr'",
        "error: max_retries: expected a whole number, at least 0, found 'x'",
        "error: worker.grace: expected a number of seconds, at least 0, found '-1'",
    ]
    assert "warning: " in result.stderr
    assert "TASKQ_NOPE" in result.stderr


def test_check_of_a_right_configuration(home: Path) -> None:
    result = run("check")
    assert (result.exit_code, result.output) == (0, "the configuration is right (no file)\n")
    (home / "taskq.toml").write_text("max_retries = 1\n")
    assert str(home) in run("check").output


def test_check_uses_the_application_and_its_inputs(home: Path) -> None:
    found: list[ConfigError] = []
    app = SimpleNamespace(config=load({"nope": 1}, isolated=True, problems=found))
    result = run("check", obj=app)
    assert result.exit_code == 1
    assert "'nope' (code)" in result.output


class Failing:
    """An application that cannot be made."""

    @property
    def config(self) -> Any:
        raise ConfigError("the application says no")


def test_an_application_that_cannot_be_made(home: Path) -> None:
    result = run("show", obj=Failing())
    assert result.exit_code == 1
    assert "the application says no" in result.output
    result = run("check", obj=Failing())
    assert result.exit_code == 1
    assert "error: the application says no" in result.output
    (home / "taskq.toml").write_text("brokr = 1\n")
    assert "brokr" in run("check", obj=Failing()).output


def test_a_section_without_its_plugin_is_noted(home: Path) -> None:
    (home / "taskq.toml").write_text("[transports.nosuchthing]\nsize = 1\n")
    result = run("check")
    assert result.exit_code == 0
    assert "warning: the section transports.nosuchthing has no effect" in result.stderr
    assert "transports.nosuchthing.size = 1" in run("show").output


@pytest.mark.parametrize("module", ["taskq.config"])
def test_reading_is_cheap(module: str, home: Path) -> None:
    code = f"""
import sys
import {module} as config
config.load(environ={{}}, isolated=False, cwd="/")
heavy = {{"tomllib", "click", "difflib", "dataclasses", "inspect", "zoneinfo", "pathlib", "taskq._plugins"}}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    code = "import sys; import taskq.spi; before = set(sys.modules)\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_itself(home: Path) -> None:
    (home / "other.toml").write_text('[worker]\npool = "solo"\n')
    taskq = [sys.executable, "-c", "from taskq.cli import main; main()"]
    show = subprocess.run([*taskq, "config", "show", "--config", "other.toml", "--broker", "sqlite:///x.db"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    broker, store, pool = (" ".join(line.split()) for line in show.stdout.splitlines())
    assert broker.startswith('broker = "sqlite:///x.db" # command line -')
    assert store == 'result_store = "auto" # default'
    assert pool == f'worker.pool = "solo" # {home}/other.toml:2'
    check = subprocess.run([*taskq, "--broker", "x", "config", "check"], capture_output=True, text=True, check=False)
    assert check.returncode == 1
    assert check.stdout.startswith("error: broker: expected a URL")
