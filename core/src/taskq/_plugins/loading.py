"""Import a plugin with stevedore, register it with pluggy, ask and validate it. Every failure is a typed error.

Both libraries are used without the parts that bite: stevedore never lists entry points by itself (its listing is cached
on disk for minutes and forgets the distribution; its grouping overlooks duplicate names that are not neighbours), and
pluggy never loads entry points (one broken plugin ends the host, a duplicate is skipped in silence).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskq._plugins.hints import install_command, label
from taskq._plugins.records import GROUPS, KINDS, URL_KINDS, PluginRecord
from taskq.errors import PluginBroken, PluginError, PluginIncompatible, PluginInvalid

if TYPE_CHECKING:
    import pluggy

    from taskq.spi.specs import ComponentSpec

_GROUP_OF = {kind: group for group, kind in GROUPS.items()}


def load(record: PluginRecord, *, direct: bool = False) -> Any:
    """Import what an entry point names.

    ``direct`` imports the module by its name (children with a plan: neither stevedore nor metadata is read).

    Raises:
        PluginBroken: the import failed; the cause is chained.
        PluginIncompatible: it asks the kernel for something that this version does not have.
    """
    try:
        return _load_directly(record.value) if direct else _load_with_stevedore(record)
    except (Exception, SystemExit) as exc:  # stevedore lets an AssertionError through, nobody expects an exit
        if by_signal(exc):
            raise
        raise failure(record, exc, "cannot be imported") from exc


def _load_directly(value: str) -> Any:
    from importlib import import_module

    module, _, attributes = value.partition(":")
    found: Any = import_module(module)
    for attribute in filter(None, attributes.split(".")):
        found = getattr(found, attribute)
    return found


def _load_with_stevedore(record: PluginRecord) -> Any:
    from importlib.metadata import EntryPoint

    from stevedore.driver import DriverManager

    entry = EntryPoint(record.name, record.value, _GROUP_OF[record.kind])

    class OneDriver(DriverManager[Any]):
        def list_entry_points(self) -> list[EntryPoint]:
            return [entry]  # never stevedore's own listing

    return OneDriver(entry.group, entry.name).extensions[0].plugin


def by_signal(exc: BaseException) -> bool:
    """Tell whether a signal handler of the program raised it, which struck here by chance: no fault of a plugin."""
    import signal

    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()} - {None}
    step = exc.__traceback__
    while step is not None:
        if step.tb_frame.f_code in handlers:
            return True
        step = step.tb_next
    return False


def failure(record: PluginRecord, exc: BaseException, what: str) -> PluginError:
    """Return the error for a plugin that failed: whose fault it is and what to do."""
    subject = f"{label(record.kind, record.name)} of {record.origin} {what}"
    reinstall = install_command(record.distribution, again=True)
    if isinstance(exc, ImportError) and exc.name:
        top, own = exc.name.partition(".")[0], record.value.partition(":")[0].partition(".")[0]
        if top == "taskq":
            return PluginIncompatible(f"{subject}: {exc}; {_advice(record, None)}")
        if isinstance(exc, ModuleNotFoundError):
            if top == own:
                return PluginBroken(
                    f"{subject}: its own module {exc.name!r} is missing, so the installation is damaged or its entry "
                    f"point is misspelt; reinstall it: {reinstall}"
                )
            return PluginBroken(
                f"{subject}: it needs the module {exc.name!r}, which is not installed; install the plugin with its "
                f"dependencies: {reinstall}"
            )
    hint = ""
    if isinstance(exc, TypeError) and "argument" in str(exc):
        hint = f"; a plugin written for another plugin interface fails like this: {_advice(record, None)}"
    return PluginBroken(f"{subject}: {type(exc).__name__}: {exc}{hint}")


def _advice(record: PluginRecord, spi: str | None) -> str:
    from taskq.spi.version import COMPATIBLE_SPI

    here = f"this taskq-core understands plugin interface {', '.join(COMPATIBLE_SPI)}"
    if spi is None:
        return f"{here}; upgrade taskq-core or {record.distribution}, whichever is older"
    older = _numbers(spi) < min(_numbers(v) for v in COMPATIBLE_SPI)
    return f"{here}; upgrade {record.distribution if older else 'taskq-core'}, or downgrade " + (
        "taskq-core" if older else record.distribution
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


# ---------------------------------------------------------------------------------------------------------- pluggy


def new_hooks() -> pluggy.PluginManager:
    """Return pluggy's manager with the specifications of all hooks and no plugin."""
    import pluggy

    from taskq.spi.hooks import PROJECT, ContributionHooks, KindHooks

    hooks = pluggy.PluginManager(PROJECT)
    hooks.add_hookspecs(KindHooks)
    hooks.add_hookspecs(ContributionHooks)
    return hooks


