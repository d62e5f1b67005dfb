"""Exceptions come back as they were raised: type, arguments, attributes, and the traceback of the worker."""

from __future__ import annotations

import asyncio
import sys
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from taskq import TaskFailure, TaskQ
from taskq.errors import RemoteTraceback


class PlainError(Exception):
    pass


class CodedError(Exception):
    """Its __init__ takes what it does not pass on."""

    def __init__(self, code: int, *, detail: str = "") -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.detail = detail


class DeepError(CodedError):
    def __init__(self) -> None:
        super().__init__(7, detail="deep")


class StrictError(Exception):
    """Cannot be made without what it does not keep."""

    def __init__(self, a: Any, b: Any) -> None:
        super().__init__()
        self.a = a

    def __str__(self) -> str:
        return f"strict {self.a}"


@dataclass
class DataError(Exception):
    code: int
    text: str = "x"


class Outer:
    class NestedError(Exception):
        pass


class WithHandleError(Exception):
    """Carries what no serializer can write."""

    def __init__(self, message: str) -> None:
        super().__init__(message, object())
        self.handle = open(__file__)  # noqa: SIM115
        self.handle.close()
        self.hint = "kept"


class UnwillingError(Exception):
    def __init__(self, *args: Any) -> None:
        raise AssertionError("its __init__ must not be called")


RAISED: dict[str, Callable[[], BaseException]] = {
    "plain": lambda: PlainError("message", 5, {"a": [1]}),
    "builtin": lambda: KeyError("missing"),
    "os": lambda: FileNotFoundError(2, "No such file", "there"),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "coded": lambda: CodedError(404, detail="not here"),
    "deep": DeepError,
    "strict": lambda: StrictError(1, 2),
    "data": lambda: DataError(5, "y"),
    "nested": lambda: Outer.NestedError("inner"),
    "handle": lambda: WithHandleError("carries a file"),
    "noted": lambda: _noted(PlainError("noted")),
    "group": lambda: ExceptionGroup("several", [ValueError(1), PlainError(2)]),
    "cancelled": lambda: asyncio.CancelledError("stop"),
    "local": lambda: _local_error(),
}


def _noted(error: Exception) -> Exception:
    error.add_note("while tidying up")
    return error


def _local_error() -> Exception:
    class LocalError(Exception):
        pass

    return LocalError("nobody else has me", 3)


@pytest.fixture
def raiser(rig: Any, app: TaskQ) -> Any:
    @app.task(name="raiser")
    def raiser(name: str) -> None:
        raise RAISED[name]()

    @app.task(name="chained")
    def chained() -> None:
        try:
            _innermost()
        except LookupError as error:
            raise CodedError(1) from error

    return raiser


def _innermost() -> None:
    raise LookupError("the first cause")


def comes_back(rig: Any, app: TaskQ, name: str) -> Any:
    result = app.tasks["raiser"].delay(name)
    rig.drain(app)
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        result.get(timeout=1)
    return caught.value


def test_type_message_and_arguments(rig: Any, app: TaskQ, raiser: Any) -> None:
    error = comes_back(rig, app, "plain")
    assert type(error) is PlainError
    assert error.args == ("message", 5, {"a": [1]})
    assert str(comes_back(rig, app, "builtin")) == "'missing'"


@pytest.mark.parametrize("name", ["plain", "builtin", "unicode", "coded", "deep", "strict", "data", "nested"])
def test_the_same_type_text_and_attributes(rig: Any, app: TaskQ, raiser: Any, name: str) -> None:
    original, error = RAISED[name](), comes_back(rig, app, name)
    assert type(error) is type(original)
    assert str(error) == str(original)
    assert {k: v for k, v in vars(error).items() if not k.startswith("__")} == vars(original)


def test_os_errors_keep_what_they_are_about(rig: Any, app: TaskQ, raiser: Any) -> None:
    error = comes_back(rig, app, "os")
    assert type(error) is FileNotFoundError
    assert (error.errno, error.strerror) == (2, "No such file")


