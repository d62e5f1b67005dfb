"""Importing, registering, asking and validating one plugin: what is broken, incompatible and invalid, and the traps."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from taskq._plugins import KINDS, State
from taskq.errors import (
    AuthenticationFailed,
    PluginBroken,
    PluginConflict,
    PluginIncompatible,
    PluginInvalid,
    PluginNotInstalled,
)

BODIES = {
    "transport": "TransportSpec(spi='0.1', name='x', schemes=('x',), factory=factory, capabilities=capabilities)",
    "result_store": "StoreSpec(spi='0.1', name='x', schemes=('x',), factory=factory, capabilities=capabilities)",
    "pool": "PoolSpec(spi='0.1', name='x', factory=factory, capabilities=PoolCapabilities())",
    "serializer": "SerializerSpec(spi='0.1', name='x', factory=factory)",
    "compressor": "CompressorSpec(spi='0.1', name='x', factory=factory)",
    "scheduler": "SchedulerSpec(spi='0.1', name='x', factory=factory)",
    "autoscaler": "AutoscalerSpec(spi='0.1', name='x', factory=factory)",
}


def plugin_of(site, kind: str, answer: str, *, before: str = "", argument: str = "") -> None:
    argument = argument or ("scheme" if kind in ("transport", "result_store") else "name")
    site.distribution("acme", {f"taskq.{kind}s": {"x": "acme_plugin"}}, "2.5")
    site.module("acme_plugin", f"{before}\n@hookimpl\ndef taskq_{kind}({argument}):\n    return {answer}\n")


def state_of(manager, kind="transport"):
    (record,) = manager.records(kind)
    return record.state, record.detail


# ------------------------------------------------------------------------------------------------------------ good


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_plugin_of_each_kind_is_selected_and_cached(site, kind):
    plugin_of(site, kind, BODIES[kind])
    manager = site.manager()
    spec = manager.select(kind, "x")
    assert spec.name == "x"
    assert manager.select(kind, "x") is spec
    assert state_of(manager, kind) == (State.LOADED, "")


def test_only_the_selected_plugin_is_imported(site):
    site.transport("one", "one_plugin", "one")
    site.transport("two", "two_plugin", "two")
    site.contribution("three", "three_plugin", "")
    site.manager().select("transport", "two")
    assert {m for m in sys.modules if m.endswith("_plugin")} & {"one_plugin", "two_plugin", "three_plugin"} == {
        "two_plugin"
    }


def test_an_entry_may_name_an_object_in_a_module(site):
    site.distribution("acme", {"taskq.pools": {"x": "acme_plugin:Outer.plugin"}})
    body = """
class Pool:
    @hookimpl
    def taskq_pool(self, name):
        return PoolSpec(spi='0.1', name=name, factory=factory, capabilities=PoolCapabilities())
class Outer:
    plugin = Pool()
"""
    site.module("acme_plugin", body)
    assert site.manager().select("pool", "x").name == "x"


def test_one_module_may_serve_two_kinds_and_contribute(site):
    groups = {"taskq.pools": {"x": "both"}, "taskq.serializers": {"x": "both"}, "taskq.plugins": {"x": "both"}}
    site.distribution("acme", groups)
    site.module(
        "both",
        f"""
