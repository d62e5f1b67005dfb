"""What is not imported, seen from a fresh interpreter; and children, which do not scan."""

from __future__ import annotations

import json
import pickle
import sys

import pytest

from taskq._plugins import PluginManager, State
from taskq.errors import PluginBlocked, PluginConflict

MODULES = "\nimport json, sys\nprint()\nprint(json.dumps(sorted(sys.modules)))"


def modules_after(site, script, *arguments, **environment):
    done = site.run(script + MODULES, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return {*json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_package_and_making_a_manager_imports_next_to_nothing(site):
    script = "from taskq._plugins import PluginManager; PluginManager(blocked=['x']).task_declared(None, None)"
    loaded = modules_after(site, script) - modules_after(site, "import taskq")
    assert "taskq._plugins.manager" in loaded
    assert not {"click", "pluggy", "stevedore", "importlib.metadata", "msgspec", "taskq.spi"} & loaded


def test_plugins_list_imports_no_plugin_nor_what_loads_them(site):
    site.transport("taskq-transport-acme", "acme_plugin", "acme")
    site.contribution("more", "more_plugin", "")
    site.distribution("commands", {"taskq.commands": {"x": "commands_plugin"}})
    script = "from taskq.cli.plugins import plugins\nplugins(['list'], standalone_mode=False)"
    loaded = modules_after(site, script)
    assert not {m for m in loaded if m.endswith("_plugin")}
    assert not {m for m in loaded if m.startswith("taskq_")}
    assert not {"pluggy", "stevedore"} & loaded
    assert not {"msgspec", "taskq.spi"} & (loaded - modules_after(site, "import taskq"))


def test_show_imports_that_plugin_only_and_why_none(site):
    site.transport("one", "one_plugin", "one")
    site.transport("two", "two_plugin", "two")
    site.contribution("more", "more_plugin", "")
    for command, imported in (("show", {"one_plugin"}), ("why", set())):
        script = f"from taskq.cli.plugins import plugins\ntry: plugins(['{command}', 'one'])\nexcept SystemExit: pass"
        assert {m for m in modules_after(site, script) if m.endswith("_plugin")} == imported


def test_selecting_writes_no_file_into_the_home_folder(site, tmp_path):
    site.transport("acme", "acme_plugin", "acme")
    home = tmp_path / "home"
    home.mkdir()
    script = "from taskq._plugins import PluginManager\nm = PluginManager()\nm.select('transport', 'acme')"
    loaded = modules_after(site, script, HOME=str(home), XDG_CACHE_HOME="")
    assert "stevedore" in loaded
    assert [*home.iterdir()] == []


# ------------------------------------------------------------------------------------------------------------- plan


CHILD = """
import importlib.metadata, pickle, sys
def scan(*args, **kwargs): raise AssertionError("scanned")
importlib.metadata.distributions = importlib.metadata.entry_points = scan
importlib.metadata.MetadataPathFinder.find_distributions = scan
from taskq._plugins import PluginManager
manager = PluginManager.from_plan(pickle.loads(bytes.fromhex(sys.argv[1])))
manager.select("transport", "acme")
assert manager.middlewares(None) == ("m",)
assert [r.name for r in manager.records("transport")] == ["acme", "other"]
"""


def test_children_never_scan_and_import_only_what_they_use(site):
    site.transport("acme", "acme_plugin", "acme")
    site.transport("other", "other_plugin", "other")
    site.contribution("more", "more_plugin", "@hookimpl\ndef taskq_middlewares(app): return ['m']\n")
    parent = site.manager()
    parent.select("transport", "acme")
    parent.contributions()
    loaded = modules_after(site, CHILD, pickle.dumps(parent.plan()).hex())
    assert {m for m in loaded if m.endswith("_plugin")} == {"acme_plugin", "more_plugin"}
    assert "stevedore" not in loaded


def test_a_plan_carries_decisions_not_what_happened_to_the_parent(site):
    for name in ("one", "two"):
        site.transport(f"acme-{name}", f"acme_{name}", "acme")
        site.transport(f"free-{name}", f"free_{name}", "free")
    site.transport("stranger", "stranger_plugin", "stranger")
    parent = site.manager(blocked=["stranger"], choose={"transport:acme": "acme-two"})
    parent.select("transport", "acme")
    child = PluginManager.from_plan(pickle.loads(pickle.dumps(parent.plan())))
    assert child.select("transport", "acme").name == "acme"
    assert "acme_one" not in sys.modules
    with pytest.raises(PluginBlocked):
        child.select("transport", "stranger")
    with pytest.raises(PluginConflict):
        child.select("transport", "free")
    assert child.why("transport", "acme") == parent.why("transport", "acme")
    fresh = PluginManager.from_plan(parent.plan())
    assert State.LOADED not in {r.state for r in fresh.records()}
    assert fresh.plan() == parent.plan()