def test_what_cannot_be_written_is_described(rig: Any, app: TaskQ, raiser: Any) -> None:
    error = comes_back(rig, app, "handle")
    assert type(error) is WithHandleError
    assert error.args[0] == "carries a file"
    assert error.args[1].startswith("<object object")
    assert error.hint == "kept"
    assert not hasattr(error, "handle")


@pytest.mark.parametrize("name", ["local", "group", "cancelled"])
def test_what_cannot_be_rebuilt_here_is_a_task_failure(rig: Any, app: TaskQ, raiser: Any, name: str) -> None:
    original, error = RAISED[name](), comes_back(rig, app, name)
    assert type(error) is TaskFailure
    assert error.type_name == f"{type(original).__module__}.{type(original).__qualname__}"
    assert str(error).startswith(error.type_name)
    assert (original.args[0] if name != "group" else "several") in str(error)
    assert "raise RAISED[name]()" in error.remote_traceback


def test_the_class_of_a_module_that_is_not_here(rig: Any, app: TaskQ) -> None:
    module = types.ModuleType("worker_only")
    exec("class OnlyThereError(Exception): pass", module.__dict__)

    @app.task
    def task() -> None:
        raise module.OnlyThereError("over there", 1)

    result = task.delay()
    sys.modules["worker_only"] = module
    try:
        rig.drain(app)
    finally:
        del sys.modules["worker_only"]
    with pytest.raises(TaskFailure, match=r"^worker_only\.OnlyThereError: .*over there"):
        result.get(timeout=1)


def test_a_class_that_is_no_exception_any_more(rig: Any, app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the store says, only exception classes are made of it."""
    result = app.task(name="t")(_raise_plain).delay()
    rig.drain(app)
    monkeypatch.setattr(sys.modules[__name__], "PlainError", print)
    with pytest.raises(TaskFailure, match="PlainError"):
        result.get(timeout=1)


def _raise_plain() -> None:
    raise PlainError


def test_an_init_of_its_own_is_not_called(rig: Any, app: TaskQ, raiser: Any) -> None:
    from taskq.failure import ErrorInfo, rebuild

    serializer = app.codec.serializer("json")
    error = rebuild(ErrorInfo(__name__, "UnwillingError", "m", serializer.dumps(["m"])), serializer)
    assert type(error) is UnwillingError
    assert error.args == ("m",)


def test_the_remote_traceback_is_the_cause(rig: Any, app: TaskQ, raiser: Any) -> None:
    result = app.tasks["chained"].delay()
    rig.drain(app)
    with pytest.raises(CodedError) as caught:
        result.get(timeout=1)
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    shown = "".join(traceback.format_exception(caught.value))
    for part in (
        "LookupError: the first cause",
        "_innermost()",
        "The above exception was the direct cause",
        "CodedError: code 1",
    ):
        assert part in cause.text
        assert part in shown
    # what is shown begins with the task, not with taskq's way to it
    assert "/taskq/runtime.py" not in cause.text
    assert result.traceback == cause.text


def test_notes_are_in_the_traceback(rig: Any, app: TaskQ, raiser: Any) -> None:
    error = comes_back(rig, app, "noted")
    assert "while tidying up" in str(error.__cause__)


def test_an_enormous_traceback_and_message_are_cut(rig: Any, app: TaskQ) -> None:
    @app.task
    def talkative() -> None:
        raise ValueError("x" * 500_000)

    result = talkative.delay()
    rig.drain(app)
    assert "… cut …" in (result.traceback or "")
    assert len(result.traceback or "") < 110_000
    ((info, _),) = rig.dead(app)
    assert len(info.reason) <= 10_000


def test_an_exception_raised_on_another_thread_of_the_same_process_keeps_its_own_cause(
    rig: Any, app: TaskQ, raiser: Any
) -> None:
    """Two callers get two exceptions: raising one does not change the other's traceback."""
    result = raiser.delay("plain")
    rig.drain(app)
    first, second = result.get(propagate=False), result.get(propagate=False)
    assert first is not second
    assert type(first) is type(second) is PlainError