@hookimpl
def taskq_pool(name): return {BODIES["pool"]}
@hookimpl
def taskq_serializer(name): return {BODIES["serializer"]}
@hookimpl
def taskq_routes(): return ["route"]
""",
    )
    manager = site.manager()
    assert type(manager.select("pool", "x")).__name__ == "PoolSpec"
    assert type(manager.select("serializer", "x")).__name__ == "SerializerSpec"
    assert manager.routes(None) == ("route",)


def test_select_from_many_threads_asks_the_plugin_once(site):
    plugin_of(site, "pool", f"asked.append(name) or {BODIES['pool']}", before="asked = []")
    manager = site.manager()
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(manager.select("pool", "x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(f) for f in found}) == 1
    assert sys.modules["acme_plugin"].asked == ["x"]


# ---------------------------------------------------------------------------------------------------------- broken


def test_a_broken_import_is_data_until_selected_and_then_chained(site):
    site.transport("good", "good_plugin", "good")
    site.distribution("acme", {"taskq.transports": {"x": "acme_plugin"}}, "2.5")
    site.module("acme_plugin", "1 / 0")
    manager = site.manager()
    assert manager.select("transport", "good").name == "good"
    assert {r.state for r in manager.records()} == {State.LOADED, State.INSTALLED}
    with pytest.raises(
        PluginBroken, match=r"transport 'x' of acme 2\.5 cannot be imported: ZeroDivisionError"
    ) as raised:
        manager.select("transport", "x")
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    broken = next(r for r in manager.records() if r.name == "x")
    assert broken.state is State.BROKEN
    assert "ZeroDivisionError" in broken.detail


@pytest.mark.parametrize("statement", ["raise SystemExit(3)", "assert False, 'no'", "def f(:"])
def test_whatever_an_import_raises_it_is_a_broken_plugin(site, statement):
    site.distribution("acme", {"taskq.pools": {"x": "acme_plugin"}})
    site.module("acme_plugin", statement)
    with pytest.raises(PluginBroken, match="cannot be imported"):
        site.manager().select("pool", "x")


def test_ctrl_c_during_an_import_stays_ctrl_c(site):
    site.distribution("acme", {"taskq.pools": {"x": "acme_plugin"}})
    site.module("acme_plugin", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        site.manager().select("pool", "x")


@pytest.mark.parametrize("wanted", [SystemExit, RuntimeError])
def test_what_a_signal_handler_raises_meanwhile_is_no_fault_of_the_plugin(site, wanted):
    """A program that exits on TERM exits with its own code, wherever the signal strikes."""

    def handler(*_):
        raise wanted("told to")

    site.distribution("acme", {"taskq.pools": {"x": "acme_plugin"}})
    site.module("acme_plugin", "import os, signal\nos.kill(os.getpid(), signal.SIGUSR2)\nfor _ in range(1000): pass")
    before = signal.signal(signal.SIGUSR2, handler)
    try:
        with pytest.raises(wanted, match="told to"):
            site.manager().select("pool", "x")
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_missing_client_library_is_told_from_a_damaged_installation(site):
    site.distribution("one", {"taskq.pools": {"one": "one_plugin"}})
    site.module("one_plugin", "import no_such_client.sub")
    with pytest.raises(
        PluginBroken, match=r"needs the module 'no_such_client', which is not installed.*pip install .*one"
    ):
        site.manager().select("pool", "one")
    site.distribution("two", {"taskq.pools": {"two": "two_plugin.gone"}})
    site.module("two_plugin", "")
    with pytest.raises(PluginBroken, match=r"its own module 'two_plugin\.gone' is missing.*reinstall"):
        site.manager().select("pool", "two")


def test_a_missing_attribute_is_broken(site):
    site.distribution("acme", {"taskq.pools": {"x": "acme_plugin:nothing"}})
    site.module("acme_plugin", "")
    with pytest.raises(PluginBroken, match="nothing"):
        site.manager().select("pool", "x")


def test_a_client_library_missed_by_the_factory_is_a_broken_plugin_and_taskqs_own_errors_pass(site):
    before = """
def late(config):
    if config == "auth":
        raise AuthenticationFailed("wrong password")
    if config == "bug":
        raise LookupError("bug")
    if config:
        import no_such_client
    return "made"
