"""Where a coroutine waits, as text."""

from __future__ import annotations

import sys
import traceback
from types import FrameType
from typing import Any, Final

_OUTER: Final = ("taskq.runtime", "taskq.middleware", "taskq_pool_", "taskq_lib_pool.")


def stack_of(coroutine: Any) -> str:
    """Return the stack of a coroutine that waits, outermost call first, from the task's own code on."""
    frames: list[FrameType] = []
    waits: Any = coroutine
    while waits is not None:
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None) or getattr(waits, "ag_frame", None)
        if frame is None:
            break
        frames.append(frame)
        for name in ("cr_await", "gi_yieldfrom", "ag_await"):
            if hasattr(waits, name):
                waits = getattr(waits, name)
                break
    return _format(frames)


def stack_of_thread(ident: int | None) -> str | None:
    """Return the stack of a thread, from the task's own code on; None when it has ended."""
    frame = sys._current_frames().get(ident) if ident is not None else None
    if frame is None:
        return None
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    # what is left of the last call into the runtime is the thread's and the loop's own
    last = max((i for i, f in enumerate(frames) if _is_outer(f)), default=-1)
    return _format(frames[last + 1 :] or frames)


def _is_outer(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith(_OUTER)


def _format(frames: list[FrameType]) -> str:
    first = next((i for i, frame in enumerate(frames) if not _is_outer(frame)), 0)
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames[first:])
    return "".join(summary.format())
