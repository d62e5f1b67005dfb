"""boto3 alone: batches of 10, as many requests in flight as taskq has."""

from __future__ import annotations

import functools
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.bench.brokers import sqs
from tests.bench.floors import PAYLOAD
from tests.bench.stopwatch import tick

_FLIGHT = int(os.environ.get("BENCH_FLIGHT", "4"))
_name = os.environ.get("BENCH_NAME", "bench")
ACK = "after the run (at least once)"
DURABILITY = "none: an emulator"
NOTE = f"{_FLIGHT} requests in flight, batches of 10, long poll; no lease, one queue"
RESULTS = False
VERSIONS = ("boto3",)

_BODY = PAYLOAD.hex()[:100]


@functools.cache
def client() -> Any:
    return sqs(os.environ["BENCH_URL"])


@functools.cache
def queue(what: str = "tasks") -> str:
    made: str = client().create_queue(QueueName=f"{_name}-{what}")["QueueUrl"]
    return made


def worker() -> list[str]:
    return [sys.executable, "-m", __name__]


def _send(count: int) -> None:
    entries = [{"Id": str(n), "MessageBody": _BODY} for n in range(count)]
    client().send_message_batch(QueueUrl=queue(), Entries=entries)


def send(count: int, *, bulk: bool, results: bool) -> None:
    queue()
    if bulk:
        with ThreadPoolExecutor(_FLIGHT) as pool:
            list(pool.map(_send, [min(10, count - start) for start in range(0, count, 10)]))
    else:
        for _ in range(count):
            client().send_message(QueueUrl=queue(), MessageBody=_BODY)


def _receive(what: str) -> list[dict[str, str]]:
    got = client().receive_message(QueueUrl=queue(what), MaxNumberOfMessages=10, WaitTimeSeconds=5)
    found: list[dict[str, str]] = got.get("Messages", [])
    return found


def _delete(what: str, messages: list[dict[str, str]]) -> None:
    entries = [{"Id": str(n), "ReceiptHandle": m["ReceiptHandle"]} for n, m in enumerate(messages)]
    client().delete_message_batch(QueueUrl=queue(what), Entries=entries)


def call() -> None:
    client().send_message(QueueUrl=queue("calls"), MessageBody=_BODY)
    while not (got := _receive("answers")):
        pass
    _delete("answers", got)


def _work() -> None:
    while True:
        messages = _receive("tasks")
        for _ in messages:
            tick()
        if messages:
            _delete("tasks", messages)


def _answer() -> None:
    while True:
        if messages := _receive("calls"):
            for _ in messages:
                client().send_message(QueueUrl=queue("answers"), MessageBody=_BODY)
            _delete("calls", messages)


def serve() -> None:
    for what in ("tasks", "calls", "answers"):
        queue(what)
    threads = [threading.Thread(target=_work) for _ in range(_FLIGHT)] + [threading.Thread(target=_answer)]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    serve()
