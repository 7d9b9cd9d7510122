"""Who trains a run at a URL: one command, and after its death the next one."""

import json
import os
import platform
import threading
import time

import pytest

from distcifar.cluster.stored import lease
from distcifar.cluster.stored.lease import leased, require_lease
from distcifar.errors import RunError
from tests.support.memory_store import MemoryStore

BEAT = 0.05


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    found = MemoryStore()
    monkeypatch.setattr(lease, "Store", lambda url, tries: found)  # the beats have one of their own
    return found


def silent(text: str) -> None:
    """Announces nothing."""


def test_a_living_holder_is_named(store: MemoryStore):
    with leased(store, "a", "first", (), silent, beat=BEAT):
        begun = time.monotonic()
        with (
            pytest.raises(RunError, match=rf"process {os.getpid()} on {platform.node()}.*another --name"),
            leased(store, "a", "second", (), silent, beat=1.0),
        ):
            pytest.fail("two hold it")
        assert time.monotonic() - begun < 3, "the first beat tells it"
        require_lease(store, "a", "first")
    assert store.objects == {}


def test_a_dead_holder_is_followed_after_a_while(store: MemoryStore):
    store.write("launch.json", json.dumps({"host": "h", "pid": 7, "launch": "first", "beat": 3}).encode())
    said: list[str] = []
    begun = time.monotonic()
    with leased(store, "a", "second", (), said.append, beat=BEAT):
        assert 3 * BEAT <= time.monotonic() - begun < 5
        assert json.loads(store.objects["launch.json"])["launch"] == "second"
    assert "process 7 on h" in said[0]


def test_of_a_holder_that_is_known_to_be_dead_nothing_is_awaited(store: MemoryStore):
    store.write("launch.json", json.dumps({"host": "h", "pid": 7, "launch": "first", "beat": 3}).encode())
    with leased(store, "a", "second", ("zeroth", "first"), pytest.fail):
        require_lease(store, "a", "second")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 1}'])
def test_a_lease_that_nobody_can_read_holds_nothing(store: MemoryStore, content: bytes):
    store.write("launch.json", content)
    with leased(store, "a", "first", (), pytest.fail):
        pass


def test_who_was_slept_over_does_not_take_it_back(store: MemoryStore):
    with leased(store, "a", "first", (), silent, beat=BEAT):
        other = json.dumps({"host": "h", "pid": 7, "launch": "second", "beat": 0}).encode()
        store.write("launch.json", other)
        time.sleep(4 * BEAT)
        assert store.objects["launch.json"] == other
        with pytest.raises(RunError, match="taken over by another command"):
            require_lease(store, "a", "first")
    assert store.objects["launch.json"] == other, "it is not the first one's to remove"


def test_of_two_that_come_at_once_one_finds_that_it_has_lost(store: MemoryStore, monkeypatch: pytest.MonkeyPatch):
    barrier, lost, read = threading.Barrier(2, timeout=10), [], lease._read
    monkeypatch.setattr(lease, "_read", lambda store: None)  # neither sees the other come

    def come(launch: str) -> None:
        with leased(store, "a", launch, (), silent, beat=10.0):
            barrier.wait()
            monkeypatch.setattr(lease, "_read", read)
            try:
                require_lease(store, "a", launch)
            except RunError:
                lost.append(launch)
            barrier.wait()

    threads = [threading.Thread(target=come, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 1
    assert store.objects == {}
