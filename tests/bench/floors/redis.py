"""redis-py alone: LPUSH; a batch is taken as the one before is trimmed off; two bare processes for a round trip."""

from __future__ import annotations

import functools
import os
import sys

import redis

from tests.bench.floors import BATCH, PAYLOAD
from tests.bench.stopwatch import tick

ACK = "after the run, for one consumer"
DURABILITY = "the server's"
NOTE = "no lease, no retry, one consumer; redis.Redis with hiredis; the round trip is LPUSH and BRPOP on both sides"
RESULTS = True
VERSIONS = ("redis", "hiredis")

_url = os.environ.get("BENCH_URL", "redis://localhost")
_BULK = 10_000
_KEPT = b"k" + PAYLOAD[1:]
_CALL = b"c" + PAYLOAD[1:]


@functools.cache
def client() -> redis.Redis:
    return redis.Redis.from_url(_url)


def worker() -> list[str]:
    return [sys.executable, "-m", __name__]


def send(count: int, *, bulk: bool, results: bool) -> None:
    server, payload = client(), _KEPT if results else PAYLOAD
    if bulk:
        for start in range(0, count, _BULK):
            with server.pipeline(transaction=False) as pipe:
                for _ in range(min(_BULK, count - start)):
                    pipe.lpush("tasks", payload)
                pipe.execute()
    else:
        for _ in range(count):
            server.lpush("tasks", payload)


def call() -> None:
    client().lpush("calls", _CALL)
    client().brpop(["answers"])


def serve() -> None:
    server = client()
    done: list[bytes] = []
    number = 0
    while True:
        with server.pipeline(transaction=False) as pipe:
            for payload in done:
                if payload == _KEPT:
                    number += 1
                    pipe.set(f"result:{number}", PAYLOAD, ex=600)
            if done:
                pipe.ltrim("tasks", 0, -len(done) - 1)
            pipe.lrange("tasks", -BATCH, -1)
            done = pipe.execute()[-1]
        for _ in done:
            tick()
        if not done:
            break
    while True:
        server.brpop(["calls"])
        server.lpush("answers", PAYLOAD)


if __name__ == "__main__":
    serve()
