"""Raising an exception on another thread; only CPython can, and only where Python code runs."""

from __future__ import annotations

import ctypes
from typing import Final

_set_async_exc: Final = ctypes.pythonapi.PyThreadState_SetAsyncExc


def raise_in(thread: int | None, error: type[BaseException] | None) -> None:
    """Raise an error on the thread with this ``threading.get_ident``, soon; None takes back what is not yet raised."""
    _set_async_exc(ctypes.c_ulong(thread or 0), None if error is None else ctypes.py_object(error))
