"""Patterns, conflicts, choices and hints: which plugin a name means, and what is said when it means none."""

from __future__ import annotations

import pickle
import sys

import pytest

from taskq._plugins import KINDS, State, hints
from taskq.errors import ConfigError, PluginBlocked, PluginConflict, PluginInvalid, PluginNotInstalled


def states(manager):
    return {(r.distribution, r.name): r.state for r in manager.records()}


# ------------------------------------------------------------------------------------------------ blocked and only


@pytest.mark.parametrize(
    "pattern",
    ["acme", "transport:acme", "transport:ac*", "acme-transport", "Acme_Transport", "acme-*", " transport:acme "],
)
def test_blocked_by_name_kind_or_distribution_before_any_import(site, pattern):
    site.transport("acme-transport", "acme_plugin", "acme")
    manager = site.manager(blocked=[pattern])
    with pytest.raises(PluginBlocked, match=r"acme-transport 1\.0: plugins\.blocked names"):
        manager.select("transport", "acme")
    assert manager.records()[0].state is State.BLOCKED
    assert "acme_plugin" not in sys.modules


@pytest.mark.parametrize("pattern", ["pool:acme", "acm", "taskq-transport-acme", "transport:acme2"])
def test_a_pattern_blocks_nothing_else(site, pattern):
    site.transport("acme-transport", "acme_plugin", "acme")
    assert site.manager(blocked=[pattern]).select("transport", "acme").name == "acme"


def test_store_is_short_for_result_store(site):
    site.distribution("acme", {"taskq.result_stores": {"acme": "acme"}, "taskq.transports": {"acme": "acme"}})
    found = {r.kind: r.state for r in site.manager(blocked=["store:acme"]).records()}
    assert found == {"result_store": State.BLOCKED, "transport": State.INSTALLED}


def test_only_lets_nothing_else_load_and_an_empty_list_lets_nothing(site):
    site.transport("taskq-transport-acme", "acme_plugin", "acme")
    site.transport("stranger", "stranger_plugin", "other")
    manager = site.manager(only=["taskq-*"])
    assert manager.select("transport", "acme").name == "acme"
    with pytest.raises(PluginBlocked, match=r"plugins\.only does not name it"):
        manager.select("transport", "other")
    assert "stranger_plugin" not in sys.modules
    assert {*states(site.manager(only=[])).values()} == {State.BLOCKED}
    assert {*states(site.manager(only=None)).values()} == {State.INSTALLED}


def test_blocked_goes_before_only(site):
    site.transport("acme", "acme_plugin", "acme")
    with pytest.raises(PluginBlocked, match=r"plugins\.blocked"):
        site.manager(only=["acme"], blocked=["acme"]).select("transport", "acme")


@pytest.mark.parametrize("setting", ["blocked", "only"])
@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("", "write a plugin's name"),
        ("pool:", "write a plugin's name"),
        ("transports:x", "no kind 'transports'"),
        ("transport.redis", "write 'transport:redis'"),
    ],
)
def test_a_pattern_that_cannot_match_is_refused_at_once(site, setting, pattern, words):
    with pytest.raises(ConfigError, match=words) as raised:
        site.manager(**{setting: [pattern]})
    assert f"plugins.{setting}" in str(raised.value)


# ------------------------------------------------------------------------------------------------------- conflicts


def test_two_distributions_conflict_only_when_their_name_is_selected(site):
    site.transport("acme-one", "acme_one", "acme", version="1.2")
    site.transport("between", "between_plugin", "between")
    site.transport("zz-acme-two", "acme_two", "acme", version="3.4")
    manager = site.manager()
    assert manager.select("transport", "between").name == "between"
    with pytest.raises(PluginConflict) as raised:
        manager.select("transport", "acme")
    message = str(raised.value)
    for part in ("acme-one 1.2", "zz-acme-two 3.4", 'plugins.choose = {"transport:acme" = "acme-one"}'):
        assert part in message
    assert not {"acme_one", "acme_two"} & {*sys.modules}
    assert states(manager)["acme-one", "acme"] is State.CONFLICT
    assert "acme-one 1.2 and zz-acme-two 3.4" in manager.records()[0].detail


