"""Cutting a stream into messages, however it comes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from taskq_lib_zeromq import zmtp

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = socket.socketpair()
    here.setblocking(False)
    with here, there:
        yield here, there


def feed(reader: zmtp.Reader, pair: Pair, data: bytes, step: int) -> None:
    here, there = pair
    for start in range(0, len(data), step):
        there.sendall(data[start : start + step])
        assert reader.read(here)


@pytest.mark.parametrize("step", [1, 2, 7, 100_000])
def test_messages_are_cut_wherever_the_pieces_end(pair: Pair, step: int) -> None:
    bodies = [b"", b"a", b"x" * 255, b"y" * 256, b"z" * 3000, b"end"]
    reader = zmtp.Reader(5000)
    feed(reader, pair, zmtp.ready(b"ROUTER") + b"".join(map(zmtp.frame, bodies)), step)
    assert reader.shaken
    assert list(reader.messages) == bodies
    assert not reader.replies


def test_a_ping_is_answered_with_its_context(pair: Pair) -> None:
    reader = zmtp.Reader(100)
    feed(reader, pair, zmtp.command(b"PING", b"\0\x0acontext") + zmtp.PING + zmtp.command(b"PONG"), 3)
    assert reader.replies == [zmtp.command(b"PONG", b"context"), zmtp.command(b"PONG")]
    assert not reader.messages


def test_messages_of_several_frames_are_counted_and_ignored(pair: Pair) -> None:
    reader = zmtp.Reader(100)
    feed(reader, pair, b"\1\1a" + b"\1\1b" + b"\0\1c" + zmtp.frame(b"plain") + b"\1\1a" + zmtp.frame(b"last"), 4)
    assert reader.strange == 2
    assert list(reader.messages) == [b"plain"]


@pytest.mark.parametrize(
    "data", [zmtp.frame(b"x" * 101), b"\2" + b"\xff" * 8, b"GET / HTTP/1.1", zmtp.command(b"ERROR", b"\4oops")]
)
def test_what_makes_no_sense_is_refused_before_it_is_waited_for(pair: Pair, data: bytes) -> None:
    with pytest.raises(zmtp.Nonsense):
        feed(zmtp.Reader(100), pair, data, 20)


def test_the_end_is_told(pair: Pair) -> None:
    reader = zmtp.Reader(100)
    with pytest.raises(BlockingIOError):
        reader.read(pair[0])
    pair[1].close()
    assert not reader.read(pair[0])
