"""What the kit runs in processes of their own: ``python -m taskq.testing.child '{"action": …}'``.

Prints one line of JSON when it has done what it was asked, and then keeps what it holds until it is killed.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from taskq._plugins import PluginManager
from taskq.message import Outbound, Record, Settlement, Subscription
from taskq.spi import Coordination, LeaseScope, Op, OpKind, ResultStore, StoreConfig, Transport, TransportConfig
from taskq.spi.url import parse_urls

_GIVE_UP_S = 30.0


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201


def _stay() -> None:
    time.sleep(_GIVE_UP_S)


def _transport(task: dict[str, Any]) -> Transport:
    spec = PluginManager().select("transport", task["scheme"])
    urls = tuple(u.without_query() for u in parse_urls(task["url"]))
    config = TransportConfig(urls=urls, options=spec.options(**task["options"]), app="kit", lease_s=task["lease_s"])
    transport = spec.factory(config)
    transport.open()
    return transport


def _store(task: dict[str, Any]) -> ResultStore:
    spec = PluginManager().select("result_store", task["scheme"])
    urls = tuple(u.without_query() for u in parse_urls(task["url"]))
    store = spec.factory(StoreConfig(urls=urls, options=spec.options(**task["options"]), app="kit"))
    store.open()
    return store


def hold(task: dict[str, Any]) -> None:
    """Fetch ``n`` messages, acknowledge the first ``ack`` of them, and keep the lease of the rest."""
    transport = _transport(task)
    consumer = transport.consumer()
    consumer.credit(task["n"], 1 << 30)
    consumer.subscribe([Subscription(task["queue"])])
    held: list[Any] = []
    deadline = time.monotonic() + _GIVE_UP_S
    while len(held) < task["n"] and time.monotonic() < deadline:
        held += consumer.fetch(task["n"] - len(held), 0.2).deliveries
    acked, kept = held[: task["ack"]], held[task["ack"] :]
    consumer.settle([Settlement(d.receipt) for d in acked])
    consumer.flush(10.0)
    _say(held=[d.payload.decode() for d in kept], acked=[d.payload.decode() for d in acked])
    by_message = transport.capabilities.lease_scope is LeaseScope.MESSAGE
    while time.monotonic() < deadline:
        time.sleep(task["lease_s"] / 3)
        consumer.extend([d.receipt for d in kept] if by_message else None)


def send(task: dict[str, Any]) -> None:
    """Send messages one by one."""
    transport = _transport(task)
    for i, payload in enumerate(task["payloads"]):
        failures = transport.send([Outbound(id=f"{payload}-{i}", queue=task["queue"], payload=payload.encode())])
        if failures:
            raise SystemExit(f"send failed: {failures[0].reason}")
    _say(sent=len(task["payloads"]))
    _stay()


def put(task: dict[str, Any]) -> None:
    """Store a record."""
    store = _store(task)
    store.put([Record(task["id"], "SUCCESS", task["payload"].encode(), reply=task["reply"])])
    _say(put=task["id"])
    _stay()


def increment(task: dict[str, Any]) -> None:
    """Increment a counter many times."""
    store = _store(task)
    assert isinstance(store, Coordination)
    for _ in range(task["n"]):
        store.apply([Op(kind=OpKind.INCREMENT, key=task["key"])])
    _say(done=task["n"])
    store.close()


def acquire(task: dict[str, Any]) -> None:
    """Take a lock."""
    store = _store(task)
    assert isinstance(store, Coordination)
    _say(acquired=store.acquire(task["key"], task["owner"], ttl=task["ttl"]))
    _stay()


ACTIONS = {"acquire": acquire, "hold": hold, "increment": increment, "put": put, "send": send}

if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    ACTIONS[wanted["action"]](wanted)