def register(
    hooks: pluggy.PluginManager, plugin: Any, record: PluginRecord, records: Sequence[PluginRecord] | None
) -> list[str]:
    """Register a plugin wholly or not at all, and return the names of the specified hooks that it implements.

    ``records`` are all entry points, to see that every hook has the one that makes it be called; None skips that.

    Raises:
        PluginBroken: pluggy refuses it (a wrong argument), or it failed on what it was told while registering.
        PluginInvalid: a hook that does not exist, is never called, or is a wrapper.
    """
    import pluggy as library

    subject = f"{label(record.kind, record.name)} of {record.origin}"
    try:
        try:
            hooks.register(plugin, f"{record.distribution}:{record.kind}:{record.name}")
            hooks.check_pending()
        except library.PluginValidationError as exc:
            unknown = _unknown_hooks(hooks, plugin)
            if unknown:
                raise PluginInvalid(f"{subject} implements {'; '.join(unknown)}") from exc
            text = " ".join(str(exc).split())
            raise PluginBroken(f"{subject} implements a hook wrongly: {text}") from exc
        except (Exception, SystemExit) as exc:  # a historic hook is called while registering
            if by_signal(exc):
                raise
            raise failure(record, exc, "failed while it was registered") from exc
        callers = hooks.get_hookcallers(plugin) or []
        for caller in callers:
            if any(i.plugin is plugin and (i.wrapper or i.hookwrapper) for i in caller.get_hookimpls()):
                raise PluginInvalid(f"{subject} implements {caller.name} as a wrapper; wrappers are not supported")
        names = [caller.name for caller in callers if caller.has_spec()]
        for name in names if records is not None else ():
            kind = name.removeprefix("taskq_")
            kind = kind if kind in KINDS else "plugin"
            if not any(r.kind == kind and r.value == record.value for r in records or ()):
                raise PluginInvalid(
                    f"{subject} implements {name}, which would never be called: no entry point of group "
                    f"{_GROUP_OF[kind]} names {record.value}"
                )
    except PluginError:
        if hooks.is_registered(plugin):
            hooks.unregister(plugin)
        raise
    return names


def _unknown_hooks(hooks: pluggy.PluginManager, plugin: Any) -> list[str]:
    import difflib

    known = [name for name, caller in vars(hooks.hook).items() if name[0] != "_" and caller.has_spec()]
    unknown = []
    for caller in hooks.get_hookcallers(plugin) or ():
        if not caller.has_spec() and not all(i.optionalhook for i in caller.get_hookimpls() if i.plugin is plugin):
            close = difflib.get_close_matches(caller.name, known, n=1)
            meant = (
                f"did you mean {close[0]}?" if close else "if a newer taskq has it, use @hookimpl(optionalhook=True)"
            )
            unknown.append(f"{caller.name}, which is no hook; {meant}")
    return unknown


# ------------------------------------------------------------------------------------------------------ one of a kind


