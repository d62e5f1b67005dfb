"""pytest fixtures for the tests of an application.

In ``conftest.py``::

    from taskq.testing import taskq_app, taskq_clock, taskq_worker      # noqa: F401

``taskq_app`` is then an application of its own in memory. For tests of an existing one, override it::

    from taskq.testing import in_memory

    @pytest.fixture
    def taskq_app():
        with in_memory(shop.tasks.app) as app:      # clock=… for one that the tests move
            yield app
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from taskq.app import TaskQ
from taskq.testing.clock import VirtualClock
from taskq.testing.memory import in_memory, running_worker

if TYPE_CHECKING:
    from taskq.worker import Worker


@pytest.fixture
def taskq_clock() -> VirtualClock:
    """The clock of ``taskq_app``, for tests that ask for it: it stands still until it is moved."""
    return VirtualClock()


@pytest.fixture
def taskq_app(request: pytest.FixtureRequest) -> Iterator[TaskQ]:
    """An application with broker and results in memory, closed after the test."""
    clock = request.getfixturevalue("taskq_clock") if "taskq_clock" in request.fixturenames else None
    with in_memory(clock=clock) as app:
        yield app


@pytest.fixture
def taskq_worker(taskq_app: TaskQ) -> Callable[..., AbstractContextManager[Worker]]:
    """A worker of ``taskq_app`` on a thread: ``with taskq_worker():``, once the test's tasks are declared."""
    return partial(running_worker, taskq_app)


__all__ = ["taskq_app", "taskq_clock", "taskq_worker"]
