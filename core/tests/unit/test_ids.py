"""Task ids: unique, sortable, never shared with a forked child."""

from __future__ import annotations

import os
import re
import threading
import time
import uuid

from taskq.ids import new_id


def test_an_id_is_a_uuid_of_version_7() -> None:
    for _ in range(200):
        value = new_id()
        assert re.fullmatch("[0-9a-f]{32}", value)
        parsed = uuid.UUID(value)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert abs((parsed.int >> 80) / 1000 - time.time()) < 3600


def test_a_hundred_thousand_are_different_on_many_threads() -> None:
    made: list[list[str]] = [[] for _ in range(8)]

    def make(into: list[str]) -> None:
        into.extend(new_id() for _ in range(12_500))

    threads = [threading.Thread(target=make, args=(into,)) for into in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({i for into in made for i in into}) == 100_000


def test_later_ids_sort_later() -> None:
    def batches() -> list[str]:
        ids = [new_id() for _ in range(64)]
        time.sleep(0.002)
        return ids

    first, _, third = batches(), batches(), batches()
    assert max(first) < min(third)


def test_a_forked_child_makes_its_own() -> None:
    new_id()  # the parent has some ready
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, "".join(new_id() for _ in range(64)).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read) as pipe:
        text = pipe.read()
    theirs = {text[i : i + 32] for i in range(0, len(text), 32)}
    assert len(theirs) == 64
    assert theirs.isdisjoint(new_id() for _ in range(64))
