"""What all conformance suites share: the plugin's spec, its options, patience, and the ban on silent overrides."""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import msgspec
import pytest

from taskq._plugins import PluginManager
from taskq.config.values import convert, fields_of
from taskq.spi import Url

T = TypeVar("T")
SOAK = bool(os.environ.get("TASKQ_SOAK"))
"""Thousands of random steps instead of a few."""


class UndeclaredAbility(UserWarning):
    """A plugin can do what its capabilities do not declare: declare it, or users cannot have it."""


class Suite:
    """Base of every suite: subclass the one of your kind in a class named ``Test…`` and give what it asks for."""

    options: ClassVar[Mapping[str, Any]] = {}
    """Options of the plugin that every test uses."""
    skip_reasons: ClassVar[Mapping[str, str]] = {}
    """Test name → why it cannot pass here. The only way to leave out a test, besides an ``xfail`` with a reason."""
    patience_s: ClassVar[float] = 20.0
    """How long something that must happen soon may take on a busy machine before the test gives up. It costs nothing
    where it happens."""
    quiet_s: ClassVar[float] = 0.1
    """How long to watch that something does not happen."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if cls.__module__.startswith("taskq.testing."):
            return
        known = {name for base in cls.__mro__ for name in vars(base) if name.startswith("test_")}
        for name, reason in cls.skip_reasons.items():
            if name not in known or not reason.strip():
                raise TypeError(f"{cls.__name__}.skip_reasons[{name!r}]: there is no such test, or it gives no reason")
        kit = [base for base in cls.__mro__ if base.__module__.startswith("taskq.testing.")]
        for base in cls.__mro__:
            if base in kit or base is object:
                continue
            for name, found in vars(base).items():
                if name not in ("rig", "load_spec") and not name.startswith("test_"):
                    continue
                if not any(name in vars(suite) for suite in kit):
                    continue
                marks = getattr(found, "pytestmark", [])
                if not any(mark.name == "xfail" and mark.kwargs.get("reason") for mark in marks):
                    raise TypeError(
                        f"{base.__name__} overrides the kit's {name}. A plugin that cannot pass a test says so, with "
                        "@pytest.mark.xfail(reason=…) on the override or in skip_reasons; own tests get other names"
                    )

    @pytest.fixture(autouse=True)
    def _documented_skips(self, request: pytest.FixtureRequest) -> None:
        name = getattr(request.node, "originalname", None) or request.node.name
        if name in self.skip_reasons:
            pytest.skip(self.skip_reasons[name])

    def options_for(self, spec: Any, urls: tuple[Url, ...] = (), **more: Any) -> Any:
        """Return the plugin's options: the suite's, then those of the URL's query, then ``more``."""
        fields = fields_of(spec.options)
        values: dict[str, Any] = {**self.options}
        for name, text in urls[0].query if urls else ():
            assert name in fields, f"the URL fixture's query has {name!r}, which is no option of {spec.name}"
            values[name] = convert(text, fields[name].type, fields[name].about)
        return spec.options(**{**values, **more})


_manager: PluginManager | None = None


def select(kind: Any, name: str) -> Any:
    """Return a plugin's spec the way the kernel gets it: by entry point and hook."""
    global _manager
    if _manager is None:
        _manager = PluginManager()
    return _manager.select(kind, name)


def unique(prefix: str = "kit") -> str:
    """Return a name that no other test uses, so that one failing test does not fail the next."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def seed() -> int:
    """Return the seed for random faults: ``TASKQ_SEED``, or a new one. Print it; pytest shows it on failure."""
    value = int(os.environ.get("TASKQ_SEED") or random.randrange(2**32))
    print(f"TASKQ_SEED={value} repeats this run")  # noqa: T201
    return value


def within(seconds: float, what: str, call: Callable[[], T]) -> T:
    """Run a call that a defective plugin may never return from, on a thread of its own; fail the test if it hangs."""
    box: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            box.append((True, call()))
        except BaseException as error:
            box.append((False, error))

    thread = threading.Thread(target=run, name=f"kit: {what}", daemon=True)
    thread.start()
    thread.join(seconds)
    if not box:
        pytest.fail(f"{what} did not return within {seconds:g} s")
    ok, value = box[0]
    if not ok:
        raise value
    result: T = value
    return result


def eventually(seconds: float, what: str, check: Callable[[], T]) -> T:
    """Repeat a check until it gives a true value; fail the test if it never does."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds:g} s; the last answer was {value!r}")
        time.sleep(0.01)


def as_plain(options: Any) -> dict[str, Any]:
    """Return an options object as data for another process."""
    plain: dict[str, Any] = msgspec.to_builtins(options)
    return plain
