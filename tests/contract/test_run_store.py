"""What every `RunStore` does, run against the embedded one and the fake."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.stores import MemoryRunStore
from msfl.orchestrator.store.interface import RunStore, StoreDamaged, StoredEvent, StoreUnavailable
from msfl.orchestrator.store.sqlite import SqliteRunStore


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunStore]:
    if request.param == "memory":
        yield MemoryRunStore()
        return
    sqlite = SqliteRunStore(tmp_path / "runs.sqlite")
    yield sqlite
    sqlite.close()


class TestRunStore:
    def test_events_come_back_in_order_numbered_from_one(self, store: RunStore) -> None:
        assert [store.append("run-1", text) for text in ("a", "b", "c")] == [1, 2, 3]
        assert store.events("run-1") == [StoredEvent(1, "a"), StoredEvent(2, "b"), StoredEvent(3, "c")]

    def test_a_watcher_goes_on_after_what_it_has_seen(self, store: RunStore) -> None:
        for text in "abc":
            store.append("run-1", text)
        assert store.events("run-1", after=2) == [StoredEvent(3, "c")]
        assert store.events("run-1", after=3) == []

    def test_runs_do_not_mix_and_are_listed_as_they_began(self, store: RunStore) -> None:
        for run, text in (("run-2", "x"), ("run-1", "a"), ("run-2", "y"), ("run-3", "z")):
            store.append(run, text)
        assert store.runs() == ["run-2", "run-1", "run-3"]
        assert [e.text for e in store.events("run-2")] == ["x", "y"]
        assert [e.sequence for e in store.events("run-1")] == [1]

    def test_a_run_nobody_began_has_no_events(self, store: RunStore) -> None:
        assert store.events("run-9") == []
        assert store.runs() == []

    def test_the_same_text_twice_is_two_events(self, store: RunStore) -> None:
        assert [store.append("run-1", "a"), store.append("run-1", "a")] == [1, 2]

    def test_text_is_kept_to_the_byte(self, store: RunStore) -> None:
        text = "'; DROP TABLE events; -- \n\t\"ü\N{BRAIN}"
        store.append(text, text)
        assert store.events(text) == [StoredEvent(1, text)]

    def test_writers_in_many_threads_lose_nothing(self, store: RunStore) -> None:
        def write(name: str) -> None:
            for i in range(20):
                store.append("run-1", f"{name}{i:02d}")

        threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events = store.events("run-1")
        assert [e.sequence for e in events] == list(range(1, 81))
        for name in "abcd":
            assert [e.text for e in events if e.text[0] == name] == [f"{name}{i:02d}" for i in range(20)]


@pytest.fixture(params=["sqlite full", "sqlite read-only", "memory"])
def filling(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[RunStore, Callable[[bool], None]]]:
    """A store, and how to make its disk full (True) and usable again (False)."""
    if request.param == "memory":
        memory = MemoryRunStore()
        yield memory, lambda full: setattr(memory, "full", full)
        return
    sqlite = SqliteRunStore(tmp_path / "runs.sqlite")
    connection = sqlite._connection

    def fill(full: bool) -> None:
        if request.param == "sqlite full":
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count={pages if full else 1 << 30}")
        else:
            connection.execute(f"PRAGMA query_only={int(full)}")

    yield sqlite, fill
    sqlite.close()


def test_a_full_disk_keeps_nothing_says_so_and_may_be_tried_again(
    filling: tuple[RunStore, Callable[[bool], None]],
) -> None:
    store, fill = filling
    text = "x" * 10_000
    store.append("run-1", "a")
    fill(True)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"runs\.sqlite cannot be written"):
            store.append("run-1", text)
    assert store.events("run-1") == [StoredEvent(1, "a")]
    fill(False)
    assert store.append("run-1", text) == 2


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"not a database" * 400, lambda data: data[: len(data) // 2], lambda data: data[:4096] + bytes(8192)],
    ids=["not ours", "torn", "zeros"],
)
def test_a_damaged_file_is_found_at_the_start_and_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "runs.sqlite"
    store = SqliteRunStore(file)
    for _ in range(20):
        store.append("run-1", "x" * 5000)
    store.close()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(StoreDamaged, match=r"runs\.sqlite is damaged.*put back your last copy"):
        SqliteRunStore(file)


def test_what_was_acknowledged_is_there_for_the_next_process(tmp_path: Path) -> None:
    """The first store is never closed, as after a kill."""
    killed = SqliteRunStore(tmp_path / "runs.sqlite")
    killed.append("run-2", "x")
    killed.append("run-1", "a")
    killed.append("run-1", "b")
    reopened = SqliteRunStore(tmp_path / "runs.sqlite")
    assert reopened.runs() == ["run-2", "run-1"]
    assert reopened.append("run-1", "c") == 3
    assert [e.text for e in reopened.events("run-1")] == ["a", "b", "c"]
    reopened.close()
    killed.close()
