"""An event loop for peers that can only send from one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

_loop = asyncio.new_event_loop()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on the one loop of this process, where its connections live."""
    return _loop.run_until_complete(work)
