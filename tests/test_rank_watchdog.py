import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nanochat.runtime import RankStore
from nanochat.training import rank_watchdog
from nanochat.training.rank_watchdog import Watch


class Store:
    """Stands for the ranks' key-value store; out of reach when told so."""

    def __init__(self) -> None:
        self.notes: dict[str, bytes] = {}
        self.is_reachable = True

    def set(self, key: str, value: str) -> None:
        self.check([key])
        self.notes[key] = value.encode()

    def get(self, key: str) -> bytes:
        self.check([key])
        return self.notes[key]

    def check(self, keys: list[str]) -> bool:
        if not self.is_reachable:
            raise RuntimeError("timed out")
        return all(key in self.notes for key in keys)

    def delete_key(self, key: str) -> bool:
        return self.notes.pop(key, None) is not None


@pytest.mark.parametrize("store", [None, Store()])
def test_a_note_is_read_as_it_was_left_and_taken_once(store: Any) -> None:
    store = RankStore(store)
    assert store.get("a") is None
    store.set("a", "first")
    store.set("a", "ü")
    assert store.get("a") == "ü"
    assert store.pop("a") == "ü" and store.pop("a") is None


def test_ranks_that_beat_are_not_lost_and_one_that_stops_is_named_to_all() -> None:
    store = RankStore(Store())
    watches = [Watch(store, rank, 3) for rank in range(3)]
    for _ in range(20):
        assert [watch.beat(1.0, 5.0) for watch in watches] == ["", "", ""]
    said = [[watches[rank].beat(1.0, 5.0) for rank in (0, 1)] for _ in range(8)]
    assert said[0] == ["", ""]
    assert said[-1] == ["rank 2 has not been heard of for 5 s"] * 2


def test_a_store_out_of_reach_is_a_silent_rank() -> None:
    store = Store()
    watches = [Watch(RankStore(store), rank, 2) for rank in range(2)]
    for _ in range(2):
        assert [watch.beat(1.0, 3.0) for watch in watches] == ["", ""]
    store.is_reachable = False
    assert [bool(watches[1].beat(1.0, 3.0)) for _ in range(3)] == [False, False, True]


def test_a_rank_that_has_not_begun_is_not_lost() -> None:
    watch = Watch(RankStore(Store()), 0, 2)
    assert [watch.beat(10.0, 3.0) for _ in range(9)] == [""] * 9


def test_a_rank_that_is_done_before_the_others_is_not_lost() -> None:
    store = RankStore(Store())
    watch = Watch(store, 0, 2)
    with rank_watchdog.watched(store, 1, 2, is_leaving=lambda: False):
        while watch.last_heard is None:
            assert watch.beat(1.0, 3.0) == ""
    while watch.last_heard != rank_watchdog.LEFT:
        watch.beat(0.0, 3.0)
    assert [watch.beat(1.0, 3.0) for _ in range(9)] == [""] * 9


def test_a_job_that_was_suspended_as_a_whole_goes_on() -> None:
    store = RankStore(Store())
    watches = [Watch(store, rank, 2) for rank in range(2)]
    for seconds in (1.0, 1.0, 9000.0, 1.0):
        assert [watch.beat(seconds, rank_watchdog.SILENT_SECONDS) for watch in watches] == ["", ""]


def test_a_lost_rank_ends_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(rank_watchdog, "BEAT_SECONDS", 0.001)
    monkeypatch.setattr(rank_watchdog, "SILENT_SECONDS", 0.01)
    store = RankStore(Store())
    store.set("alive/1", "7")
    with rank_watchdog.watched(store, 0, 2, is_leaving=lambda: False):
        [watch] = [thread for thread in threading.enumerate() if thread.name == "peers"]
        while not left:
            time.sleep(0.001)
    watch.join()  # or it would end this process once os._exit is what it was
    assert set(left) == {75}