def test_the_same_name_in_two_kinds_is_no_conflict(site):
    site.transport("acme-transport", "acme_plugin", "acme")
    site.distribution("acme-store", {"taskq.result_stores": {"acme": "acme_store"}})
    assert {*states(site.manager()).values()} == {State.INSTALLED}


def test_choose_settles_a_conflict_and_blocks_the_other(site):
    site.transport("acme-one", "acme_one", "acme")
    site.transport("acme-two", "acme_two", "acme")
    manager = site.manager(choose={"transport:acme": "ACME_two"})
    manager.select("transport", "acme")
    assert "acme_two" in sys.modules
    assert "acme_one" not in sys.modules
    assert states(manager) == {("acme-one", "acme"): State.BLOCKED, ("acme-two", "acme"): State.LOADED}


def test_blocking_one_of_two_settles_the_conflict(site):
    site.transport("acme-one", "acme_one", "acme")
    site.transport("acme-two", "acme_two", "acme")
    manager = site.manager(blocked=["acme-one"])
    manager.select("transport", "acme")
    assert "acme_one" not in sys.modules
    why = manager.why("transport", "acme")
    assert (why.setting, why.chosen.distribution) == ("plugins.blocked", "acme-two")


def test_choose_never_falls_back_to_another_distribution(site):
    site.transport("stranger", "stranger_plugin", "acme")
    with pytest.raises(
        PluginNotInstalled, match=r"takes transport:acme from taskq-transport-acme.*offered by stranger 1\.0"
    ):
        site.manager(choose={"transport:acme": "taskq-transport-acme"}).select("transport", "acme")
    assert "stranger_plugin" not in sys.modules


@pytest.mark.parametrize(
    ("key", "distribution"),
    [("acme", "acme"), ("tansport:acme", "acme"), ("transport:*", "acme"), ("transport:acme", "")],
)
def test_choose_needs_kind_name_and_distribution(site, key, distribution):
    with pytest.raises(ConfigError, match=r"plugins\.choose"):
        site.manager(choose={key: distribution})


def test_a_strangers_offer_of_our_name_is_a_conflict_not_a_take_over(site):
    site.transport("taskq-transport-redis", "ours_plugin", "redis")
    site.transport("aaa-stranger", "stranger_plugin", "redis")
    with pytest.raises(PluginConflict, match="aaa-stranger"):
        site.manager().select("transport", "redis")
    assert "stranger_plugin" not in sys.modules


def test_damaged_metadata_is_fatal_only_when_selected(site):
    site.distribution("acme", "[taskq.transports]\nacme = no module\n")
    site.transport("other", "other_plugin", "other")
    manager = site.manager()
    assert manager.select("transport", "other").name == "other"
    with pytest.raises(PluginInvalid, match=r"'acme' of acme 1\.0 cannot be used.*reads"):
        manager.select("transport", "acme")


# ------------------------------------------------------------------------------------------------------------- why


def test_why_names_every_candidate_what_excluded_it_and_by_which_setting(site):
    site.transport("acme-one", "acme_one", "acme")
    site.transport("acme-two", "acme_two", "acme", version="2.0")
    why = site.manager(choose={"transport:acme": "acme-two"}).why("transport", "acme")
    assert why.chosen.origin == "acme-two 2.0"
    assert why.setting == "plugins.choose"
    assert [(r.distribution, excluded) for r, excluded in why.candidates] == [
        ("acme-one", "plugins.choose takes acme-two"), ("acme-two", ""),
    ]  # fmt: skip
    assert why.lines[0].startswith("asked for transport 'acme'")
    assert "acme-two 2.0 (acme_two): chosen by plugins.choose" in why.lines
    assert pickle.loads(pickle.dumps(why)) == why


@pytest.mark.parametrize(
    ("settings", "error"),
    [({}, "PluginConflict"), ({"blocked": ["acme"]}, "PluginBlocked"), ({"only": []}, "PluginBlocked")],
)
def test_why_tells_the_error_that_select_raises(site, settings, error):
    site.transport("acme-one", "acme_one", "acme")
    site.transport("acme-two", "acme_two", "acme")
    manager = site.manager(**settings)
    why = manager.why("transport", "acme")
    assert (why.chosen, why.error) == (None, error)
    with pytest.raises(Exception, match=r".") as raised:
        manager.select("transport", "acme")
    assert type(raised.value).__name__ == error
    assert str(raised.value) == why.lines[-1]