def ask(plugin: Any, record: PluginRecord, records: Sequence[PluginRecord]) -> ComponentSpec:
    """Register a loaded plugin of a kind by itself, ask it for its spec and validate the answer.

    Raises:
        PluginBroken, PluginInvalid, PluginIncompatible
    """
    subject = f"{label(record.kind, record.name)} of {record.origin}"
    hook = f"taskq_{record.kind}"
    hooks = new_hooks()  # of its own: no other plugin can answer in its place, nothing is left behind on failure
    names = register(hooks, plugin, record, records)
    if hook not in names:
        others = f"; it implements {', '.join(names)}" if names else ""
        raise PluginInvalid(f"{subject}: {record.value} has no function {hook} marked with @hookimpl{others}")
    argument = "scheme" if record.kind in URL_KINDS else "name"
    try:
        spec = getattr(hooks.hook, hook)(**{argument: record.name})
    except PluginError:
        raise
    except (Exception, SystemExit) as exc:
        if by_signal(exc):
            raise
        raise failure(record, exc, f"failed in {hook}") from exc
    _validate(spec, record, records, subject)
    valid: ComponentSpec = spec
    return valid


def _validate(spec: Any, record: PluginRecord, records: Sequence[PluginRecord], subject: str) -> None:
    from taskq.spi import specs
    from taskq.spi.capabilities import PoolCapabilities
    from taskq.spi.options import NoOptions
    from taskq.spi.version import COMPATIBLE_SPI

    if spec is None:
        raise PluginInvalid(f"{subject} answered None for its own entry point {record.name!r}")
    # Before the type: what an older interface called a spec need not be an instance of today's class.
    spi = getattr(spec, "spi", None)
    if isinstance(spi, str) and spi not in COMPATIBLE_SPI:
        raise PluginIncompatible(f"{subject} is written for plugin interface {spi}; {_advice(record, spi)}")
    wanted: type = {
        "transport": specs.TransportSpec, "result_store": specs.StoreSpec, "pool": specs.PoolSpec,
        "serializer": specs.SerializerSpec, "compressor": specs.CompressorSpec, "scheduler": specs.SchedulerSpec,
        "autoscaler": specs.AutoscalerSpec,
    }[record.kind]  # fmt: skip
    if not issubclass(type(spec), wanted):
        raise PluginInvalid(f"{subject} answered with {type(spec).__name__}, not {wanted.__name__}")
    faults = []
    if record.kind in URL_KINDS:
        entries = {
            r.name for r in records
            if (r.kind, r.distribution, r.value) == (record.kind, record.distribution, record.value)
        }  # fmt: skip
        if not isinstance(spec.schemes, tuple):
            faults.append(f"its schemes are no tuple: {spec.schemes!r}")
        elif {*spec.schemes} != entries:
            faults.append(
                f"its spec names the schemes {', '.join(sorted(spec.schemes)) or 'none'}, its entry points "
                f"{', '.join(sorted(entries))}"
            )
        if not callable(spec.capabilities):
            faults.append("its capabilities are no function of the options")
    elif spec.name != record.name:
        faults.append(f"its spec is named {spec.name!r}, its entry point {record.name!r}")
    if record.kind == "pool" and not isinstance(spec.capabilities, PoolCapabilities):
        faults.append("its capabilities are no PoolCapabilities")
    if not callable(spec.factory):
        faults.append("its factory cannot be called")
    options: Any = spec.options
    frozen = getattr(getattr(options, "__dataclass_params__", None), "frozen", False)
    if not (isinstance(options, type) and (frozen or issubclass(options, NoOptions))):
        faults.append(f"its options are neither a frozen dataclass nor NoOptions: {options!r}")
    if faults:
        raise PluginInvalid(f"{subject} is invalid: {'; '.join(faults)}")


def check_command(command: Any, record: PluginRecord) -> Any:
    """Return a loaded command of the command line.

    Raises:
        PluginInvalid: it is no ``click.Command``.
    """
    import click

    if not isinstance(command, click.Command):
        raise PluginInvalid(
            f"{label(record.kind, record.name)} of {record.origin}: {record.value} is no click command but a "
            f"{type(command).__name__}"
        )
    return command
