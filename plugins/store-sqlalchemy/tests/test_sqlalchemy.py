"""What is special: pushing, polling, sweeping, and outcomes that are not known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from taskq.errors import OutcomeUnknown, ResultTooLarge, StoreError, StoreSchemaMismatch, StoreUnavailable
from taskq.spi import Op, OpKind, Record
from taskq_lib_sqlalchemy import database
from taskq_lib_sqlalchemy.mysql import MySQL
from taskq_store_sqlalchemy.store import SqlStore
from tests.support.steps import persistently

Open = Callable[..., SqlStore]


def record(task_id: str, payload: str = "result", **fields: Any) -> Record:
    return Record(id=task_id, state="SUCCESS", payload=payload.encode(), **fields)


def elsewhere(store: SqlStore) -> SqlStore:
    """Cut a store off from its neighbours in this process, as if it were in another one."""
    store.neighbours = type(store.neighbours)()
    return store


def counted(store: SqlStore) -> list[Sequence[str]]:
    """Record what is asked of the database while waiting."""
    asked: list[Sequence[str]] = []
    strategy = store._open_strategy()
    read = strategy.read

    def counting(connection: sa.Connection, ids: Sequence[str]) -> list[Record]:
        asked.append(list(ids))
        return read(connection, ids)

    strategy.read = counting  # type: ignore[method-assign]
    return asked


# ---------------------------------------------------------------------------------------------------------- waiting


def test_a_pushed_result_alone_is_read(postgresql: str, open_store: Open) -> None:
    """Among hundreds of awaited results, the notification says which one to fetch."""
    store, writer = open_store(postgresql, poll_min=30.0, poll_max=30.0), elsewhere(open_store(postgresql))
    ids = [f"t{i}" for i in range(500)]
    asked = counted(store)
    assert not store.wait(ids, 0.05)
    assert asked == [sorted(ids)]
    timer = threading.Timer(0.1, writer.put, ([record("t250", reply=store.reply_address()), record("stranger")],))
    timer.start()
    (found,) = store.wait(ids, 10.0)
    timer.join()
    assert found.id == "t250"
    assert asked[1:] == [["t250"]]


def test_results_for_another_caller_are_found_by_looking(url: str, open_store: Open) -> None:
    """Who asks for a result that another process has sent for is not told, and looks."""
    store, writer = open_store(url), elsewhere(open_store(url))
    store.wait(["t"], 0.0)
    timer = threading.Timer(0.2, writer.put, ([record("t", reply="taskq_r_somebody_else")],))
    timer.start()
    assert [r.id for r in store.wait(["t"], 10.0)] == ["t"]
    timer.join()


def test_a_result_of_this_process_is_noticed_at_once(url: str, open_store: Open) -> None:
    store, writer = open_store(url, poll_min=30.0, poll_max=30.0, listen=False), open_store(url)
    store.wait(["t"], 0.0)
    timer = threading.Timer(0.2, writer.put, ([record("t")],))
    timer.start()
    started = time.monotonic()
    assert [r.id for r in store.wait(["t"], 20.0)] == ["t"]
    assert time.monotonic() - started < 10.0
    timer.join()


def test_looking_gets_rarer(sqlite: str, open_store: Open) -> None:
    store = open_store(sqlite, poll_min=0.01, poll_max=0.1)
    asked = counted(store)
    assert not store.wait(["t"], 1.0)
    assert 3 <= len(asked) <= 25, "a hundred looks in a second would be every 10 ms"


def test_listening_begins_again_on_a_new_connection(postgresql: str, open_store: Open) -> None:
    store, writer = open_store(postgresql, poll_min=30.0, poll_max=30.0), elsewhere(open_store(postgresql))
    assert not store.wait(["a", "b"], 0.05)
    writer.database.run(
        lambda c: c.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).all(),
        "testing",
    )
    writer.put([record("a", reply=store.reply_address())])  # nobody listens
    with pytest.raises(StoreUnavailable):
        store.wait(["a", "b"], 20.0)
    # it has two connections: the server may end one of them a moment later
    assert [r.id for r in persistently(lambda: store.wait(["a", "b"], 20.0))] == ["a"]


def test_two_stores_have_two_addresses(postgresql: str, mariadb: str, open_store: Open) -> None:
    one, two = open_store(postgresql), open_store(postgresql)
    assert one.reply_address() != two.reply_address()
    assert open_store(postgresql, listen=False).reply_address() is None
    assert open_store(mariadb).reply_address() is None


# ---------------------------------------------------------------------------------------------------------- records


def test_a_batch_may_name_an_id_several_times(url: str, open_store: Open) -> None:
    store = open_store(url)
    batch = [record("a", "0"), record("b"), record("a", "1", attempt=1), record("a", "again", attempt=1)]
    assert list(store.put(batch)) == ["a"]
    found = store.get(["a"])[0]
    assert found is not None
    assert found.payload == b"1"


def test_writers_that_meet_do_not_deadlock(url: str, open_store: Open) -> None:
    """Batches of the same ids in opposite orders, at once, on several connections."""
    stores = [open_store(url) for _ in range(3)]
    ids = [f"id{i}" for i in range(30)]
    errors: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for attempt in range(8):
                order = ids if n % 2 else list(reversed(ids))
                stores[n].put([record(i, f"{n}", attempt=attempt * 3 + n) for i in order])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert not errors, errors[0]
    assert {r.attempt for r in stores[0].get(ids) if r} == {23}


def test_expired_records_and_entries_are_swept(url: str, open_store: Open) -> None:
    store = open_store(url)
    store.put([record(f"old{i}", ttl=0.01) for i in range(20)] + [record("new")])
    store.apply([Op(kind=OpKind.PUT, key=f"old{i}", value=b"", ttl=0.01) for i in range(20)])
    store.apply([Op(kind=OpKind.PUT, key="new", value=b""), Op(kind=OpKind.DELETE, key="absent")])
    time.sleep(0.05)
    assert store.maintain(5.0) > 1.0
    tables = store._open_strategy().tables
    for table, left in ((tables.results, 1), (tables.entries, 1)):
        count = sa.select(sa.func.count()).select_from(table)
        assert store.database.run(lambda c, count=count: c.scalar(count), "testing") == left  # type: ignore[misc]


def test_a_record_that_is_too_large(mariadb: str, open_store: Open) -> None:
    store = open_store(mariadb)
    limit = store.capabilities.max_record_bytes
    assert limit is not None
    with pytest.raises(ResultTooLarge, match="return less"):
        store.put([record("small"), record("large", follow_ups=b"x" * limit)])
    assert store.get(["small"]) == [None]


def test_tables_that_were_dropped(url: str, open_store: Open) -> None:
    store = open_store(url)
    name = store._open_strategy().tables.results.name
    store.database.run(lambda c: c.exec_driver_sql(f"DROP TABLE {name}"), "testing")
    with pytest.raises(StoreSchemaMismatch, match="table_prefix"):
        store.get(["a"])


# ----------------------------------------------------------------------------------------------------- coordination


@pytest.mark.parametrize("kind", [OpKind.INCREMENT, OpKind.PUT_IF_ABSENT])
def test_an_operation_whose_commit_was_cut_is_unknown(
    url: str, kind: OpKind, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(url)
    execute = database.execute

    def cut(connection: sa.Connection, statement: str, *arguments: Any) -> Any:
        result = execute(connection, statement, *arguments)
        if statement == "COMMIT" and store.database.dialect != "sqlite":
            raise ConnectionResetError("cut")
        return result

    op = Op(kind=kind, key="k", value=b"1" if kind is OpKind.PUT_IF_ABSENT else None)
    monkeypatch.setattr(database, "execute", cut)
    if store.database.dialect == "sqlite":  # there is no network
        assert store.apply([op])[0].applied
    else:
        with pytest.raises(OutcomeUnknown, match="not known"):
            store.apply([op])
    monkeypatch.undo()
    assert store.apply([Op(kind=OpKind.GET, key="k")])[0].current == b"1"


def test_an_operation_cut_before_its_commit_has_not_happened(
    url: str, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(url)
    strategy = store._open_strategy()

    def cut(*arguments: Any) -> None:
        raise ConnectionResetError("cut")

    monkeypatch.setattr(strategy, "write_entries", cut)
    with pytest.raises(StoreUnavailable) as caught:
        store.apply([Op(kind=OpKind.INCREMENT, key="k")])
    assert not isinstance(caught.value, OutcomeUnknown)
    monkeypatch.undo()
    assert store.apply([Op(kind=OpKind.GET, key="k")])[0].current is None


def test_operations_and_semaphores_share_no_names(url: str, open_store: Open) -> None:
    store = open_store(url)
    store.apply([Op(kind=OpKind.PUT, key="x", value=b"not owners")])
    assert store.acquire("x", "me", ttl=60)
    assert store.apply([Op(kind=OpKind.GET, key="x")])[0].current == b"not owners"


def test_mysql_without_returning(mariadb: str, open_store: Open) -> None:
    """The statements for MySQL 8, which has no RETURNING, on MariaDB."""
    store = open_store(mariadb)
    strategy = store._open_strategy()
    assert isinstance(strategy, MySQL)
    strategy.mariadb = False
    store.index_put("i", {"a": 1.0, "b": 2.0})
    assert store.index_remove("i", ["a", "x"]) == ["a"]
    assert store.index_due("i", 5.0, 10) == [("b", 2.0)]


def test_use_before_open_is_refused(sqlite: str) -> None:
    from taskq.spi import StoreConfig, parse_urls
    from taskq_store_sqlalchemy.options import SqlStoreOptions

    store = SqlStore(StoreConfig(urls=parse_urls(sqlite), options=SqlStoreOptions()))
    with pytest.raises(StoreError, match="before open") as caught:
        store.get(["a"])
    assert not caught.value.retryable
    store.wake()