# ----------------------------------------------------------------------------------------------------------- hints


@pytest.mark.parametrize(
    ("kind", "name", "distribution"),
    [
        ("transport", "redis", "taskq-transport-redis"),
        ("transport", "redis+sentinel", "taskq-transport-redis"),
        ("transport", "postgresql", "taskq-transport-sqlalchemy"),
        ("transport", "kombu+filesystem", "taskq-transport-kombu"),
        ("transport", "amqps", "taskq-transport-amqp"),
        ("result_store", "memcached", "taskq-store-memcached"),
        ("result_store", "cassandra", "taskq-store-cassandra"),
        ("pool", "prefork", "taskq-pool-prefork"),
        ("serializer", "msgpack", "taskq-serializer-msgpack"),
        ("compressor", "bzip2", "taskq-compressor-bzip2"),
        ("scheduler", "simple", "taskq-scheduler-simple"),
        ("autoscaler", "simple", "taskq-autoscaler-simple"),
    ],
)
def test_a_known_name_says_what_to_install(site, kind, name, distribution):
    with pytest.raises(PluginNotInstalled) as raised:
        site.manager().select(kind, name)
    assert f"provided by {distribution}: pip install --no-index --find-links dist {distribution}" in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "spelling", "ours"),
    [
        ("transport", "pyamqp", "amqp"),
        ("transport", "sqla+postgresql", "postgresql"),
        ("transport", "sqla+sqlite", "sqlite+sqlalchemy"),
        ("transport", "postgresql+psycopg2", "postgresql"),
        ("transport", "redis-cluster", "redis+cluster"),
        ("transport", "sentinel", "redis+sentinel"),
        ("transport", "filesystem", "kombu+filesystem"),
        ("result_store", "db+postgresql", "postgresql"),
        ("result_store", "db+mysql+pymysql", "mysql"),
        ("result_store", "db+mariadb", "mariadb"),
        ("result_store", "rpc", "amqp"),
        ("result_store", "cache+memcached", "memcached"),
        ("result_store", "django-db", "django"),
        ("pool", "processes", "prefork"),
        ("pool", "thread", "threads"),
        ("pool", "single", "solo"),
        ("serializer", "application/json", "json"),
        ("compressor", "gzip", "zlib"),
    ],
)
def test_other_projects_spellings_name_ours(site, kind, spelling, ours):
    with pytest.raises(PluginNotInstalled, match="another project's spelling") as raised:
        site.manager().select(kind, spelling)
    assert f"{ours}://" in str(raised.value) or repr(ours) in str(raised.value)
    assert f"(provided by {hints.provider(kind, ours)})" in str(raised.value)


def test_a_plugin_may_still_offer_such_a_spelling(site):
    site.transport("acme", "acme_plugin", "pyamqp")
    assert site.manager().select("transport", "pyamqp").name == "pyamqp"


def test_an_unknown_name_suggests_what_is_known_or_installed(site):
    site.transport("acme", "acme_plugin", "wonderbus")
    for typed, meant in (("reddis", "redis://…"), ("wonderbuss", "wonderbus://…")):
        with pytest.raises(PluginNotInstalled, match="did you mean") as raised:
            site.manager().select("transport", typed)
        assert meant in str(raised.value)
    with pytest.raises(PluginNotInstalled, match=r"is unknown.*known are .*redis.*wonderbus.*taskq plugins list"):
        site.manager().select("transport", "qqqqqq")


def test_the_tables_are_sound():
    assert {*hints.KNOWN} == {*KINDS}
    for kind, aliases in hints.ALIASES.items():
        for spelling, ours in aliases.items():
            assert spelling not in hints.KNOWN[kind], f"{kind} {spelling} is a name of ours"
            assert hints.provider(kind, ours), f"{kind} {spelling} leads to {ours}, which nothing provides"
    assert {*hints.KNOWN["result_store"]} >= hints.SAME_SERVER_STORES
    assert {*hints.KNOWN["transport"]} >= hints.SAME_SERVER_STORES
    assert not {"amqp", "zeromq", "sqs", "memcached"} & hints.SAME_SERVER_STORES
