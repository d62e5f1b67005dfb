"""pyzmq alone: a bare hub that holds messages in a deque; batches out, one message per batch back."""

from __future__ import annotations

import functools
import os
import sys
from collections import deque

import zmq

from tests.bench.floors import BATCH, PAYLOAD
from tests.bench.stopwatch import tick

ACK = "after the run, for one consumer"
DURABILITY = "none: in the hub's memory"
NOTE = "no lease, no retry, one queue; a round trip goes through the hub, both ways"
RESULTS = False
VERSIONS = ("pyzmq",)

_ADDRESS = f"tcp://127.0.0.1:{os.environ.get('BENCH_PORT', '0')}"


def server() -> list[str]:
    return [sys.executable, "-m", __name__, "hub"]


def worker() -> list[str]:
    return [sys.executable, "-m", __name__]


@functools.cache
def dealer() -> zmq.Socket[bytes]:
    made = zmq.Context.instance().socket(zmq.DEALER)
    made.setsockopt(zmq.LINGER, 0)
    made.connect(_ADDRESS)
    return made


def send(count: int, *, bulk: bool, results: bool) -> None:
    hub = dealer()
    batch = BATCH if bulk else 1
    for start in range(0, count, batch):
        hub.send_multipart([b"put", *[PAYLOAD] * min(batch, count - start)])
        hub.recv()


def call() -> None:
    dealer().send_multipart([b"call", PAYLOAD])
    dealer().recv()


def serve() -> None:
    hub, done = dealer(), 0
    hub.send_multipart([b"take", b"0"])
    while True:
        tasks = hub.recv_multipart()
        if tasks[0] == b"call":
            hub.send_multipart([b"answer", *tasks[1:]])
            continue
        for _ in tasks:
            tick()
        done = len(tasks)
        hub.send_multipart([b"take", b"%d" % done])


def hold() -> None:
    """Be the hub."""
    router = zmq.Context.instance().socket(zmq.ROUTER)
    router.bind(_ADDRESS)
    tasks: deque[bytes] = deque()
    held: deque[bytes] = deque()
    worker: bytes = b""
    idle = False
    while True:
        who, what, *frames = router.recv_multipart()
        if what == b"put":
            tasks.extend(frames)
            router.send_multipart([who, b"ok"])
        elif what == b"take":
            worker, idle = who, True
            for _ in range(int(frames[0])):
                held.popleft()
        elif what == b"call":
            router.send_multipart([worker, b"call", who, *frames])
        elif what == b"answer":
            router.send_multipart(frames)
        if idle and tasks:
            batch = [tasks.popleft() for _ in range(min(BATCH, len(tasks)))]
            held.extend(batch)
            router.send_multipart([worker, *batch])
            idle = False


if __name__ == "__main__":
    hold() if sys.argv[1:] == ["hub"] else serve()
