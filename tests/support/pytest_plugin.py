"""Fixtures and guards for every test of the tree, loaded by `-p` in pyproject.toml.

| fixture | gives |
|---|---|
| `server_url` | a function: `server_url("valkey")` is that server's URL; skips where there is none; fails if CI=true |
| `postgresql_url`, `mariadb_url` | the URL of a fresh database, one per test module, dropped afterwards |
| `redis_url`, `old_redis_url` | the URL of an empty database of the Valkey or the Redis server, emptied afterwards |
| `redis_program` | the path of either program, for a server of the test's own (`tests.support.redis_servers`) |
| `redis_cluster` | three Valkey servers that form a cluster, one per test module |
| `rabbitmq_url` | the URL of a fresh virtual host, dropped afterwards |
| `sqs_url` | the URL of an SQS broker without queues (ElasticMQ), with a prefix of the test's own |
| `zeromq_hubs` | starts ZeroMQ hubs, one process each, ended with the test module: `zeromq_hubs.start(journal=…)` |
| `zeromq_url` | the URL of an empty hub, for this test alone |
| `database_url` | a function: `database_url("postgresql")` is the URL of one more fresh database, for this test alone |
| `fault_seed` | the seed for random faults, from TASKQ_SEED or new, printed when the test fails |

A test that uses one of the first three is marked `server` by itself. One that gets at them in another way, say by
`request.getfixturevalue`, marks itself (or its parameter: `pytest.param("postgresql", marks=pytest.mark.server)`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.databases import fresh_database
from tests.support.rabbitmq_servers import fresh_vhost
from tests.support.redis_servers import OwnCluster, empty_database
from tests.support.servers import SERVERS, in_ci
from tests.support.sqs_queues import own_queues
from tests.support.zeromq_hubs import HubForge

SERVER_FIXTURES = {
    "server_url",
    "database_url",
    "old_redis_url",
    "redis_program",
    "redis_cluster",
    "sqs_url",
    *(f"{name}_url" for name in SERVERS),
}
PATIENCE = 5.0  # seconds a thread or child process may take to end after its test


def pytest_configure(config: pytest.Config) -> None:
    with contextlib.suppress(ImportError):
        import hypothesis

        # No deadline: other processes share these cores. The blob repeats a failure that CI found.
        hypothesis.settings.register_profile("taskq", deadline=None, print_blob=True)
        hypothesis.settings.load_profile("taskq")


@pytest.hookimpl(tryfirst=True)  # before pytest's own -m looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if not SERVER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("server")
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak and not os.environ.get("TASKQ_SOAK"):
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


# -- servers ----------------------------------------------------------------------------------------------------------


def _server_url(name: str) -> str:
    kind = SERVERS[name]
    if url := os.environ.get(kind.variable()):
        return url
    reason = f"no {name} server: `make test` starts one, or {kind.how_to_get()}"
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def server_url() -> Callable[[str], str]:
    return _server_url


@pytest.fixture(scope="module")
def postgresql_url() -> Iterator[str]:
    with fresh_database(_server_url("postgresql")) as url:
        yield url


@pytest.fixture(scope="module")
def mariadb_url() -> Iterator[str]:
    with fresh_database(_server_url("mariadb")) as url:
        yield url


@pytest.fixture
def redis_url() -> Iterator[str]:
    with empty_database(_server_url("valkey")) as url:
        yield url


@pytest.fixture
def old_redis_url() -> Iterator[str]:
    with empty_database(_server_url("redis")) as url:
        yield url


@pytest.fixture(params=["valkey", "redis"])
def redis_program(request: pytest.FixtureRequest) -> str:
    _server_url(request.param)  # skips, or fails under CI, where there is none
    return str(SERVERS[request.param].program())


@pytest.fixture(scope="module")
def redis_cluster() -> Iterator[OwnCluster]:
    _server_url("valkey")
    for attempt in (1, 2, 3):  # other ports if somebody was quicker to take one
        cluster = OwnCluster(str(SERVERS["valkey"].program()), patience_ms=15_000)
        try:
            cluster.__enter__()
            break
        except AssertionError:
            if attempt == 3:
                raise
    with contextlib.closing(cluster):
        yield cluster


@pytest.fixture
def rabbitmq_url() -> Iterator[str]:
    with fresh_vhost(_server_url("rabbitmq")) as url:
        yield url


@pytest.fixture
def sqs_url() -> Iterator[str]:
    with own_queues(_server_url("elasticmq")) as url:
        yield url


@pytest.fixture
def database_url() -> Iterator[Callable[[str], str]]:
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(fresh_database(_server_url(name)))


@pytest.fixture(scope="module")
def zeromq_hubs() -> Iterator[HubForge]:
    with HubForge() as hubs:
        yield hubs


@pytest.fixture
def zeromq_url(zeromq_hubs: HubForge) -> Iterator[str]:
    hub = zeromq_hubs.start()
    yield hub.url
    hub.kill()


# -- random faults ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fault_seed() -> int:
    seed = int(os.environ.get("TASKQ_SEED") or random.randrange(2**32))
    print(f"TASKQ_SEED={seed} repeats these faults")  # pytest shows it only when the test fails
    return seed


# -- what a test may not leave behind ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Fail a test after which the process is not as it was. What wider fixtures start is there before, and may stay."""
    environment, threads, children, logs = dict(os.environ), set(threading.enumerate()), _children(), _logging()
    yield
    left = []
    now = dict(os.environ)
    changed = {k for k in environment.keys() | now.keys() if environment.get(k) != now.get(k)} - {"PYTEST_CURRENT_TEST"}
    if changed:
        left.append(f"environment variables changed: {', '.join(sorted(changed))}")
        os.environ.clear()  # so that the next test is not blamed too
        os.environ.update(environment)
    if _logging() != logs:
        left.append(f"the root logger changed: {_logging()}, was {logs}")
    deadline = time.monotonic() + PATIENCE
    for thread in threading.enumerate():
        if thread not in threads and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                left.append(f"a running thread: {thread.name}")
    while (more := _children() - children) and time.monotonic() < deadline:
        time.sleep(0.01)
    for child in sorted(more):
        left.append(f"a child process: {child} {_command_line(child)}")
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if left:
        pytest.fail("the test left behind " + "; ".join(left), pytrace=False)


def _logging() -> tuple[int, list[logging.Handler]]:
    root = logging.getLogger()
    # pytest puts its own handlers there for each phase of a test.
    return root.level, [h for h in root.handlers if not type(h).__module__.startswith("_pytest.")]


def _children() -> set[int]:
    """Our child processes, ended but not waited for included."""
    try:  # one system call says that there is none, which is nearly always so
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()
    found: set[int] = set()
    for thread in Path("/proc/self/task").glob("*/children"):  # Linux; elsewhere children are not checked
        with contextlib.suppress(OSError):
            found.update(map(int, thread.read_text().split()))
    return found - _helpers()


def _helpers() -> set[int]:
    """multiprocessing's own processes, which live as long as we do."""
    trackers = [
        (sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", "_pid"),
        (sys.modules.get("multiprocessing.forkserver"), "_forkserver", "_forkserver_pid"),
    ]
    return {getattr(getattr(module, name), pid) for module, name, pid in trackers if module is not None}


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    return ""
