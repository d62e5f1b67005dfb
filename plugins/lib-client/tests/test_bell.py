"""The bell, and waiting for it together with sockets."""

from __future__ import annotations

import select
import socket
import threading
import time

import pytest

from taskq_lib_client.bell import Bell, ready

PATIENCE = 20.0


@pytest.fixture(params=["poll", "select"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "select":
        monkeypatch.delattr(select, "poll")


@pytest.mark.usefixtures("way")
def test_a_ring_lasts_until_it_is_hushed() -> None:
    bell = Bell()
    try:
        assert ready((bell,), 0.0) == set()
        for _ in range(3):
            bell.ring()
        for _ in range(2):
            assert ready((bell,), PATIENCE) == {bell.fileno()}
        bell.hush()
        assert ready((bell,), 0.0) == set()
        bell.hush()  # silent already
    finally:
        bell.close()


@pytest.mark.usefixtures("way")
def test_another_thread_ends_a_wait() -> None:
    bell = Bell()
    here, there = socket.socketpair()
    try:
        threading.Timer(0.05, bell.ring).start()
        assert ready((here, bell), PATIENCE) == {bell.fileno()}
        there.send(b"x")
        assert ready((here, bell), PATIENCE) == {here.fileno(), bell.fileno()}
    finally:
        bell.close()
        here.close()
        there.close()


def test_ringing_never_blocks_nor_fails() -> None:
    bell = Bell()
    for _ in range(100_000):  # far more than a socket buffers
        bell.ring()
    bell.hush()
    assert ready((bell,), 0.0) == set()
    bell.close()
    bell.ring()
    bell.hush()


@pytest.mark.usefixtures("way")
def test_a_closed_bell_is_no_error() -> None:
    bell = Bell()
    bell.close()
    began = time.monotonic()
    assert ready((bell,), 0.02) == set()
    assert time.monotonic() - began >= 0.01
