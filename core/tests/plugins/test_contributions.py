"""Contributions: every hook has a typed method, every failure an author, and a late plugin misses no task."""

from __future__ import annotations

import inspect
import logging
import sys

import pytest

from taskq._plugins import PluginManager, State
from taskq.errors import ConfigError, PluginBroken, PluginInvalid
from taskq.spi.hooks import ContributionHooks

HOOKS = sorted(name for name in vars(ContributionHooks) if name.startswith("taskq_"))


@pytest.mark.parametrize("hook", HOOKS)
def test_every_contribution_hook_has_a_method_that_calls_it_with_its_exact_arguments(site, hook):
    arguments = list(inspect.signature(getattr(ContributionHooks, hook)).parameters)[1:]
    method = getattr(PluginManager, hook.removeprefix("taskq_"))
    assert list(inspect.signature(method).parameters)[1:] == arguments
    body = (
        f"got = []\n@hookimpl\ndef {hook}({', '.join(arguments)}):\n    got.append(({', '.join([*arguments, ''])}))\n"
    )
    site.contribution("acme", "acme_plugin", body)
    manager = site.manager()
    manager.contributions()
    getattr(manager, hook.removeprefix("taskq_"))(*arguments)
    assert sys.modules["acme_plugin"].got == [tuple(arguments)]


def test_an_implementation_may_take_fewer_arguments(site):
    site.contribution("acme", "acme_plugin", "@hookimpl\ndef taskq_logging_setup(): return True\n")
    assert site.manager().logging_setup(None, "INFO") is True


def test_answers_are_joined_in_the_order_of_the_listing(site):
    for name in ("b", "a", "c"):
        body = f"@hookimpl\ndef taskq_middlewares(app): return [{name!r} + '1', {name!r} + '2']\n"
        site.contribution(f"acme-{name}", f"acme_{name}", body)
    site.contribution("acme-d", "acme_d", "@hookimpl(tryfirst=True)\ndef taskq_middlewares(app): return ('first',)\n")
    site.contribution("acme-e", "acme_e", "@hookimpl\ndef taskq_middlewares(app): return None\n")
    assert site.manager().middlewares(None) == ("first", "a1", "a2", "b1", "b2", "c1", "c2")


def test_config_defaults_say_where_they_come_from(site):
    site.contribution("acme", "acme_plugin", "@hookimpl\ndef taskq_config_defaults(): return {'a': 1}\n", "tracing")
    assert site.manager().config_defaults() == (("plugin tracing (acme 1.0)", {"a": 1}),)


def test_logging_is_set_up_by_the_first_willing_one_only(site):
    for name, answer in (("a", None), ("b", True), ("c", True)):
        body = f"asked = []\n@hookimpl\ndef taskq_logging_setup(level):\n    asked.append(level)\n    return {answer}\n"
        site.contribution(f"acme-{name}", f"acme_{name}", body)
    manager = site.manager()
    assert manager.logging_setup(None, "INFO") is True
    assert [sys.modules[f"acme_{n}"].asked for n in "abc"] == [["INFO"], ["INFO"], []]
    assert site.manager(only=["acme-a"]).logging_setup(None, "INFO") is False


# ---------------------------------------------------------------------------------------------------- task_declared


def test_tasks_declared_before_loading_are_replayed_once_and_later_ones_told_at_once(site):
    site.contribution(
        "acme", "acme_plugin", "seen = []\n@hookimpl\ndef taskq_task_declared(app, task): seen.append(task)\n"
    )
    manager = site.manager()
    manager.task_declared("app", "one")
    assert "acme_plugin" not in sys.modules  # declaring a task loads nothing
    manager.contributions()
    manager.contributions()
    manager.task_declared("app", "two")
    assert sys.modules["acme_plugin"].seen == ["one", "two"]

    from taskq.spi import hookimpl

    seen = []

    class Late:
        @hookimpl
        def taskq_task_declared(self, task):
            seen.append(task)

    manager.register(Late(), "late")
    assert seen == ["one", "two"]


def test_a_failure_on_a_declared_task_names_the_plugin(site):
    site.contribution("aaa", "aaa_plugin", "@hookimpl\ndef taskq_task_declared(task): pass\n")
    body = "def check(task): raise RuntimeError(task)\n@hookimpl\ndef taskq_task_declared(task): check(task)\n"
    site.contribution("acme", "acme_plugin", body)
    manager = site.manager()
    manager.contributions()
    with pytest.raises(
        PluginBroken, match=r"'acme_plugin' of acme 1\.0 failed in taskq_task_declared.*RuntimeError: t"
    ) as raised:
        manager.task_declared(None, "t")
    assert isinstance(raised.value.__cause__, RuntimeError)