"""
    plugin_of(site, "pool", BODIES["pool"].replace("factory=factory", "factory=late"),
              before="from taskq.errors import AuthenticationFailed" + before)  # fmt: skip
    manager = site.manager()
    assert manager.create("pool", "x", "") == "made"
    with pytest.raises(
        PluginBroken, match=r"pool 'x' of acme 2\.5 cannot be created: it needs the module 'no_such_client'"
    ):
        manager.create("pool", "x", "import")
    with pytest.raises(PluginBroken, match="LookupError: bug") as raised:
        manager.create("pool", "x", "bug")
    assert isinstance(raised.value.__cause__, LookupError)
    with pytest.raises(AuthenticationFailed):
        manager.create("pool", "x", "auth")


def test_a_hook_that_raises_is_broken(site):
    plugin_of(site, "pool", "1 / 0")
    with pytest.raises(PluginBroken, match=r"failed in taskq_pool: ZeroDivisionError") as raised:
        site.manager().select("pool", "x")
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_repaired_plugin_can_be_selected_without_a_restart(site):
    site.distribution("acme", {"taskq.pools": {"x": "acme_plugin"}})
    manager = site.manager()
    with pytest.raises(PluginBroken):
        manager.select("pool", "x")
    site.module("acme_plugin", f"@hookimpl\ndef taskq_pool(name):\n    return {BODIES['pool']}\n")
    assert manager.select("pool", "x").name == "x"
    assert state_of(manager, "pool") == (State.LOADED, "")


# ---------------------------------------------------------------------------------------------------- incompatible


@pytest.mark.parametrize(("spi", "advice"), [("0.0", "upgrade acme, or downgrade taskq-core"),
                                             ("99.0", "upgrade taskq-core, or downgrade acme")])  # fmt: skip
def test_another_interface_version_is_a_state_with_advice(site, spi, advice):
    plugin_of(site, "pool", BODIES["pool"].replace("spi='0.1'", f"spi={spi!r}"))
    manager = site.manager()
    with pytest.raises(PluginIncompatible, match=f"plugin interface {spi};.*{advice}"):
        manager.select("pool", "x")
    assert state_of(manager, "pool")[0] is State.INCOMPATIBLE


def test_the_version_counts_before_the_type(site):
    plugin_of(site, "pool", "Old()", before="class Old:\n    spi = '0.0'")
    with pytest.raises(PluginIncompatible, match=r"interface 0\.0"):
        site.manager().select("pool", "x")


def test_a_name_that_the_interface_does_not_have_is_incompatible_not_broken(site):
    site.distribution("acme", {"taskq.pools": {"x": "acme_plugin"}})
    site.module("acme_plugin", "from taskq.spi import FromTheFuture")
    with pytest.raises(PluginIncompatible, match=r"FromTheFuture.*upgrade taskq-core or acme"):
        site.manager().select("pool", "x")


def test_a_spec_with_a_field_of_another_version_says_so(site):
    plugin_of(site, "pool", BODIES["pool"][:-1] + ", from_the_future=1)")
    with pytest.raises(PluginBroken, match=r"from_the_future.*written for another plugin interface"):
        site.manager().select("pool", "x")


# --------------------------------------------------------------------------------------------------------- invalid


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_refuses_another_kinds_spec(site, kind):
    other = "pool" if kind != "pool" else "serializer"
    plugin_of(site, kind, BODIES[other])
    with pytest.raises(PluginInvalid, match=r"answered with \w+Spec, not \w+Spec"):
        site.manager().select(kind, "x")


@pytest.mark.parametrize(
    ("kind", "replace", "by", "words"),
    [
        ("transport", "schemes=('x',)", "schemes=('x', 'xs')", "names the schemes x, xs, its entry points x"),
        ("transport", "schemes=('x',)", "schemes=('y',)", "names the schemes y, its entry points x"),
        ("transport", "schemes=('x',)", "schemes=()", "names the schemes none"),
        ("transport", "schemes=('x',)", "schemes='x'", "schemes are no tuple"),
        ("transport", "capabilities=capabilities", "capabilities=Capabilities()", "capabilities are no function"),
        ("pool", "name='x'", "name='y'", "named 'y', its entry point 'x'"),
        ("pool", "capabilities=PoolCapabilities()", "capabilities=capabilities", "no PoolCapabilities"),
        ("pool", "factory=factory", "factory=None", "factory cannot be called"),
        ("pool", "factory=factory", "factory=factory, options=dict", "neither a frozen dataclass"),
        ("pool", "factory=factory", "factory=factory, options=Thawed", "neither a frozen dataclass"),
        ("pool", "factory=factory", "factory=factory, options=NoOptions()", "neither a frozen dataclass"),
    ],
)
def test_a_spec_that_contradicts_its_metadata_or_kind_is_invalid(site, kind, replace, by, words):
    assert replace in BODIES[kind]
    plugin_of(site, kind, BODIES[kind].replace(replace, by), before="@dataclass\nclass Thawed:\n    x: int = 1")
    manager = site.manager()
    with pytest.raises(PluginInvalid, match=r"'x' of acme 2\.5") as raised:
        manager.select(kind, "x")
    assert words in str(raised.value)
    assert state_of(manager, kind)[0] is State.INVALID


def test_an_entry_point_that_the_spec_does_not_name_is_a_lie_too(site):
    site.transport("acme", "acme_plugin", "x", "xs", spec="schemes=('x',)")
    with pytest.raises(PluginInvalid, match="names the schemes x, its entry points x, xs"):
        site.manager().select("transport", "x")


def test_frozen_options_are_fine(site):
    before = "@dataclass(frozen=True)\nclass Mine:\n    x: int = option(1, help='h')"
    plugin_of(site, "pool", BODIES["pool"].replace("factory=factory", "factory=factory, options=Mine"), before=before)
    assert site.manager().select("pool", "x").options.__name__ == "Mine"


def test_none_and_no_hook_at_all_are_invalid(site):
    plugin_of(site, "pool", "None")
    with pytest.raises(PluginInvalid, match="answered None"):
        site.manager().select("pool", "x")
    site.distribution("empty", {"taskq.pools": {"y": "empty_plugin"}})
    site.module("empty_plugin", "def taskq_pool(name): ...")  # the mark is missing
    with pytest.raises(PluginInvalid, match="no function taskq_pool marked with @hookimpl"):
        site.manager().select("pool", "y")


def test_a_misspelt_hook_is_an_error_with_a_suggestion(site):
    site.distribution("acme", {"taskq.pools": {"x": "acme_plugin"}})
    site.module("acme_plugin", f"@hookimpl\ndef taskq_pol(name):\n    return {BODIES['pool']}\n")
    manager = site.manager()
    with pytest.raises(PluginInvalid, match=r"taskq_pol, which is no hook; did you mean taskq_pool\?"):
        manager.select("pool", "x")
    assert state_of(manager, "pool")[0] is State.INVALID


def test_an_optional_hook_may_be_unknown(site):
    before = "@hookimpl(optionalhook=True)\ndef taskq_of_the_future(): ..."
    plugin_of(site, "pool", BODIES["pool"], before=before)
    assert site.manager().select("pool", "x").name == "x"


def test_a_wrong_argument_is_broken_and_named(site):
    plugin_of(site, "pool", BODIES["pool"], argument="nam")
    with pytest.raises(PluginBroken, match=r"implements a hook wrongly:.*nam"):
        site.manager().select("pool", "x")


def test_a_hook_that_no_entry_point_makes_callable_is_refused(site):
    plugin_of(site, "pool", BODIES["pool"], before="@hookimpl\ndef taskq_routes(app): return []")
    with pytest.raises(PluginInvalid, match=r"taskq_routes, which would never be called.*taskq\.plugins"):
        site.manager().select("pool", "x")


# ------------------------------------------------------------------------------------------- the traps of stevedore


def test_trap_stevedores_listing_and_its_cache_are_never_used(site, monkeypatch):
    from stevedore import _cache, extension

    def forbidden(*args, **kwargs):
        raise AssertionError("stevedore listed entry points by itself")

    for name in ("get_group_all", "get_group_named", "get_single"):
        monkeypatch.setattr(_cache, name, forbidden)
    monkeypatch.setattr(extension.ExtensionManager, "ENTRY_POINT_CACHE", {})
    site.transport("acme", "acme_plugin", "x")
    site.contribution("more", "more_plugin", "")
    manager = site.manager()
    manager.select("transport", "x")
    assert len(manager.contributions()) == 1
    assert extension.ExtensionManager.ENTRY_POINT_CACHE == {}


def test_trap_a_changed_installation_is_seen_by_the_next_scan(site):
    for number in range(3):  # within the window in which stevedore's cache takes two listings for the same
        site.transport(f"acme{number}", f"acme{number}_plugin", f"x{number}")
        assert site.manager().select("transport", f"x{number}").name == f"x{number}"


def test_trap_the_distribution_is_not_lost(site):
    site.transport("acme", "acme_plugin", "x", version="7.8")
    manager = site.manager()
    manager.select("transport", "x")
    assert [r.origin for r in manager.records()] == ["acme 7.8"]


def test_trap_duplicates_conflict_whether_or_not_they_are_neighbours(site):
    from stevedore.extension import Extension, ExtensionManager, error_on_conflict

    # What is wrapped: with a stranger between them stevedore sees no conflict.
    extensions = [Extension(name, None, None, object()) for name in ("x", "other", "x")]
    theirs = ExtensionManager.make_test_instance(extensions, conflict_resolver=error_on_conflict)
    assert theirs["x"] is extensions[2]

    site.distribution("one", {"taskq.pools": {"x": "one_plugin", "other": "one_plugin"}})
    site.distribution("two", {"taskq.pools": {"a": "two_plugin", "x": "two_plugin"}})
    manager = site.manager()
    with pytest.raises(PluginConflict, match=r"one 1\.0.*two 1\.0"):
        manager.select("pool", "x")
    assert not {"one_plugin", "two_plugin"} & {*sys.modules}


# --------------------------------------------------------------------------------------------- the traps of pluggy


def test_trap_pluggy_never_loads_entry_points(site, monkeypatch):
    import pluggy

    def forbidden(*args, **kwargs):
        raise AssertionError("pluggy loaded entry points by itself")

    monkeypatch.setattr(pluggy.PluginManager, "load_setuptools_entrypoints", forbidden)
    site.transport("acme", "acme_plugin", "x")
    site.contribution("more", "more_plugin", "")
    manager = site.manager()
    manager.select("transport", "x")
    manager.contributions()


def test_trap_a_failed_plugin_leaves_nothing_registered(site):
    """Its second hook is wrong, or fails when told of a task while registering: the first must be gone too."""
    good = "@hookimpl\ndef taskq_middlewares(app): return ['ghost']\n"
    wrong = good + "@hookimpl\ndef taskq_routes(no_such_argument): return []\n"
    fails = good + "@hookimpl\ndef taskq_task_declared(task): raise RuntimeError('not this task')\n"
    for number, (body, words) in enumerate([(wrong, "implements a hook wrongly"), (fails, "not this task")]):
        manager = site.manager()
        manager.contributions()
        manager.task_declared(None, "task")
        site.module(f"half{number}", body)
        module = __import__(f"half{number}")
        with pytest.raises(PluginBroken, match=words):
            manager.register(module, "half")
        assert manager.middlewares(None) == ()
        assert manager.contributions() == ()


# ----------------------------------------------------------------------------------------------------------- check


def test_check_imports_and_never_raises(site):
    site.transport("good", "good_plugin", "good")
    site.distribution("bad", {"taskq.transports": {"bad": "bad_plugin"}})
    site.module("bad_plugin", "1 / 0")
    site.distribution("old", {"taskq.pools": {"x": "old_plugin"}})
    site.module("old_plugin", f"@hookimpl\ndef taskq_pool(name): return {BODIES['pool'].replace('0.1', '0.0')}\n")
    site.contribution("hooks", "hooks_plugin", "@hookimpl\ndef taskq_rutes(app): return []")
    site.transport("blocked", "blocked_plugin", "blocked")
    manager = site.manager(blocked=["blocked"])
    checked = {r.distribution: manager.check(r).state for r in manager.records()}
    assert checked == {"good": State.LOADED, "bad": State.BROKEN, "old": State.INCOMPATIBLE, "hooks": State.INVALID,
                       "blocked": State.BLOCKED}  # fmt: skip
    assert "blocked_plugin" not in sys.modules
    assert {r.distribution: r.state for r in manager.records()} == checked


def test_check_looks_behind_a_conflict_and_leaves_it_one(site):
    site.transport("good", "good_plugin", "x")
    site.distribution("bad", {"taskq.transports": {"x": "bad_plugin"}})
    site.module("bad_plugin", "1 / 0")
    manager = site.manager()
    checked = {r.distribution: manager.check(r) for r in manager.records()}
    assert (checked["good"].state, checked["bad"].state) == (State.CONFLICT, State.BROKEN)
    with pytest.raises(PluginConflict):
        manager.select("transport", "x")


def test_check_finds_a_requirement_that_is_not_installed_although_the_import_works(site):
    site.distribution("acme", {"taskq.pools": {"x": "acme_plugin"}}, requires=["no-such-client>=2", "pluggy"])
    site.module("acme_plugin", f"@hookimpl\ndef taskq_pool(name): return {BODIES['pool']}\n")
    manager = site.manager()
    checked = manager.check(manager.records()[0])
    assert checked.state is State.BROKEN
    assert "requires no-such-client>=2, which is not installed: pip install 'no-such-client>=2'" in checked.detail


def test_a_missing_distribution_of_ours_is_never_to_be_fetched_from_an_index(site):
    site.distribution("acme", {"taskq.pools": {"x": "acme_plugin"}}, requires=["taskq-lib-none>=1", "no-such-client"])
    site.module("acme_plugin", f"@hookimpl\ndef taskq_pool(name): return {BODIES['pool']}\n")
    manager = site.manager()
    detail = manager.check(manager.records()[0]).detail
    assert detail.endswith(
        "pip install --no-index --find-links dist 'taskq-lib-none>=1' && pip install 'no-such-client'"
    )


def test_a_plugin_error_raised_by_the_plugin_itself_passes_and_leaves_it_broken(site):
    before = "from taskq.errors import PluginNotInstalled\ndef fail(): raise PluginNotInstalled('needs its library')"
    plugin_of(site, "pool", "fail()", before=before)
    manager = site.manager()
    with pytest.raises(PluginNotInstalled, match="needs its library"):
        manager.select("pool", "x")
    assert state_of(manager, "pool") == (State.BROKEN, "needs its library")
