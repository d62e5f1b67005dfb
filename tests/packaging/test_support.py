"""The tests' own machinery: servers, databases, guards."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.contracts import expand
from tests.support.databases import fresh_database
from tests.support.install import ROOT


def test_postgresql_answers_in_a_fresh_database(postgresql_url: str) -> None:
    import psycopg

    with psycopg.connect(postgresql_url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        connection.execute("CREATE TABLE t (i int)")


def test_mariadb_answers_in_a_fresh_database(mariadb_url: str) -> None:
    from urllib.parse import urlsplit

    import pymysql

    url = urlsplit(mariadb_url)
    with pymysql.connect(host=url.hostname, port=url.port, user=url.username, database=url.path[1:]) as connection:
        cursor = connection.cursor()
        cursor.execute("SHOW TABLES")
        assert cursor.fetchall() == ()
        cursor.execute("SELECT 1 FROM dual FOR UPDATE SKIP LOCKED")


def test_a_database_is_dropped_under_a_connected_client(server_url) -> None:
    import psycopg

    with fresh_database(server_url("postgresql")) as url:
        connection = psycopg.connect(url)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


BAD = """
    import logging, os, subprocess, threading
    import pytest
    from hypothesis import given, strategies

    release = threading.Event()
    running = []

    def test_environment():
        os.environ["LEFT"] = "1"

    def test_the_next_one_is_not_blamed():
        assert "LEFT" not in os.environ

    def test_thread():
        running.append(threading.Thread(target=release.wait, name="lingerer"))
        running[0].start()

    def test_child():
        running.append(subprocess.Popen(["sleep", "100"]))

    def test_root_logger():
        logging.getLogger().addHandler(logging.NullHandler())

    def test_seed(fault_seed):
        assert fault_seed != 4711

    def test_waits_for_what_ends_soon():
        threading.Thread(target=lambda: threading.Event().wait(0.2)).start()

    @pytest.mark.soak
    def test_soak():
        raise AssertionError

    def test_no_server(server_url):
        server_url("mariadb")

    def test_end():
        release.set()
        running[1].returncode = -9  # the guard has waited for it
"""


@pytest.mark.slow
@pytest.mark.parametrize("ci", ["", "true"])
def test_the_guards_catch_what_a_test_leaves_behind(tmp_path: Path, ci: str) -> None:
    (tmp_path / "test_bad.py").write_text(textwrap.dedent(BAD))
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-p", "no:cacheprovider", tmp_path]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TASKQ_", "PYTEST_"))}
    environment |= {"TASKQ_SEED": "4711", "CI": ci, "COLUMNS": "300"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    for line in (
        "test_environment - Failed: the test left behind environment variables changed: LEFT",
        "test_thread - Failed: the test left behind a running thread: lingerer",
        "test_root_logger - Failed: the test left behind the root logger changed",
        "test_seed - assert",
        "TASKQ_SEED=4711 repeats these faults",
        "1 deselected",
        "no mariadb server: `make test` starts one, or apt-get install mariadb-server",
    ):
        assert line in done.stdout, done.stdout
    if sys.platform == "linux":
        assert "test_child - Failed: the test left behind a child process: " in done.stdout, done.stdout
        counts = "2 failed, 7 passed, 1 deselected, 4 errors" if ci else "1 failed, 7 passed, 1 skipped"
        assert counts in done.stdout, done.stdout


LUCK = """
    import os
    import pytest

    AMONG_OTHERS = "PYTEST_XDIST_WORKER" in os.environ

    @pytest.mark.parametrize("n", ["a b[c]", 2])
    def test_lucky(n):
        assert not AMONG_OTHERS

    def test_fine():
        pass

    @pytest.fixture
    def late():
        yield
        assert not AMONG_OTHERS

    def test_teardown(late):
        pass

    def test_crash():
        if AMONG_OTHERS:
            os._exit(3)

    def test_broken():
        assert False

    def test_skipped():
        assert not AMONG_OTHERS
        pytest.skip("a skip says nothing")

    @pytest.mark.parametrize("n", range(11))
    def test_many(n):
        assert not AMONG_OTHERS
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "lines"),
    [
        (
            ["-k", "lucky or fine or teardown or crash"],
            0,
            [
                "3 failed, 2 passed, 1 error",
                "4 failed among others; a second chance",
                " 4 passed",
                "PASSED ONLY ALONE: test_luck.py::test_lucky[a b[c]]",
                "PASSED ONLY ALONE: test_luck.py::test_lucky[2]",
                "PASSED ONLY ALONE: test_luck.py::test_teardown",
                "PASSED ONLY ALONE: test_luck.py::test_crash",
            ],
        ),
        (["test_luck.py::test_fine"], 0, [" 1 passed"]),
        (["test_luck.py", "-k", "nothing"], 5, ["no tests ran"]),
        (["-k", "lucky or broken", "test_luck.py"], 1, ["3 failed", " 1 failed, 2 passed", "failed alone, too"]),
        (
            ["test_luck.py::test_fine", "test_luck.py::test_skipped"],
            1,
            ["1 failed, 1 passed", " 1 failed", "alone, too"],
        ),
        (["-k", "many"], 1, ["11 failed"]),
        (["-k", "lucky", "-x"], 2, ["stopping after 1 failures"]),
        (["-k", "broken", "-n", "0"], 1, ["1 failed"]),
    ],
)
def test_what_failed_among_others_has_a_second_chance(
    tmp_path: Path, arguments: list[str], code: int, lines: list[str]
) -> None:
    (tmp_path / "test_luck.py").write_text(textwrap.dedent(LUCK))
    (tmp_path / "pytest.ini").touch()
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "tests.support.second_chance", "-n", "1"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TASKQ_", "PYTEST_"))}
    environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    place = 0
    for line in lines:
        place = done.stdout.find(line, place)
        assert place >= 0, f"{line!r} is missing in\n{done.stdout}{done.stderr}"
    assert ("second chance" in done.stdout) == (len(lines) >= 3)
    assert done.stdout.count("PASSED ONLY ALONE") == sum("ONLY ALONE" in line for line in lines)


def test_contract_patterns() -> None:
    names = ["taskq", "taskq_a", "taskq_lib_b", "taskq.app", "taskq.spi"]
    assert expand(["taskq_*", "!taskq_lib_*"], names) == ["taskq_a"]
    assert expand(["taskq.*", "!taskq.spi"], names) == ["taskq.app"]
    assert expand(["taskq_*.**", "!taskq_lib_*"], names) == ["taskq_a.**"]
    assert expand(["taskq", "redis"], names) == ["taskq", "redis"]
