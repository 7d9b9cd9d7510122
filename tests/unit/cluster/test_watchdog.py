"""A hang is noticed, named and ended; a training that goes on, however slowly, and a sleeping machine are not."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distcifar.cluster import watchdog
from distcifar.cluster.watchdog import Pulse, Sign, culprits, leave_mark, mark_of, remove_mark
from distcifar.tracking.journal import read_events
from distcifar.world import World

TICK = 0.01
SECONDS = 0.1
ENOUGH = 20.0  # seconds that a busy machine may take for what is due at once


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "TICK", TICK)


def sign(rank: int, tick: int = 1, entered: int = 1) -> Sign:
    return Sign(rank, "host", 100 + rank, tick, entered, "step", 7)


# Who is behind

SIGNS = st.dictionaries(st.integers(0, 7), st.tuples(st.integers(1, 3), st.integers(0, 5)), min_size=1)


@given(SIGNS, SIGNS)
def test_those_who_stand_still_are_named_before_those_who_are_behind(old: dict, new: dict):
    before = {rank: sign(rank, *facts) for rank, facts in old.items()}
    after = {rank: sign(rank, *facts) for rank, facts in new.items()}
    found = {s.rank for s in culprits(before, after)}
    frozen = {rank for rank in old.keys() & new.keys() if old[rank][0] == new[rank][0]}
    most = max(entered for _, entered in new.values())
    behind = {rank for rank, (_, entered) in new.items() if entered < most}
    assert found == (frozen or behind or new.keys())


def test_nobody_is_named_where_no_rank_has_left_a_sign():
    assert culprits({}, {}) == []


# A pulse of its own


@contextmanager
def pulse(folder: Path, world: World = World(), seconds: float = SECONDS) -> Iterator[tuple[Pulse, threading.Event]]:
    ended = threading.Event()
    with Pulse(folder, world, seconds, end=ended.set) as found:
        found._stage = "step"
        yield found, ended


@contextmanager
def peer(folder: Path, rank: int, **facts: Any) -> Iterator[None]:
    """Another rank, whose process lives."""
    over = threading.Event()

    def beat() -> None:
        tick = 0
        while not over.wait(TICK / 2):
            tick += 1
            leave(folder, replace(sign(rank, tick), **facts))

    leave(folder, replace(sign(rank, 0), **facts))
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def leave(folder: Path, mark: Sign) -> None:
    path = folder / "ranks" / f"{mark.rank}.json"
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps(asdict(mark)))
    path.with_suffix(".tmp").replace(path)


def test_a_stall_ends_the_process_with_an_event_and_its_stacks(tmp_path: Path):
    with pulse(tmp_path) as (mine, ended):
        mine.enter("data", 4)
        mine.enter("step", 5)
        assert ended.wait(ENOUGH)
    event = read_events(tmp_path)[0]
    assert (event["kind"], event["rank"]) == ("hang", 0)
    assert "held up by rank 0 on" in event["text"]
    assert "step at step 5" in event["text"]
    stacks = (tmp_path / "stacks-rank-0.txt").read_text()
    assert stacks.startswith("rank 0, no new stage for")
    assert "test_watchdog.py" in stacks, "where the training thread stands is the point of it"


def test_who_stands_still_is_named_once_and_long_before_it_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watchdog, "NAMING_SECONDS", 5 * TICK)
    leave(tmp_path, sign(1, tick=44))
    with peer(tmp_path, 2), pulse(tmp_path, World(0, 3), seconds=60.0) as (mine, ended):
        mine.enter("step", 5)
        until = time.monotonic() + ENOUGH
        while not read_events(tmp_path) and time.monotonic() < until:
            time.sleep(TICK)
        time.sleep(20 * TICK)
        assert not ended.is_set()
    (event,) = read_events(tmp_path)
    assert event["kind"] == "standing still"
    assert "held up by rank 1 on host (process 101, step at step 7); ended after 60 s" in event["text"]


def test_of_several_that_see_it_the_first_living_rank_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watchdog, "NAMING_SECONDS", 5 * TICK)
    with peer(tmp_path, 0), pulse(tmp_path, World(1, 2), seconds=20 * TICK) as (_, ended):
        assert ended.wait(ENOUGH)
    assert [event["kind"] for event in read_events(tmp_path)] == ["hang"]


def test_a_frozen_process_is_named_and_not_the_rank_that_waits_for_it(tmp_path: Path):
    leave(tmp_path, sign(1, tick=44, entered=3))
    with peer(tmp_path, 2, entered=4), pulse(tmp_path, World(0, 3)) as (mine, ended):
        for step in range(4):
            mine.enter("step", step)
        assert ended.wait(ENOUGH)
    assert read_events(tmp_path)[0]["text"].endswith("held up by rank 1 on host (process 101, step at step 7)")


def test_of_living_ranks_the_one_behind_is_named(tmp_path: Path):
    with peer(tmp_path, 1, entered=2), pulse(tmp_path, World(0, 2)) as (mine, ended):
        for step in range(4):
            mine.enter("step", step)
        assert ended.wait(ENOUGH)
    assert "held up by rank 1 on host" in read_events(tmp_path)[0]["text"]
    assert "rank 0" not in read_events(tmp_path)[0]["text"]


def test_a_rank_of_an_earlier_start_with_more_ranks_is_not_blamed(tmp_path: Path):
    leave(tmp_path, sign(3, tick=44))
    with pulse(tmp_path, World(0, 1)) as (_, ended):
        assert ended.wait(ENOUGH)
    assert "rank 3" not in read_events(tmp_path)[0]["text"]


@pytest.mark.parametrize("line", ["", "[1]", '{"rank": 1}', '{"rank'])
def test_a_sign_that_cannot_be_read_does_not_save_a_hanging_process(tmp_path: Path, line: str):
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks/1.json").write_text(line)
    with pulse(tmp_path, World(0, 2)) as (_, ended):
        assert ended.wait(ENOUGH)


def test_storage_that_is_gone_does_not_save_a_hanging_process(tmp_path: Path):
    """A vanished network disk is a likely cause of a hang."""
    with pulse(tmp_path / "gone") as (_, ended):
        assert ended.wait(ENOUGH)


def test_a_rank_whose_directory_has_another_group_ends_itself(tmp_path: Path):
    """As one does that was cut off from its cluster, and lives on."""
    mark = leave_mark(tmp_path)
    with pulse(tmp_path, seconds=0.0) as (mine, ended), pulse(tmp_path, World(1, 2), seconds=60.0) as (_, unmarked):
        mine.belong(mark)
        assert not ended.wait(10 * TICK)
        remove_mark(tmp_path, "of others")
        newer = leave_mark(tmp_path)
        assert ended.wait(ENOUGH)
        assert not unmarked.wait(10 * TICK), "it has not met its group yet"
    remove_mark(tmp_path, newer)
    assert mark_of(tmp_path) == ""
    assert read_events(tmp_path) == []


def test_stages_that_follow_each_other_are_no_hang(tmp_path: Path):
    with pulse(tmp_path) as (mine, ended):
        until = time.monotonic() + 5 * SECONDS
        while time.monotonic() < until:
            mine.enter("step", 1)
            time.sleep(TICK)
        assert not ended.is_set()
    assert read_events(tmp_path) == []


def test_a_rank_that_goes_on_while_its_peers_are_looked_at_is_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def goes_on(before: Any, after: Any) -> list[Sign]:
        raise AssertionError("nobody hangs any more")

    monkeypatch.setattr(watchdog, "culprits", goes_on)
    ended = threading.Event()
    mine = Pulse(tmp_path, World(), SECONDS, end=ended.set)
    threading.Timer(1.5 * TICK, lambda: mine.enter("step", 2)).start()
    mine._give_up(SECONDS)
    assert not ended.is_set()


def test_a_training_that_ends_while_it_is_given_up_is_not_ended(tmp_path: Path):
    ended = threading.Event()
    mine = Pulse(tmp_path, World(), SECONDS, end=ended.set)
    mine._over.set()
    mine._give_up(SECONDS)
    assert not ended.is_set()


def clocks(monkeypatch: pytest.MonkeyPatch, step: Callable[[int], float], ticks: int) -> None:
    """The watchdog lives `ticks` ticks, between which its clock moves by step(tick)."""
    moments = iter([sum(step(i) for i in range(n)) for n in range(ticks + 2)])
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: next(moments)))


@pytest.mark.parametrize(("pause", "fires"), [(3600.0, False), (0.0, True)])
def test_a_pause_of_the_whole_machine_is_nobodys_hang(
    pause: float, fires: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Three ticks of one second, then an hour's sleep; or ten ticks of one second."""
    monkeypatch.setattr(watchdog, "TICK", 1.0)
    ticks = 4 if pause else 10
    clocks(monkeypatch, lambda i: pause if i == 3 and pause else 1.0, ticks)
    mine = Pulse(tmp_path, World(), 6.0, end=lambda: None)
    mine._stage = "step"
    told: list[float] = []
    left = iter([False] * ticks + [True])
    monkeypatch.setattr(mine, "_over", SimpleNamespace(wait=lambda seconds: next(left)))
    monkeypatch.setattr(mine, "_give_up", told.append)
    mine._watch()
    assert bool(told) == fires


@pytest.mark.parametrize(("stage", "seconds"), [("step", 0.0), ("opening", SECONDS), ("compile", SECONDS)])
def test_what_may_take_long_is_named_and_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, seconds: float
):
    monkeypatch.setattr(watchdog, "NAMING_SECONDS", 2 * TICK)
    with pulse(tmp_path, seconds=seconds) as (mine, ended):
        mine.enter(stage, 5)
        assert not ended.wait(max(40 * TICK, 3 * SECONDS))
    (event,) = read_events(tmp_path)
    assert event["kind"] == "standing still"
    assert event["text"].endswith(f"{stage} at step 5)")


def test_a_training_that_ends_leaves_neither_thread_nor_signs(tmp_path: Path):
    before = threading.active_count()
    with pulse(tmp_path, seconds=60):
        path = tmp_path / "ranks/0.json"
        until = time.monotonic() + ENOUGH
        while not path.exists() and time.monotonic() < until:
            time.sleep(TICK)
        assert path.exists()
    assert threading.active_count() == before
    assert not (tmp_path / "ranks").exists()
