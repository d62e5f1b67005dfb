"""Figures of the SQL transport and store through the plugin interface alone.

    python tests/bench.py postgresql://user@host/database [--messages 50000] [--backlog 0]

The database should be empty; tables with the prefix ``bench_`` are made in it and stay. Rates per second, times in ms.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

from taskq.spi import Commit, Outbound, Record, Settlement, StoreConfig, Subscription, TransportConfig, parse_urls
from taskq_store_sqlalchemy.options import SqlStoreOptions
from taskq_store_sqlalchemy.store import SqlStore
from taskq_transport_sqlalchemy.options import SqlTransportOptions
from taskq_transport_sqlalchemy.transport import SqlTransport

PREFIX = "bench_"
PAYLOAD = b"x" * 200
BATCH = 512


def transport(url: str) -> SqlTransport:
    made = SqlTransport(TransportConfig(urls=parse_urls(url), options=SqlTransportOptions(table_prefix=PREFIX)))
    made.open()
    return made


def store(url: str) -> SqlStore:
    made = SqlStore(StoreConfig(urls=parse_urls(url), options=SqlStoreOptions(table_prefix=PREFIX)))
    made.open()
    return made


def messages(n: int, queue: str = "bench", **fields: Any) -> list[Outbound]:
    return [Outbound(id=f"bench-{i}", queue=queue, payload=PAYLOAD, **fields) for i in range(n)]


def rate(n: int, work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return n / (time.perf_counter() - started)


def say(what: str, value: float, unit: str = "/s") -> None:
    print(f"{what:<52} {value:>12,.2f} {unit}" if value < 100 else f"{what:<52} {value:>12,.0f} {unit}", flush=True)


def drain(url: str, n: int, *, results: bool = False) -> float:
    t, s = transport(url), store(url)
    consumer = t.consumer()
    consumer.subscribe([Subscription("bench")])
    consumer.credit(10_000, 1 << 30)
    committer = consumer.fuse(s)
    left = n

    def work() -> None:
        nonlocal left
        while left > 0:
            deliveries = consumer.fetch(min(BATCH, left), 1.0).deliveries
            if results:
                commits = [
                    Commit(Settlement(d.receipt), Record(id=f"r-{n}-{left}-{i}", state="SUCCESS", payload=b"result"))
                    for i, d in enumerate(deliveries)
                ]
                assert committer is not None
                assert not committer.commit(commits)
            else:
                assert not consumer.settle([Settlement(d.receipt) for d in deliveries])
            left -= len(deliveries)

    found = rate(n, work)
    t.close()
    s.close()
    return found


def fill(url: str, n: int) -> float:
    t = transport(url)
    found = rate(n, lambda: [t.send(messages(min(1000, n - i))) for i in range(0, n, 1000)] and None)
    t.close()
    return found


def echo(url: str, n: int) -> None:
    """In another process: answer each message with a result pushed to its sender."""
    t, s = transport(url), store(url)
    consumer = t.consumer()
    consumer.subscribe([Subscription("ping")])
    consumer.credit(100, 1 << 30)
    committer = consumer.fuse(s)
    assert committer is not None
    while n:
        for d in consumer.fetch(1, 5.0).deliveries:
            sent, task_id, reply = d.payload.decode().split(" ")
            took = time.time() - float(sent)
            record = Record(id=task_id, state="SUCCESS", payload=str(took).encode(), reply=reply or None)
            committer.commit([Commit(Settlement(d.receipt), record)])
            n -= 1
    t.close()
    s.close()


def ping(url: str, n: int, *, pause: float) -> tuple[list[float], list[float]]:
    """Return the times from send to delivery in another process, and from send to the result here."""
    t, s = transport(url), store(url)
    reply = s.reply_address() or ""
    process = multiprocessing.get_context("spawn").Process(target=echo, args=(url, n))
    process.start()
    time.sleep(2.0)
    there, back = [], []
    for i in range(n):
        task_id = f"ping-{time.time()}-{i}"
        started = time.time()
        t.send([Outbound(id=task_id, queue="ping", payload=f"{started} {task_id} {reply}".encode())])
        (record,) = s.wait([task_id], 10.0)
        back.append((time.time() - started) * 1000)
        there.append(float(record.payload) * 1000)
        time.sleep(pause)
    process.join()
    t.close()
    s.close()
    return there, back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--backlog", type=int, default=0, help="drain beside so many more waiting messages")
    arguments = parser.parse_args()
    url, n = arguments.url, arguments.messages
    t = transport(url)
    print(f"{url.partition(':')[0]}, {t.capabilities.durability.value}; {'; '.join(t.capabilities.notes[3:])}")
    t.purge(["bench", "ping"])
    say("send, batches of 1000", fill(url, n))
    say(f"fetch {BATCH} and settle", drain(url, n))
    fill(url, n)
    say(f"fetch {BATCH} and commit with results", drain(url, n, results=True))
    one = messages(min(2000, n // 5))
    say("send one by one", rate(len(one), lambda: [t.send([m]) for m in one] and None))
    t.purge(["bench"])
    for pause in (0.0, 0.05):
        there, back = ping(url, 300 if pause == 0 else 60, pause=pause)
        for what, times in (("send to delivery in another process", there), ("send to result", back)):
            say(f"{what}, p50, {pause * 1000:.0f} ms apart", statistics.median(times), "ms")
            say(f"{what}, p95, {pause * 1000:.0f} ms apart", statistics.quantiles(times, n=20)[-1], "ms")
    if arguments.backlog:
        fill(url, arguments.backlog)
        for done in range(0, arguments.backlog - 20_000, max(20_000, arguments.backlog // 5)):
            say(f"fetch and settle, {arguments.backlog - done:,} waiting", drain(url, 20_000))
            drain(url, max(20_000, arguments.backlog // 5) - 20_000)
    t.purge(["bench"])
    t.close()


if __name__ == "__main__":
    main()
