"""Write the reference pages that follow from the code: `python docs/generate.py` (`--check` only compares).

| page | from |
|---|---|
| reference/settings.md | taskq.config.schema, and the options of the installed plugins of this tree |
| reference/cli.md | the command line itself |
| reference/hooks.md | taskq.spi.hooks |
| reference/exceptions.md | taskq.errors |
| reference/capabilities.md | what the installed plugins of this tree declare |

tests/docs fails when a page is not what this program would write.
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from taskq import TaskQ, errors
from taskq.cli.group import COMMANDS, TaskQGroup
from taskq.cli.group import taskq as main_command
from taskq.config.merge import table_class
from taskq.config.schema import PLUGIN_SECTIONS, RouteSettings, Section, Settings
from taskq.config.values import About, describe, fields_of
from taskq.spi import hooks
from taskq.spi.capabilities import (
    Capabilities,
    Durability,
    LeaseScope,
    Ordering,
    PoolCapabilities,
    StoreCapabilities,
    Support,
)
from taskq.spi.url import Url

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/generate.py; change the code, then run it again. -->\n"
SETTINGS_INTRO = """\
[How to set them](../guides/configuration.md), and which source wins, is in the guide. `taskq config show --all`
prints the values in force with their origins.

A setting `name` is `TASKQ_NAME` in the environment, `worker.name` is `TASKQ_WORKER_NAME`, and `queues.NAME.key` is
`TASKQ_QUEUES__NAME__KEY`. Times take a unit as text (`"250ms"`, `"10m"`, `"1d"`), sizes too (`"64MiB"`). `"none"`
unsets what may be unset.
"""
OPTIONS_INTRO = """\
A plugin's options stand under its kind and name, as `transports.sqlite.synchronous`; a broker's and a result
store's may also stand in the URL's query, as `sqlite://?synchronous=NORMAL`.
"""
CLI_INTRO = """\
Every command says what it can do with `--help`, and what is wrong with its arguments in one line. `-A` names the
application as `module` or `module:attribute`; commands that need no application do with `--broker`,
`--result-store` and `--config`. Commands that print data take `--json`.

| variable | stands for |
| --- | --- |
| `TASKQ_APP` | `-A` |
| `TASKQ_CONFIG` | `--config` |
| `TASKQ_BROKER`, `TASKQ_RESULT_STORE`, … | [settings](settings.md) |
"""
HOOKS_INTRO = """\
A plugin is a module with functions marked `@hookimpl` (from `taskq.spi`). An implementation may take fewer
arguments than the hook has, never others. No hook is called per message.
"""
KINDS_INTRO = """\
A plugin of a kind implements one of these, and is asked only when it is selected. The entry-point groups are
`taskq.transports`, `taskq.result_stores`, `taskq.pools`, `taskq.serializers`, `taskq.compressors`,
`taskq.schedulers` and `taskq.autoscalers`. The specs are classes of `taskq.spi`.
"""
CONTRIBUTIONS_INTRO = """\
A module named in group `taskq.plugins` implements any of these; all loaded ones are called. *First*: the first
implementation with an answer ends the call. *Replayed*: a plugin that is loaded late hears of all that was declared
before.
"""
COMMANDS_TEXT = """\
Commands are no hooks: an entry point in group `taskq.commands` names a `click.Command`, which is imported when it
is used.
"""
EXCEPTIONS_INTRO = """\
All are in `taskq.errors`; those that applications meet most are in `taskq` too. Each says what was tried, what was
found and what to do. A task's own exception comes back from `get()` as its original type where that can be
imported, else as `TaskFailure`; its `__cause__` is a `RemoteTraceback` with the traceback of the worker.

*Retryable*: the same call may succeed later.
"""
CAPABILITIES_INTRO = """\
What the plugins of this repository declare with their default options. `taskq plugins show NAME` prints the same
for any installed plugin, and the conformance kit tests it. A plugin for several servers declares the most that one
of them can do; what depends on the server is in the notes, and exact once it is connected. What the promises mean
for tasks is in [delivery](../explanation/delivery.md).

