"""What is special about the simple scheduler: its arithmetic, and the file."""

from __future__ import annotations

import fcntl
import json
import math
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.errors import EncodeError, NotSupported, StoreSchemaMismatch, StoreUnavailable
from taskq.spi import ComponentConfig, Schedule
from taskq_scheduler_simple import scheduler as driver
from taskq_scheduler_simple.options import SimpleSchedulerOptions
from taskq_scheduler_simple.plugin import taskq_scheduler
from taskq_scheduler_simple.rules import Every, parse

T0 = 1_000_000.0


def make(path=""):
    return taskq_scheduler("simple").factory(ComponentConfig(options=SimpleSchedulerOptions(path=str(path))))


def job(name="a", rule="every 10", **fields):
    return Schedule(id=name, task="t", rule=rule, **fields)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "schedules.json"


@given(
    st.floats(0.01, 1e6),
    st.floats(0, 2e9),
    st.integers(1, 10**6),
    st.floats(0, 1e3),
)
def test_the_latest_missed_time_is_the_last_one_until_now(seconds, anchor, number, more):
    rule = Every(seconds)
    due = anchor + number * seconds
    now = due + more * seconds
    latest = rule.latest(due, anchor, now)
    following = rule.after(latest, anchor)
    assert due <= latest <= now < following
    assert math.isclose(following - latest, seconds, rel_tol=1e-3, abs_tol=1e-5)
    assert rule.latest(due, anchor, latest) == latest, "a nominal time is itself the latest"


def test_cron_is_refused_with_what_would_provide_it():
    with pytest.raises(NotSupported, match=r"'nightly'.*'cron 0 4 \* \* \*'.*install a scheduler that declares 'cron'"):
        parse("cron 0 4 * * *", "nightly")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"args": [{1}]}, r"Schedule 'a': args\[0\] is a set"),
        ({"kwargs": {"x": {"y": [1, b""]}}}, r"kwargs\['x'\]\['y'\]\[1\] is a bytes"),
        ({"args": [{1: 2}]}, r"args\[0\] is a dict"),
        ({"args": [math.nan]}, r"args\[0\] is nan"),
        ({"options": {"eta": object()}}, r"options\['eta'\] is a object"),
    ],
)
@pytest.mark.parametrize("on_a_file", [False, True])
def test_what_json_would_change_is_refused(fields, says, on_a_file, path):
    scheduler = make(path if on_a_file else "")
    with pytest.raises(EncodeError, match=says):
        scheduler.upsert(job(**fields), now=T0)
    assert scheduler.get("a") is None


def test_tuples_become_lists():
    assert make().upsert(job(args=[(1, (2,))]), now=T0).args == [[1, [2]]]


def test_what_an_owner_holds_is_given_to_it_again():
    """A beat that could not send tries again before its lease ends."""
    scheduler = make()
    scheduler.upsert(job(), now=T0)
    (first,) = scheduler.lease("one", T0 + 10, limit=1, ttl=30)
    (again,) = scheduler.lease("one", T0 + 12, limit=1, ttl=30)
    assert first.due == again.due == T0 + 10
    assert scheduler.lease("two", T0 + 41, limit=1, ttl=30) == []


def test_what_is_being_sent_is_not_next_due():
    """A second beat must not spin on a firing that the first one holds."""
    scheduler = make()
    scheduler.upsert(job(), now=T0)
    scheduler.lease("one", T0 + 10, limit=1, ttl=30)
    assert scheduler.next_due() == T0 + 40


def test_closing_ends_a_wait():
    scheduler = make()
    scheduler.open()
    timer = threading.Timer(0.05, scheduler.close)
    timer.start()
    begin = time.monotonic()
    assert scheduler.wake(30.0) is False
    assert time.monotonic() - begin < 10
    timer.join()


def test_the_file_is_readable_json_and_replaced_as_a_whole(path):
    scheduler = make(path)
    scheduler.open()
    assert not path.exists(), "looking writes nothing"
    scheduler.upsert(job(args=["ä"]), now=T0)
    inode = path.stat().st_ino
    found = json.loads(path.read_text("utf-8"))
    assert (found["format"], found["entries"][0]["schedule"]["args"]) == (1, ["ä"])
    written = path.read_bytes()
    scheduler.upsert(job(args=["ä"]), now=T0 + 5)
    assert (path.read_bytes(), path.stat().st_ino) == (written, inode), "nothing changed, nothing is written"
    with path.open("rb") as reader:  # keeps the old file, so that its number is not used again
        scheduler.upsert(job("b"), now=T0)
        assert path.stat().st_ino != os.fstat(reader.fileno()).st_ino
        assert reader.read() == written
    assert sorted(p.name for p in path.parent.iterdir()) == ["schedules.json", "schedules.json.lock"]