# --------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("1 / 0", PluginBroken, "ZeroDivisionError"),
        ("import no_such_client", PluginBroken, "no_such_client"),
        ("@hookimpl\ndef taskq_rutes(app): ...", PluginInvalid, "did you mean taskq_routes?"),
        ("@hookimpl\ndef taskq_routes(ap): ...", PluginBroken, "ap"),
        ("@hookimpl(wrapper=True)\ndef taskq_routes(): return (yield)", PluginInvalid, "wrappers are not supported"),
        ("@hookimpl\ndef taskq_pool(name): ...", PluginInvalid, "no entry point of group taskq.pools"),
    ],
)
def test_a_broken_contribution_is_an_error_that_names_it_and_how_to_block_it(site, body, error, words):
    site.contribution("acme", "acme_plugin", body, "tracing")
    manager = site.manager()
    for _ in range(2):  # not only the first time
        with pytest.raises(error) as raised:
            manager.contributions()
        message = str(raised.value)
        for part in ("'tracing' of acme 1.0", words, 'plugins.blocked = ["plugin:tracing"]', "uninstall acme"):
            assert part in message
    assert manager.records("plugin")[0].state is not State.LOADED
    assert site.manager(blocked=["plugin:tracing"]).contributions() == ()


def test_damaged_metadata_of_a_contribution_is_an_error_as_well(site):
    site.distribution("acme", "[taskq.plugins]\ntracing = no module\n")
    with pytest.raises(PluginInvalid, match=r"reads 'tracing = no module'.*plugins\.blocked"):
        site.manager().contributions()


def test_a_broken_contribution_does_not_keep_components_from_being_selected(site):
    site.contribution("acme", "acme_plugin", "1 / 0")
    site.transport("good", "good_plugin", "good")
    assert site.manager().select("transport", "good").name == "good"


def test_a_hook_that_fails_names_its_plugin(site):
    site.contribution("acme", "acme_plugin", "@hookimpl\ndef taskq_routes(app): raise LookupError('x')\n", "tracing")
    with pytest.raises(
        PluginBroken, match=r"'tracing' of acme 1\.0 failed in taskq_routes: LookupError.*blocked"
    ) as raised:
        site.manager().routes(None)
    assert isinstance(raised.value.__cause__, LookupError)


def test_an_error_that_a_plugin_raises_on_purpose_passes_with_a_note(site):
    body = """
from taskq.errors import ConfigError
@hookimpl
def taskq_worker_starting(worker):
    try: 1 / 0
    except ZeroDivisionError as exc: raise ConfigError("set tracing.endpoint") from exc
"""
    site.contribution("acme", "acme_plugin", body, "tracing")
    with pytest.raises(ConfigError, match="tracing") as raised:
        site.manager().worker_starting(None)
    assert raised.value.args == ("set tracing.endpoint",)
    assert raised.value.__notes__ == ["(raised by plugin 'tracing' of acme 1.0 in taskq_worker_starting)"]
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_wrong_answer_names_its_plugin(site):
    site.contribution("acme", "acme_plugin", "@hookimpl\ndef taskq_routes(app): return 'route'\n")
    with pytest.raises(PluginInvalid, match=r"'acme_plugin' of acme 1\.0 returned str from taskq_routes"):
        site.manager().routes(None)


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        *((hook, ["a"]) for hook in ("worker_starting", "worker_ready", "process_started")),
        *((hook, ["a", "b", "c"]) for hook in ("worker_stopping", "worker_stopped", "process_stopping")),
    ],
)
def test_all_are_told_of_an_end_even_if_one_fails(site, hook, told):
    for name in "abc":
        fail = f"raise RuntimeError({name!r})" if name in "ab" else ""
        body = f"told = []\n@hookimpl\ndef taskq_{hook}():\n    told.append({name!r})\n    {fail}\n"
        site.contribution(f"acme-{name}", f"acme_{name}", body)
    with pytest.raises(PluginBroken, match="RuntimeError: a"):
        getattr(site.manager(), hook)(None)
    assert [n for n in "abc" if sys.modules[f"acme_{n}"].told] == told


# --------------------------------------------------------------------------------------------------------- register


def test_an_applications_own_contribution_needs_no_distribution(site):
    from taskq.spi import hookimpl

    class Own:
        @hookimpl
        def taskq_routes(self, app):
            return ["own"]

    site.contribution("acme", "acme_plugin", "@hookimpl\ndef taskq_routes(app): return ['installed']\n")
    manager = site.manager()
    manager.register(Own(), "mine")
    assert manager.routes(None) == ("own", "installed")
    assert [r.name for r in manager.contributions()] == ["acme_plugin", "mine"]


def test_a_module_named_by_two_entries_is_called_once(site):
    site.distribution("acme", {"taskq.plugins": {"one": "acme_plugin", "two": "acme_plugin"}})
    site.module("acme_plugin", "@hookimpl\ndef taskq_routes(app): return ['r']\n")
    manager = site.manager()
    assert manager.routes(None) == ("r",)
    assert {r.state for r in manager.records()} == {State.LOADED}


# ---------------------------------------------------------------------------------------------------------- commands


def test_commands_are_records_until_one_is_run(site):
    site.distribution("acme", {"taskq.commands": {"serve": "acme_commands:serve", "bad": "acme_commands:bad"}})
    site.module("acme_commands", "import click\n@click.command()\ndef serve(): ...\nbad = 1\n", head="")
    manager = site.manager()
    assert [r.name for r in manager.commands()] == ["bad", "serve"]
    assert "acme_commands" not in sys.modules
    assert manager.load_command("serve").name == "serve"
    with pytest.raises(PluginInvalid, match="no click command but a int"):
        manager.load_command("bad")


def test_loading_is_silent(site, caplog):
    site.contribution("acme", "acme_plugin", "")
    with caplog.at_level(logging.INFO):
        site.manager().contributions()
    assert caplog.records == []
