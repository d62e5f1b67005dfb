"""Results and failures as bytes: what a result store keeps in ``Record.payload``, and how exceptions come back.

An exception travels as its type's name, its arguments and its traceback as text. The reader rebuilds the original type
where that can be imported and is an exception; else it raises ``TaskFailure``. Nothing of it is pickled.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from typing import Any

import msgspec
from msgspec import Struct

from taskq.errors import DecodeError, RemoteTraceback, TaskDead, TaskExpired, TaskFailure, TaskRevoked
from taskq.spi.formats import Serializer


class ErrorInfo(Struct, array_like=True):
    """An exception as plain data; ``args`` and ``state`` are in the result's content type."""

    module: str
    qualname: str
    message: str
    args: bytes | None = None
    state: bytes | None = None
    traceback: str = ""


class ResultPayload(Struct, array_like=True):
    """What ``Record.payload`` holds.

    The encoded return value, or the error; ``at`` is when it ended (epoch seconds).
    """

    content_type: str
    value: bytes | None = None
    error: ErrorInfo | None = None
    transforms: list[list[Any]] | None = None
    at: float = 0.0
    worker: str = ""


encode_payload = msgspec.msgpack.Encoder().encode
_decode_payload = msgspec.msgpack.Decoder(ResultPayload).decode
_MESSAGE_LIMIT = 10_000
_TRACEBACK_LIMIT = 100_000


def decode_payload(data: bytes) -> ResultPayload:
    """Read a result record's payload.

    Raises:
        DecodeError: damaged.
    """
    try:
        return _decode_payload(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DecodeError(f"the stored result cannot be read: {error}") from error


def describe(error: BaseException) -> str:
    """Return ``Type: message`` of an exception whose ``__str__`` may itself fail."""
    try:
        text = str(error)
    except Exception as broken:
        text = f"<str() failed: {type(broken).__name__}>"
    return f"{type(error).__qualname__}: {text}"[:_MESSAGE_LIMIT]


def traceback_text(error: BaseException) -> str:
    """Return the traceback as text, without taskq's own frames in front; never raises."""
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None and "/taskq/" in tb.tb_frame.f_code.co_filename.replace("\\", "/"):
        tb = tb.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, tb))
    except Exception:
        text = f"{type(error).__qualname__} (its traceback could not be formatted)"
    if len(text) > _TRACEBACK_LIMIT:
        text = text[: _TRACEBACK_LIMIT // 2] + "\n… cut …\n" + text[-_TRACEBACK_LIMIT // 2 :]
    return text


def encode_error(error: BaseException, serializer: Serializer, text: str, worker: str = "") -> bytes:
    """Return the record payload of a failure; never raises."""
    cls = type(error)
    state = {k: v for k, v in vars(error).items() if not k.startswith("__")} if hasattr(error, "__dict__") else {}
    info = ErrorInfo(
        cls.__module__,
        cls.__qualname__,
        describe(error).partition(": ")[2],
        _safe_dumps(serializer, [_plain(serializer, a) for a in error.args]),
        _safe_dumps(serializer, {k: v for k, v in state.items() if _safe_dumps(serializer, v) is not None})
        if state
        else None,
        text,
    )
    return encode_payload(ResultPayload(serializer.content_type, None, info, None, time.time(), worker))


def _safe_dumps(serializer: Serializer, value: Any) -> bytes | None:
    try:
        return serializer.dumps(value)
    except Exception:
        return None


def _plain(serializer: Serializer, value: Any) -> Any:
    if _safe_dumps(serializer, value) is not None:
        return value
    try:
        return repr(value)[:1000]
    except Exception:
        return f"<{type(value).__qualname__}>"


def rebuild(info: ErrorInfo, serializer: Serializer | None) -> BaseException:
    """Return the exception to raise in the caller, with the remote traceback as its cause."""
    error = _rebuild_original(info, serializer)
    if error is None:
        name = f"{info.module}.{info.qualname}"
        error = TaskFailure(f"{name}: {info.message}", name, info.traceback)
    if info.traceback:
        error.__cause__ = RemoteTraceback(info.traceback)
    return error


def _rebuild_original(info: ErrorInfo, serializer: Serializer | None) -> BaseException | None:
    cls = _find_class(info.module, info.qualname)
    if cls is None or serializer is None:
        return None
    try:
        args = serializer.loads(info.args) if info.args is not None else [info.message]
        state = serializer.loads(info.state) if info.state is not None else {}
        # A class with an __init__ of its own may not accept what it passed to its base: then args are set without it.
        error: Any = cls(*args) if cls.__init__ in _PLAIN_INITS else cls.__new__(cls, *args)
        if not isinstance(error, BaseException):
            return None
        if error.args != tuple(args):
            error.args = tuple(args)
        if state and hasattr(error, "__dict__"):
            error.__dict__.update(state)
        str(error)
    except Exception:
        return None
    found: BaseException = error
    return found


_PLAIN_INITS = frozenset(
    cls.__init__
    for cls in vars(__import__("builtins")).values()
    if isinstance(cls, type) and issubclass(cls, BaseException)
)


def _find_class(module: str, qualname: str) -> type[Exception] | None:
    """Return an exception class by name, whatever the store says only a real one.

    A ``SystemExit`` or ``CancelledError`` ended the task over there; it must not end the caller here.
    """
    found: Any = sys.modules.get(module)
    if found is None:
        if module == "__main__" or not all(part.isidentifier() for part in module.split(".")):
            return None
        try:
            found = importlib.import_module(module)
        except Exception:
            return None
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def error_for_state(state: str, task_id: str, reason: str) -> BaseException:
    """Return the exception for a terminal state that is no verdict of the task itself."""
    kinds: dict[str, type[Exception]] = {"EXPIRED": TaskExpired, "REVOKED": TaskRevoked, "DEAD": TaskDead}
    return kinds.get(state, TaskFailure)(reason or f"task {task_id} ended as {state}")
