"""What is read from metadata, and from nothing else."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from importlib.metadata import PathDistribution

import pytest

from taskq._plugins import PluginManager, State, discovery
from taskq._plugins.records import GROUPS, KINDS


def test_every_kind_has_a_group_and_nothing_else_does():
    assert {*GROUPS.values()} == {*KINDS, "plugin", "command"}
    assert "taskq.result_stores" in GROUPS


def test_records_carry_name_value_distribution_and_version(site):
    site.distribution(
        "acme-redis", {"taskq.transports": {"redis": "acme_redis.plugin", "rediss": "acme_redis.plugin"}}, "2.5"
    )
    redis, rediss = site.manager().records()
    assert (redis.kind, redis.name, redis.value) == ("transport", "redis", "acme_redis.plugin")
    assert (redis.distribution, redis.version, redis.state) == ("acme-redis", "2.5", State.INSTALLED)
    assert redis.path.endswith("acme_redis-2.5.dist-info")
    assert rediss.name == "rediss"


def test_other_groups_are_ignored(site):
    site.distribution("other", {"console_scripts": {"x": "x:main"}, "pytest11": {"taskq": "x"}})
    assert site.manager().records() == ()


def test_order_does_not_depend_on_the_path(site):
    for name in ("zeta", "alpha", "midway"):
        site.distribution(
            name, {"taskq.pools": {name: name}, "taskq.transports": {f"{name}s": name}, "taskq.plugins": {name: name}}
        )
    found = list(importlib.metadata.distributions(path=[str(site.folder)]))
    forwards, backwards = PluginManager(distributions=found), PluginManager(distributions=found[::-1])
    assert forwards.records() == backwards.records()
    assert [r.kind for r in forwards.records()] == ["transport"] * 3 + ["pool"] * 3 + ["plugin"] * 3
    assert [r.name for r in forwards.records("pool")] == ["alpha", "midway", "zeta"]


def test_metadata_is_parsed_only_of_distributions_with_entries(site):
    site.distribution("plain", {"console_scripts": {"x": "x:y"}})
    site.distribution("acme", {"taskq.pools": {"acme": "acme"}})
    read: list[tuple[str, str]] = []

    class Spy(PathDistribution):
        def read_text(self, filename):
            read.append((self._path.name, filename))
            return super().read_text(filename)

    spies = [Spy(folder) for folder in site.folder.iterdir()]
    assert len(PluginManager(distributions=spies).records()) == 1
    assert [name for name, file in read if file == "METADATA"] == ["acme-1.0.dist-info"]


def test_the_scan_happens_once(site):
    site.distribution("acme", {"taskq.pools": {"acme": "acme"}})
    manager = site.manager()
    assert len(manager.records()) == 1
    shutil.rmtree(site.folder)
    assert len(manager.records("pool")) == 1


def test_without_distributions_the_path_is_scanned(site):
    site.distribution("acme", {"taskq.pools": {"quite-special": "acme"}})
    assert "quite-special" in {r.name for r in PluginManager().records()}


def test_a_distribution_seen_twice_on_the_path_counts_once_and_the_first_copy_wins(site, tmp_path):
    copy = tmp_path / "copy"
    site.distribution("Acme.Plugin", {"taskq.pools": {"acme": "acme"}}, "1.0")
    shutil.copytree(site.folder, copy)
    shutil.move(copy / "Acme.Plugin-1.0.dist-info", copy / "acme_plugin-2.0.dist-info")  # another spelling, newer
    both = list(importlib.metadata.distributions(path=[str(site.folder), str(copy)]))
    records = PluginManager(distributions=both).records()
    assert [(r.version, r.state) for r in records] == [("1.0", State.INSTALLED)]


def test_a_copy_without_entries_hides_the_one_behind_it_as_for_imports(site, tmp_path):
    site.distribution("acme", "", "2.0")
    behind = tmp_path / "behind"
    other = type(site)(behind)
    other.distribution("acme", {"taskq.pools": {"acme": "acme"}}, "1.0")
    both = list(importlib.metadata.distributions(path=[str(site.folder), str(behind)]))
    assert PluginManager(distributions=both).records() == ()


@pytest.mark.parametrize(
    ("entries", "state", "words"),
    [
        ("[taskq.pools]\nx = not a module\n", State.INVALID, "reads 'x = not a module'"),
        ("[taskq.pools]\nx\n", State.INVALID, "reads 'x = '"),
        ("[taskq.pool]\nx = acme\n", State.INVALID, "'taskq.pool' is no entry-point group"),
        ("[taskq.pools]\nx = acme\ny = acme\nx = other\n", State.INVALID, "declares pool 'x' 2 times"),
        ("[taskq.transports]\nRedis = acme\n", State.INVALID, "lower case"),
    ],
)
def test_damaged_entries_are_records_that_say_so(site, entries, state, words):
    site.distribution("acme", entries)
    faulty = [r for r in site.manager().records() if r.state is not State.INSTALLED]
    assert faulty
    for record in faulty:
        assert record.state is state
        assert words in record.detail


def test_the_same_entry_twice_is_one(site):
    site.distribution("acme", "# comment\n[taskq.pools]\nx = acme.pool:plugin [extra]\n; more\nx = acme.pool:plugin\n")
    (record,) = site.manager().records()
    assert (record.value, record.state) == ("acme.pool:plugin", State.INSTALLED)


def test_metadata_without_name_or_version_is_broken_and_identified_by_its_folder(site):
    site.distribution("acme-pool", {"taskq.pools": {"acme": "acme"}}, metadata="Metadata-Version: 2.1\n\nName: no\n")
    (record,) = site.manager().records()
    assert (record.distribution, record.version, record.state) == ("acme-pool", "?", State.BROKEN)
    assert "no name and no version" in record.detail


def test_an_unreadable_distribution_of_ours_is_shown_and_a_strangers_ignored(site):
    for name in ("taskq-pool-acme", "stranger"):
        info = site.distribution(name, {"taskq.pools": {"acme": "acme"}})
        (info / "entry_points.txt").write_bytes(b"[taskq.pools]\nacme = \xff\xfe\n")
    (record,) = site.manager().records()
    assert (record.distribution, record.state) == ("taskq-pool-acme", State.BROKEN)
    assert "cannot be read" in record.detail


def test_missing_requirements_are_those_without_marker_that_nothing_provides(site):
    requires = ["no-such-client>=2", "pluggy>=1", "other[x]", 'extra-thing; extra == "more"', "not.there"]
    site.distribution("acme", {"taskq.pools": {"acme": "acme"}}, requires=requires)
    site.distribution("other")
    assert discovery.missing_requirements("acme") == ["no-such-client>=2", "not.there"]
    assert discovery.missing_requirements("nothing-of-this-name") == []


def test_eggs_are_told_apart_although_their_folders_are_called_alike(site, tmp_path):
    eggs = []
    for name in ("one", "two"):
        info = tmp_path / f"{name}.egg" / "EGG-INFO"
        info.mkdir(parents=True)
        (info / "PKG-INFO").write_text(f"Name: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[taskq.pools]\n{name} = {name}\n")
        eggs.append(PathDistribution(info))
    assert [r.distribution for r in PluginManager(distributions=eggs).records()] == ["one", "two"]


def test_discovery_imports_no_plugin(site):
    site.transport("acme", "acme_plugin", "acme")
    site.manager().records()
    assert "acme_plugin" not in sys.modules