def test_what_a_crash_left_behind_is_no_matter(path):
    path.with_name("schedules.json.new").write_bytes(b"half of")
    scheduler = make(path)
    scheduler.open()
    scheduler.upsert(job(), now=T0)
    assert [schedule.id for schedule in make(path).list()] == ["a"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no schedules"),
        (b"[1, 2]", "holds no schedules"),
        (b'{"format": 1, "changes": 0', "holds no schedules"),
        (b'{"format": 1, "changes": 0, "entries": [], "more": 1}', "holds no schedules"),
        (b'{"format": 1, "changes": 0, "entries": [{"schedule": {"id": 5}, "anchor": 1}]}', "holds no schedules"),
        (b"\xff\xfe", "holds no schedules"),
        (b'{"format": 7, "changes": 0, "entries": []}', "in format 7.*Install the version that wrote it"),
    ],
)
def test_a_strange_file_is_refused_and_left_alone(path, content, says):
    path.write_bytes(content)
    scheduler = make(path)
    for call in (scheduler.open, lambda: scheduler.upsert(job(), now=T0), scheduler.next_due):
        with pytest.raises(StoreSchemaMismatch, match=says) as caught:
            call()
        assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(StoreUnavailable, match=r"No such file.*folder must exist and be writable"):
        make(tmp_path / "missing" / "s.json").open()


def test_a_path_that_is_a_folder_is_told(tmp_path):
    with pytest.raises(StoreUnavailable, match="Is a directory"):
        make(tmp_path).open()


def test_a_full_disk_changes_nothing(path, monkeypatch):
    scheduler = make(path)
    scheduler.upsert(job(), now=T0)
    written = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreUnavailable, match=r"No space left on device; nothing was changed"):
        scheduler.upsert(job("b"), now=T0)
    monkeypatch.undo()
    assert path.read_bytes() == written
    assert scheduler.get("b") is None


def test_a_lock_that_is_never_given_back_is_told(path, monkeypatch):
    monkeypatch.setattr(driver, "LOCK_WAIT_S", 0.1)
    with path.with_name("schedules.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailable, match=r"another process has held .*\.lock for 0.1 s"):
            make(path).upsert(job(), now=T0)
    make(path).upsert(job(), now=T0)


CHILD = """
import sys
from taskq.spi import ComponentConfig
from taskq_scheduler_simple.options import SimpleSchedulerOptions
from taskq_scheduler_simple.plugin import taskq_scheduler
path, owner, start = sys.argv[1:]
scheduler = taskq_scheduler("simple").factory(ComponentConfig(options=SimpleSchedulerOptions(path=path)))
scheduler.open()
print("ready", flush=True)
sys.stdin.readline()
for step in range(1, 11):
    now = float(start) + step
    while fires := scheduler.lease(owner, now, limit=1, ttl=1000.0):
        for fire in fires:
            print(fire.schedule.id, fire.due, flush=True)
        scheduler.settle(fires, now=now)
"""


def test_processes_do_not_fire_twice(path):
    scheduler = make(path)
    scheduler.open()
    for number in range(3):
        scheduler.upsert(job(f"s{number}", "every 1"), now=T0)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), f"owner-{number}", str(T0)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    lines = []
    for child in children:
        out, _ = child.communicate(timeout=30)
        assert child.returncode == 0
        lines += out.splitlines()
    assert len(lines) == len(set(lines)), "a firing went to two processes"
    # One process may be ahead of the other by a step, and a step that was missed is not made up for.
    assert {f"s{number} {T0 + 10}" for number in range(3)} <= set(lines)


def test_another_processs_change_wakes(path):
    scheduler = make(path)
    scheduler.open()
    code = CHILD.split("print")[0].replace("path, owner, start", "path,") + (
        "from taskq.spi import Schedule\nscheduler.upsert(Schedule(id='x', task='t', rule='every 5'), now=1.0)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)])
    assert scheduler.wake(30.0) is True
    assert scheduler.get("x").next_due == 6.0
    assert child.wait(30) == 0


def test_the_plugin_module_does_not_import_the_driver():
    code = "import sys, taskq_scheduler_simple.plugin; sys.exit('taskq_scheduler_simple.scheduler' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