*native*: the server does it. *emulated*: the plugin does it for the server. *no*: the kernel does it another way,
or refuses what needs it.
"""
KINDS = ("transport", "result_store", "pool", "serializer", "compressor", "scheduler", "autoscaler")


# ------------------------------------------------------------------------------------------------------------ helpers


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def one_line(text: str | None) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())


def code(text: str) -> str:
    """Return text as Markdown code; reST's double backticks become single ones elsewhere (`plain`)."""
    return f"`{text}`"


def quoted(name: str) -> str:
    """Return a name as TOML wants it in a key."""
    return name if re.fullmatch(r"[\w-]+", name) else f'"{name}"'


def plain(text: str) -> str:
    """Turn a docstring's double backticks into Markdown's."""
    return text.replace("``", "`")


def value_text(value: Any) -> str:
    """Return a default or a capability as a person would write it."""
    if value is None or value == ():
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, enum.Enum):
        return str(value.value).replace("_", " ")
    if isinstance(value, Url):
        return str(value)
    if isinstance(value, tuple | list):
        return ", ".join(map(value_text, value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB")):
            if value and value % size == 0:
                return f"{value // size} {unit}"
        return f"{value:,}" if value >= 10_000 else str(value)
    return str(value)


@functools.cache
def our_plugins() -> frozenset[str]:
    """Return the distributions of this tree: what is committed, so that nobody's unfinished work is on the pages."""
    command = ["git", "ls-files", "plugins/*/pyproject.toml"]
    listed = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True, check=False).stdout.split()
    files = map(Path, listed) if listed else (DOCS.parent / "plugins").glob("*/pyproject.toml")
    return frozenset(f"taskq-{file.parent.name}" for file in files)


def records(kind: str) -> Iterator[tuple[str, str, Any]]:
    """Yield (name, distribution, spec) of every installed plugin of a kind that is a distribution of this tree."""
    plugins = TaskQ("docs", isolated=True).plugins
    for record in plugins.records(kind):
        if record.distribution in our_plugins():
            yield record.name, record.distribution, plugins.select(record.kind, record.name)


# ----------------------------------------------------------------------------------------------------------- settings


def settings_page() -> str:
    fields = fields_of(Settings)
    tables = {name: table_class(field) for name, field in fields.items()}
    single = {name: field for name, field in fields.items() if tables[name] is None and name != "routes"}
    parts = ["# Settings\n", NOTE, SETTINGS_INTRO, "## Top level\n", _settings_table(single)]
    for name, section in tables.items():
        if section is not None:
            named = "" if isinstance(fields[name].default, Section) else ".NAME"
            about = fields[name].about.help.capitalize()
            parts += [f"## `{name}{named}`\n", f"{about}.\n", _settings_table(fields_of(section))]
    parts += ["## `routes`\n", "A list of tables, `[[tool.taskq.routes]]`; the first whose `match` fits decides.\n"]
    parts += [_settings_table(fields_of(RouteSettings)), "## Options of plugins\n", OPTIONS_INTRO]
    for kind in KINDS:
        section = PLUGIN_SECTIONS[kind]
        names: dict[str, list[str]] = {}
        for name, distribution, _ in records(kind):
            names.setdefault(distribution, []).append(code(f"{section}.{quoted(name)}"))
        for distribution, spec in {distribution: spec for _, distribution, spec in records(kind)}.items():
            options = fields_of(spec.options)
            if options:
                parts += [f"### {' · '.join(names[distribution])}\n", f"{spec.summary} (`{distribution}`).\n"]
                parts += [_settings_table(options)]
    return "\n".join(parts)


def _settings_table(fields: Mapping[str, Any]) -> str:
    return table(
        ("setting", "takes", "default", "meaning"),
        (
            (
                code(name),
                describe(field.type, field.about).replace("a list, each Any", "a list"),
                _default(field),
                plain(field.about.help),
            )
            for name, field in fields.items()
        ),
    )


def _default(field: Any) -> str:
    if field.default is msgspec.NODEFAULT:
        return "needed"
    about: About = field.about
    if about.secret and field.default:
        return "\\*\\*\\*"
    if field.default is None and about.none is not None:
        return '`"auto"`'
    if field.default in (None, (), {}, "", frozenset()):
        return "–"
    if isinstance(field.default, Url) or (isinstance(field.default, tuple) and isinstance(field.default[0], Url)):
        return "`sqlite://`"
    if isinstance(field.default, bool):
        return code(str(field.default).lower())
    text = value_text(field.default).replace(",", "") if isinstance(field.default, int) else value_text(field.default)
    unit = {"s": " s", "bytes": " bytes"}.get(about.unit, "")
    return code(text) + ("" if text.endswith("B") else unit)


# -------------------------------------------------------------------------------------------------------- command line


def cli_page() -> str:
    parts = ["# Commands\n", NOTE, CLI_INTRO]
    for path, command in _commands(main_command, "taskq"):
        context = click.Context(command, info_name=path, terminal_width=100, **main_command.context_settings)
        parts += [f"## `{path}`\n", "```text\n" + command.get_help(context).rstrip() + "\n```\n"]
    return "\n".join(parts)


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        yield path, _without_plugins(command)
        context = click.Context(command, info_name=path)
        for name in COMMANDS if isinstance(command, TaskQGroup) else command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands(found, f"{path} {name}")
    else:
        yield path, command


def _without_plugins(group: click.Group) -> click.Group:
    """Return a group whose help does not depend on the commands that plugins have added to this environment."""
    if not isinstance(group, TaskQGroup):
        return group
    texts = [click.Command(name, short_help=help_text) for name, (_, help_text) in COMMANDS.items()]
    return _Ordered(
        group.name, commands=texts, params=group.params, help=group.help, context_settings=group.context_settings
    )


class _Ordered(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


# -------------------------------------------------------------------------------------------------------------- hooks


def hooks_page() -> str:
    kinds, contributions = _hooks_table(hooks.KindHooks), _hooks_table(hooks.ContributionHooks)
    parts = ["# Hooks\n", NOTE, HOOKS_INTRO, "## One of the seven kinds\n", KINDS_INTRO, kinds]
    parts += ["## Contributions\n", CONTRIBUTIONS_INTRO, contributions, COMMANDS_TEXT]
    return "\n".join(parts)


def _hooks_table(owner: type) -> str:
    rows = []
    for name, function in vars(owner).items():
        if not name.startswith("taskq_"):
            continue
        signature = inspect.signature(function)
        arguments = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"]
        marks = getattr(function, f"{hooks.PROJECT}_spec")
        special = [word for flag, word in (("firstresult", "first"), ("historic", "replayed")) if marks.get(flag)]
        returns = str(signature.return_annotation)
        rows.append(
            (
                code(f"{name}({', '.join(p.name for p in arguments)})"),
                code(returns),
                ", ".join(special),
                plain(one_line(function.__doc__)),
            )
        )
    return table(("hook", "returns", "", "meaning"), rows)


# ---------------------------------------------------------------------------------------------------------- exceptions


def public_exceptions() -> list[type[BaseException]]:
    """Return the exceptions that `taskq.errors` defines, in its order."""
    found = vars(errors).items()
    return [v for n, v in found if isinstance(v, type) and issubclass(v, BaseException) and not n.startswith("_")]


def exceptions_page() -> str:
    ours = public_exceptions()
    rows: list[tuple[str, ...]] = []

    def add(parent: type[BaseException] | None) -> None:
        for cls in ours:
            if next((base for base in cls.__bases__ if base in ours), None) is not parent:
                continue
            bases = ", ".join(code(base.__name__) for base in cls.__bases__)
            retryable = value_text(cls.retryable) if hasattr(cls, "retryable") else ""
            rows.append((code(cls.__name__), bases, retryable, plain(one_line(cls.__doc__))))
            add(cls)

    add(None)
    parts = ["# Exceptions\n", NOTE, EXCEPTIONS_INTRO, table(("exception", "is a", "retryable", "meaning"), rows)]
    return "\n".join(parts)


# -------------------------------------------------------------------------------------------------------- capabilities

TRANSPORT_MEANINGS = {
    "durability": "what an accepted message survives: process · server · disk (power loss) · replicated",
    "cross_process": "other processes can reach it",
    "network": "other machines can reach it",
    "lease_scope": "what keeps a delivery held: message · consumer · connection · none",
    "lease_default_s": "lease in seconds, where `lease` does not say",
    "lease_min_s": "shortest lease in seconds",
    "max_hold_s": "longest time in seconds that one delivery may stay unsettled",
    "fencing": "a settlement after the lease ended is refused: exact (server) · local (client) · none",
    "duplicates": "when a message may be delivered again without a release or a crash",
    "delivery_count": "what the broker's count of deliveries says",
    "ordering": "order promised among messages of one priority",
    "hand_back": "giving back what was taken and not started",
    "wake_up": "how an idle worker learns of a message of another process",
    "delay": "delayed messages (`countdown`, `eta`, retries)",
    "max_delay_s": "longest delay in seconds of one message; the kernel adds legs",
    "release_delay": "a message given back may carry a delay",
    "priority": "priorities",
    "priority_levels": "levels of the ten that are kept apart",
    "priority_strict": "a higher level always goes first",
    "fair_groups": "`group=` shares a queue without order fairly among the groups",
    "routing": "`routing_key=` is honoured: the broker routes by it (topic, fan-out)",
    "max_payload_bytes": "largest message",
    "max_send_batch": "most messages per round trip of a send",
    "max_fetch_batch": "most messages per fetch",
    "max_settle_batch": "most settlements per round trip",
    "stats": "can count messages (`taskq queues`)",
    "purge": "can empty a queue (`taskq purge`)",
    "peek": "can look at messages without taking them",
    "broadcast": "can send to every consumer that listens",
    "transactional_send": "can send inside the caller's database transaction",
    "fused_stores": "result stores with which outcome and acknowledgement are one step",
}
STORE_MEANINGS = {
    "cross_process": "other processes can reach it",
    "network": "other machines can reach it",
    "keeps": "keeps a record until its ttl (durable), or may drop it earlier (evictable)",
    "readable_by": "who can read a result: anyone with its id, or the caller only",
    "push": "a waiting caller is told, rather than asking again and again",
    "ttl": "who ends a record's time",
    "supersede_exact": "a better record is never replaced, under concurrent writers too",
    "coordination": "atomic counters and locks, which count starts of suspect messages",
    "max_record_bytes": "largest record",
    "max_batch": "most records per round trip",
}
POOL_MEANINGS = {
    "inline": "runs on the worker's own thread, one task at a time, without a hand-off",
    "max_concurrency": "most tasks at a time",
    "default_concurrency": "slots when nobody says how many; else the CPUs",
    "isolation": "a task that kills its process leaves the worker alive",
    "sync_tasks": "runs `def` tasks",
    "async_tasks": "runs `async def` tasks",
    "soft_limit": "soft time limits",
    "hard_limit": "hard time limits",
    "cancel_running": "can stop a task that runs",
    "terminate": "a running job can be ended at once, whatever it does",
    "limits_sync": "limits and cancelling hold for `def` tasks, too; else for `async def` only",
    "resize": "can change its size while it runs (`--autoscale`)",
    "recycle": "replaces its processes (`max_tasks_per_child`, `max_memory_per_child`)",
    "monkey_patches": "library that patches the process first",
}
SURVIVES = {
    Durability.PROCESS: "nothing beyond its process",
    Durability.SERVER: "the end of every client",
    Durability.DISK: "power loss",
    Durability.REPLICATED: "the loss of a machine",
}


def capabilities_page() -> str:
    transports = list(_grouped("transport", lambda s: s.capabilities(s.options())))
    stores = list(_grouped("result_store", lambda s: s.capabilities(s.options())))
    pools = list(_grouped("pool", lambda s: s.capabilities))
    words = table(("", *(name for name, _ in transports)), _in_words([caps for _, caps in transports]))
    parts = ["# Capabilities\n", NOTE, CAPABILITIES_INTRO, "## Transports in words\n", words]
    parts += ["## Transports\n", _matrix(transports, TRANSPORT_MEANINGS, Capabilities), *_notes(transports)]
    parts += ["## Result stores\n", _matrix(stores, STORE_MEANINGS, StoreCapabilities), *_notes(stores)]
    parts += ["## Pools\n", _matrix(pools, POOL_MEANINGS, PoolCapabilities), *_notes(pools)]
    others = (
        (kind.replace("_", " "), code(name), code(distribution), spec.summary, _declares(spec))
        for kind in KINDS[3:]
        for name, distribution, spec in records(kind)
    )
    parts += ["## Others\n", table(("kind", "name", "distribution", "summary", "declares"), others)]
    return "\n".join(parts)


def _grouped(kind: str, capabilities: Callable[[Any], Any]) -> Iterator[tuple[str, Any]]:
    """Yield (names, capabilities), names of one distribution with the same capabilities together."""
    groups: list[tuple[list[str], str, Any]] = []
    for name, distribution, spec in records(kind):
        found = capabilities(spec)
        for names, other, same in groups:
            if other == distribution and same == found:
                names.append(name)
                break
        else:
            groups.append(([name], distribution, found))
    for names, _, found in groups:
        yield " ".join(map(code, names)), found


def _matrix(columns: list[tuple[str, Any]], meanings: Mapping[str, str], cls: Any) -> str:
    fields = [f for f in cls.__struct_fields__ if f != "notes"]
    assert set(fields) == set(meanings), f"say in docs/generate.py what these mean: {set(fields) ^ set(meanings)}"
    rows = [(code(f), *(value_text(getattr(caps, f)) for _, caps in columns), meanings[f]) for f in fields]
    return table(("", *(name for name, _ in columns), "meaning"), rows)


def _notes(columns: list[tuple[str, Any]]) -> list[str]:
    lines = [f"- {name}: {note}" for name, caps in columns for note in caps.notes]
    return ["\n".join(lines) + "\n"] if lines else []


def _in_words(columns: list[Capabilities]) -> Iterator[tuple[str, ...]]:
    def row(title: str, words: Callable[[Capabilities], str]) -> tuple[str, ...]:
        return (title, *map(words, columns))

    yield row("reach", lambda c: "any machine" if c.network else "one machine" if c.cross_process else "one process")
    yield row(
        "an accepted message survives",
        lambda c: f"up to {SURVIVES[c.durability]}, as the server is set up" if c.network else SURVIVES[c.durability],
    )
    yield row("a dead worker's messages come back", _comes_back)
    yield row(
        "delivered again without a crash",
        lambda c: "possible" if c.duplicates == "possible" else "only after a lost lease",
    )
    yield row(
        "a late settlement", lambda c: {"exact": "is refused", "local": "is dropped here"}.get(c.fencing, "may count")
    )
    yield row("order", _order)
    yield row("delays", lambda c: "no" if c.delay is Support.NO else "yes")
    yield row("priorities", lambda c: "no" if c.priority is Support.NO else f"{c.priority_levels} levels")
    yield row("an idle worker starts", lambda c: "at once" if c.wake_up == "push" else "at its next look")
    yield row(
        "result and acknowledgement",
        lambda c: f"one step with {', '.join(c.fused_stores)}" if c.fused_stores else "two steps",
    )
    yield row("sends inside your transaction", lambda c: "yes" if c.transactional_send else "no")


def _comes_back(caps: Capabilities) -> str:
    if not caps.cross_process:
        return "no: they end with the process"
    if caps.lease_scope is LeaseScope.NONE:
        return "by the server's own rule"
    if caps.lease_scope is LeaseScope.CONNECTION:
        return "when its connection is gone"
    return f"within its lease, {caps.lease_default_s:g} s"


def _order(caps: Capabilities) -> str:
    return {
        Ordering.NONE: "not promised",
        Ordering.QUEUE: "first in, first out per queue",
        Ordering.GROUP: "per queue, and strictly per group where declared ordered",
    }[caps.ordering]


def _declares(spec: Any) -> str:
    found = {f: getattr(spec, f) for f in ("trusted", "rules", "shared", "needs") if hasattr(spec, f)}
    return "; ".join(f"{name}: {value_text(value)}" for name, value in found.items())


# ---------------------------------------------------------------------------------------------------------------- main

PAGES: Mapping[str, Callable[[], str]] = {
    "reference/settings.md": settings_page,
    "reference/cli.md": cli_page,
    "reference/hooks.md": hooks_page,
    "reference/exceptions.md": exceptions_page,
    "reference/capabilities.md": capabilities_page,
}


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    stale = []
    for name, make in PAGES.items():
        page, text = DOCS / name, make().rstrip() + "\n"
        if page.exists() and page.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            page.write_text(text, encoding="utf-8")
            print("wrote", name)
    if check and stale:
        print("not what docs/generate.py would write:", ", ".join(stale))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
