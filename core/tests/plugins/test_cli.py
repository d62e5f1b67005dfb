"""``taskq plugins …`` as a user meets it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from taskq._plugins import PluginManager
from taskq.cli.plugins import manager_from_context, plugins

POOL = """
@dataclass(frozen=True)
class Mine:
    user: str = option(help="Who.")
    depth: int = option(3, help="How deep.", minimum=1, unit="m")
    mode: str = option("a", help="Which way.", choices=("a", "b"))
    key: str = option("hunter2", help="Opens it.", secret=True)
@hookimpl
def taskq_pool(name):
    return PoolSpec(spi="0.1", name="acme", factory=factory, options=Mine, summary="Runs things.",
                    capabilities=PoolCapabilities(isolation=True, max_concurrency=7, notes=("Mind the gap.",)))
"""


@pytest.fixture
def run(site):
    def invoke(*arguments, **settings):
        return CliRunner().invoke(plugins, arguments, obj=SimpleNamespace(plugins=site.manager(**settings)))

    return invoke


def test_list_is_a_table_of_metadata_with_what_is_wrong_below(site, run):
    site.transport("acme", "acme_plugin", "acme", version="2.5")
    site.transport("other", "other_plugin", "acme")
    site.distribution("damaged", {"taskq.pools": {"x": "y"}}, metadata="")
    result = run("list", blocked=["other"])
    lines = [line.split() for line in result.output.splitlines()]
    assert lines[:4] == [
        ["KIND", "NAME", "DISTRIBUTION", "VERSION", "STATE"],
        ["transport", "acme", "acme", "2.5", "installed"],
        ["transport", "acme", "other", "1.0", "blocked"],
        ["pool", "x", "damaged", "?", "broken"],
    ]
    assert "transport:acme: plugins.blocked names 'other'" in result.output
    assert "pool:x: its METADATA has no name and no version; reinstall it" in result.output
    assert result.exit_code == 0
    assert "\x1b" not in result.output


def test_list_json_is_stable(site, run):
    site.transport("acme", "acme_plugin", "acme")
    data = json.loads(run("list", "--json").output)
    path = data["plugins"][0].pop("path")
    assert path.endswith("acme-1.0.dist-info")
    assert data == {
        "plugins": [
            {"kind": "transport", "name": "acme", "value": "acme_plugin", "distribution": "acme", "version": "1.0",
             "state": "installed", "detail": ""},
        ]
    }  # fmt: skip


def test_list_of_one_kind(site, run):
    site.distribution("acme", {"taskq.pools": {"x": "y"}, "taskq.result_stores": {"s": "y"}})
    assert [r["name"] for r in json.loads(run("list", "--kind", "store", "--json").output)["plugins"]] == ["s"]
    assert "no plugin of kind transport is installed" in run("list", "--kind", "transport").output
    wrong = run("list", "--kind", "pol")
    assert wrong.exit_code == 2
    assert "the kinds are transport, pool," in wrong.output


def test_show_prints_abilities_limits_and_options_and_hides_secrets(site, run):
    site.distribution("acme", {"taskq.pools": {"acme": "acme_plugin"}})
    site.module("acme_plugin", POOL)
    output = run("show", "acme").output
    for part in ("pool acme  acme 1.0", "Runs things.", "note: Mind the gap.", "How deep. (in m, at least 1)"):
        assert part in output
    assert ["user", "str", "required", "Who."] in [line.split() for line in output.splitlines()]
    assert "hunter2" not in output
    (shown,) = json.loads(run("show", "pool:acme", "--json").output)["plugins"]
    assert "hunter2" not in json.dumps(shown)
    assert shown["abilities"]["isolation"] is True
    assert shown["limits"] == {"max_concurrency": 7}
    options = {o["name"]: o for o in shown["options"]}
    assert options["user"]["required"] is True
    assert (options["depth"]["default"], options["depth"]["minimum"], options["depth"]["unit"]) == (3, 1, "m")
    assert options["mode"]["choices"] == ["a", "b"]
    assert (options["key"]["default"], options["key"]["secret"]) == ("***", True)


def test_show_of_two_kinds_shows_both_and_a_broken_one_fails(site, run):
    site.transport("acme", "acme_plugin", "acme")
    site.distribution("acme-store", {"taskq.result_stores": {"acme": "acme_store"}})
    site.module("acme_store", "1 / 0")
    both = run("show", "acme", "--json")
    assert both.exit_code == 1
    data = json.loads(both.output)
    assert [p["kind"] for p in data["plugins"]] == ["transport"]
    assert data["plugins"][0]["abilities"]["durability"] == "process"
    assert "result store 'acme' of acme-store 1.0" in data["errors"][0]
    assert run("show", "acme", "--kind", "transport").exit_code == 0


def test_show_of_what_is_not_installed_says_what_to_do(run):
    known = run("show", "redis")
    assert known.exit_code == 1
    assert "pip install --no-index --find-links dist taskq-transport-redis" in known.output
    assert "pip install --no-index --find-links dist taskq-store-redis" in known.output
    assert "here it is 'prefork'" in run("show", "processes").output
    assert "did you mean 'prefork'?" in run("show", "preforkk").output


def test_show_a_contribution_and_a_command(site, run):
    site.contribution("acme", "acme_plugin", "@hookimpl\ndef taskq_routes(app): return []\n", "tracing")
    shown = run("show", "tracing")
    assert shown.exit_code == 0
    assert "plugin tracing  acme 1.0" in shown.output
    assert run("show", "plugin:nothing").exit_code == 1


def test_check_exits_with_1_on_any_fault_and_0_otherwise(site, run):
    site.transport("good", "good_plugin", "good")
    assert run("check").exit_code == 0
    site.distribution("bad", {"taskq.transports": {"bad": "bad_plugin"}})
    site.module("bad_plugin", "1 / 0")
    everything = run("check")
    assert everything.exit_code == 1
    assert "2 checked, 1 with a fault" in everything.output
    assert "ZeroDivisionError" in everything.output
    assert run("check", "good").exit_code == 0
    assert run("check", "transport:bad").exit_code == 1
    assert run("check", blocked=["bad"]).exit_code == 0
    assert run("check", "bad", blocked=["bad"]).exit_code == 1
    data = json.loads(run("check", "--json").output)
    assert data["ok"] is False
    assert {p["name"]: p["state"] for p in data["plugins"]} == {"bad": "broken", "good": "loaded"}


def test_check_of_what_is_not_installed_fails(run):
    for name in ("no-such-thing", "redis"):
        result = run("check", name)
        assert result.exit_code == 1
        assert name in result.output


def test_why_a_url_explains_transport_and_store_and_hides_the_password(site, run):
    site.transport("acme", "acme_plugin", "redis")
    site.distribution("acme-store", {"taskq.result_stores": {"redis": "acme_store"}})
    result = run("why", "redis://user:hunter2@host/0")
    assert result.exit_code == 0
    assert "acme 1.0 (acme_plugin): chosen, the only one" in result.output
    assert "acme-store 1.0 (acme_store): chosen, the only one" in result.output
    assert "results go to the broker's server" in result.output
    as_json = run("why", "redis://user:hunter2@host/0", "--json").output
    assert "hunter2" not in result.output + as_json
    assert [e["chosen"]["distribution"] for e in json.loads(as_json)["explanations"]] == ["acme", "acme-store"]


def test_why_a_broker_that_keeps_no_results_says_so(site, run):
    site.transport("acme", "acme_plugin", "amqp")
    result = run("why", "amqp://host//")
    assert result.exit_code == 0
    assert "results are off: amqp is not in" in result.output


def test_why_a_url_of_a_store_explains_the_store(run):
    result = run("why", "memcached://host")
    assert result.exit_code == 1
    assert "pip install --no-index --find-links dist taskq-store-memcached" in result.output
    assert "transport" not in result.output


def test_why_a_name_explains_a_conflict(site, run):
    site.transport("acme-one", "acme_one", "acme")
    site.transport("acme-two", "acme_two", "acme")
    result = run("why", "acme")
    assert result.exit_code == 1
    assert "plugins.choose" in result.output
    assert run("why", "acme", choose={"transport:acme": "acme-one"}).exit_code == 0


def test_a_malformed_url_is_an_error_not_a_traceback(run):
    result = run("why", "://x")
    assert (result.exit_code, result.exc_info[0]) == (1, SystemExit)
    assert result.output.startswith("Error: ")


def test_colours_are_for_terminals(site, monkeypatch):
    site.distribution("acme", "[taskq.pools]\nx = no module\n")
    context = SimpleNamespace(plugins=site.manager())
    runner = CliRunner()
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" in runner.invoke(plugins, ["list"], obj=context, color=True).output
    assert "\x1b" not in runner.invoke(plugins, ["list"], obj=context).output
    assert "\x1b" not in runner.invoke(plugins, ["list", "--json"], obj=context, color=True).output
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in runner.invoke(plugins, ["list"], obj=context, color=True).output


def test_the_manager_comes_from_the_main_command_or_from_the_environment(site, monkeypatch):
    given = site.manager()
    context = click.Context(plugins, obj=SimpleNamespace(plugins=given))
    assert manager_from_context(context) is given
    for name in ("one", "two"):
        site.transport(f"acme-{name}", f"acme_{name}", "acme")
        site.transport(f"free-{name}", f"free_{name}", name)
    monkeypatch.setenv("TASKQ_PLUGINS_BLOCKED", "transport:one, stranger")
    monkeypatch.setenv("TASKQ_PLUGINS_ONLY", "acme-*,free-*")
    monkeypatch.setenv("TASKQ_PLUGINS_CHOOSE", "transport:acme=acme-two")
    made = manager_from_context(click.Context(plugins))
    assert isinstance(made, PluginManager)
    assert [made.why("transport", name).error for name in ("one", "two", "acme")] == ["PluginBlocked", "", ""]
    assert made.why("transport", "acme").setting == "plugins.choose"
    monkeypatch.setenv("TASKQ_PLUGINS_ONLY", "")
    assert manager_from_context(click.Context(plugins)).why("transport", "two").error == "PluginBlocked"
    monkeypatch.setenv("TASKQ_PLUGINS_BLOCKED", "pol:x")
    result = CliRunner().invoke(plugins, ["list"])
    assert result.exit_code == 1
    assert "plugins.blocked = 'pol:x'" in result.output
