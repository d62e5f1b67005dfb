"""Bells and the board."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq_lib_sqlite import Bells, Nudge, wait_readable
from taskq_lib_sqlite.bells import AVAILABLE

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this system has no Unix sockets")

CHILD = """
import sys, time
from taskq_lib_sqlite import Bells
bell = Bells(sys.argv[1]).hang("c")
print(bell.address, flush=True)
time.sleep(60)
"""


@pytest.fixture
def file() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path may be too long for a socket
        path = Path(folder) / "q.db"
        path.touch()
        yield str(path)


@pytest.fixture
def bells(file: str) -> Iterator[Bells]:
    bells = Bells(file)
    yield bells
    bells.close()


@pytest.fixture
def others(file: str) -> Iterator[Bells]:
    """The bells as another process sees them."""
    bells = Bells(file)
    yield bells
    bells.close()


def test_ringing(bells: Bells, others: Bells) -> None:
    bell = bells.hang("c")
    assert bell is not None
    assert others.ring(bell.address, b"hello") is True
    assert others.ring(bell.address) is True
    assert bell.drain() == [b"hello", b""]
    assert bell.drain() == []


def test_a_bell_that_is_rung_too_often_is_rung(bells: Bells, others: Bells) -> None:
    bell = bells.hang("c")
    assert bell is not None
    assert all(others.ring(bell.address) for _ in range(5000))
    assert bell.drain()


def test_waiting_ends_with_the_ring(bells: Bells, others: Bells) -> None:
    bell = bells.hang("c")
    assert bell is not None
    threading.Timer(0.1, others.ring, (bell.address,)).start()
    started = time.monotonic()
    wait_readable([bell.socket], 20)
    assert time.monotonic() - started < 10
    assert bell.drain() == [b""]


def test_a_nudge_may_come_before_the_wait_and_any_number_of_times() -> None:
    nudge = Nudge()
    for _ in range(100_000):
        nudge.ring()
    wait_readable([nudge.reader], 20)
    nudge.drain()
    started = time.monotonic()
    wait_readable([nudge.reader], 0.05)
    assert time.monotonic() - started >= 0.04, "drained, it is silent"
    nudge.close()
    nudge.ring()


@pytest.mark.parametrize(
    "address",
    [
        "",
        None,
        "../../../dev/log",
        "0c-../../../../x",
        "/dev/log",
        "2c-0123456789ab",
        "0c-0123456789ab\n",
        "0x-" + "0" * 12,
    ],
)
def test_a_strangers_address_rings_nothing(bells: Bells, address: str | None) -> None:
    """Reply addresses come out of messages."""
    assert bells.path_of(address) is None
    assert bells.ring(address) is None
    assert not bells.is_dead(address)


def test_a_killed_process_is_known_to_be_dead_and_its_bell_swept(bells: Bells, file: str) -> None:
    mine = bells.hang("c")
    assert mine is not None
    child = subprocess.Popen([sys.executable, "-c", CHILD, file], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        address = child.stdout.readline().strip()
        assert bells.ring(address) is True
        assert not bells.is_dead(address)
        assert bells.sweep() == 0
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert bells.is_dead(address)
    assert bells.ring(address) is False
    assert bells.sweep() == 1
    assert bells.ring(address) is None, "gone is not dead: it may be elsewhere"
    assert mine.in_place()


def test_nothing_but_the_board_is_left(file: str, bells: Bells) -> None:
    for kind in "ccw":
        bells.hang(kind)
    bells.announce()
    bells.close()
    assert os.listdir(file + "-bells") == ["board"]


def test_a_long_path_has_its_bells_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a-very-long-directory-name"] * 5)
    folder.mkdir(parents=True)
    file = str(folder / "q.db")
    bells, others = Bells(file), Bells(file)
    bell = bells.hang("c")
    assert bell is not None
    assert not bell.path.startswith(str(folder))
    assert others.ring(bell.address) is True
    assert bell.drain() == [b""]
    status = os.stat(os.path.dirname(bell.path))
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert status.st_uid == os.geteuid()
    bells.set_waiting(3, True)
    assert others.board()[8 + 3] == 1, "the board has no length limit"
    others.close()
    bells.close()
    assert not os.path.exists(os.path.dirname(bell.path)), "the temporary directory is not littered"


def test_somebody_elses_directory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may make a directory under the temporary one, with a name that can be guessed."""
    folder = tmp_path.joinpath(*["a-very-long-directory-name"] * 5)
    folder.mkdir(parents=True)
    bells = Bells(str(folder / "q.db"))
    os.mkdir(bells.directories[1], 0o777)
    os.chmod(bells.directories[1], 0o777)
    assert bells.hang("c") is None
    os.rmdir(bells.directories[1])
    os.symlink(tmp_path, bells.directories[1])
    assert bells.hang("c") is None
    os.unlink(bells.directories[1])


def test_who_may_write_the_file_may_ring(file: str) -> None:
    path = Path(file)
    path.chmod(0o660)
    bells = Bells(file)
    bell = bells.hang("c")
    assert bell is not None
    bells.announce()
    assert stat.S_IMODE(os.stat(f"{path}-bells").st_mode) == 0o770
    assert stat.S_IMODE(os.stat(bell.path).st_mode) == 0o660
    assert stat.S_IMODE(os.stat(f"{path}-bells/board").st_mode) == 0o660
    bells.close()


def test_the_board(bells: Bells, others: Bells) -> None:
    assert others.board() == b""
    bells.announce()
    first = others.board()[:8]
    bells.set_waiting(0, True)
    bells.set_waiting(4095, True)
    bells.set_waiting(4096, True)
    bells.set_waiting(None, True)
    board = others.board()
    assert board[:8] == first
    assert [slot for slot, flag in enumerate(board[8:]) if flag] == [0, 4095]
    bells.set_waiting(0, False)
    assert others.board()[8] == 0
    bells.announce()
    assert others.board()[:8] != first


def test_a_board_that_was_removed_is_noticed(
    bells: Bells, others: Bells, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq_lib_sqlite.bells._CHECK_BOARD_S", 0.0)
    bells.announce()
    assert others.board()
    os.unlink(file + "-bells/board")
    bells.announce()
    bells.set_waiting(1, True)
    assert others.board()[8 + 1] == 1


def test_no_file_descriptor_is_used_after_it_was_closed(bells: Bells, file: str, tmp_path: Path) -> None:
    """A number of a closed file may be another file's: nothing may be written to that."""
    bells.announce()
    bells.close()
    victims = [os.open(tmp_path / f"victim-{i}", os.O_RDWR | os.O_CREAT) for i in range(5)]
    bells.announce()
    bells.set_waiting(1, True)
    assert bells.board() == b""
    assert all(os.fstat(fd).st_size == 0 for fd in victims)
    for fd in victims:
        os.close(fd)


def test_a_directory_without_sockets_is_no_error(
    file: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(socket.socket):
        def bind(self, address: object) -> None:
            raise OSError("no sockets here")

    monkeypatch.setattr("socket.socket", Refusing)
    assert Bells(file).hang("c") is None
    assert "found by polling" in caplog.text
