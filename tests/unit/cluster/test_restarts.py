"""A run that cannot get past a step is not tried for ever; one that gets on is, and so is one typed anew."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distcifar.cluster import restarts
from distcifar.cluster.restarts import PAUSE, last_step, require_progress, same_step_failures
from distcifar.errors import RunError
from distcifar.tracking.journal import Journal


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(restarts.time, "sleep", found.append)
    return found


def attempt(journal: Journal, reached: int, launch: str = "a", reason: str = "") -> None:
    """A start, as recorder.py notes it, whose workers get to step `reached` and die."""
    require_progress(journal, launch)
    before = last_step(journal)
    journal.event("continue" if before else "start", "...", reached=before, launch=launch)
    journal.cut(step=0, epoch=0)  # the newest checkpoint is of step 0
    journal.append({"kind": "step", "step": step} for step in range(1, reached + 1))
    if reason:
        journal.event("failure", reason)


def test_the_fourth_try_of_a_step_is_refused_with_the_last_reason(tmp_path: Path, pauses: list[float]):
    journal = Journal(tmp_path)
    for number in range(3):
        attempt(journal, 7, reason=f"rank 1 on node {number}: KeyError")
    with pytest.raises(RunError, match=r"failed 3 times after step 7; the last reason: rank 1 on node 2: KeyError"):
        attempt(journal, 7)
    assert pauses == [PAUSE]


def test_workers_that_die_without_a_word_are_told_as_such(tmp_path: Path, pauses: list[float]):
    journal = Journal(tmp_path)
    for _ in range(3):
        attempt(journal, 0)
    with pytest.raises(RunError, match="3 times after step 0; its workers died without a word"):
        attempt(journal, 0)


@given(st.lists(st.integers(0, 3), max_size=12))
def test_only_three_failures_in_a_row_at_one_step_end_a_launch(ends: list[int]):
    last = ends[-1:] * len(ends)
    assert same_step_failures(ends) == next((i for i in range(len(ends)) if ends[-1 - i] != last[0]), len(ends))


@pytest.mark.parametrize("ends", [[5, 6, 7, 8, 9, 9, 10], [7, 7, 8, 8, 7, 7, 9], [3, 2, 1, 0]])
def test_a_run_that_gets_on_or_fails_elsewhere_is_tried_again(tmp_path: Path, pauses: list[float], ends: list[int]):
    journal = Journal(tmp_path)
    for end in ends:
        attempt(journal, end)
    require_progress(journal, "a")


def test_who_types_the_command_again_begins_to_count_anew(tmp_path: Path, pauses: list[float]):
    journal = Journal(tmp_path)
    for launch in ("a", "b", "c"):
        for _ in range(3):
            attempt(journal, 7, launch)
    with pytest.raises(RunError, match="3 times"):
        attempt(journal, 7, "c")
    require_progress(journal, "d")


def test_nodes_that_join_one_after_another_are_no_failures(tmp_path: Path, pauses: list[float]):
    """Each time Ray ends the workers, before their first step, and starts more of them."""
    journal = Journal(tmp_path)
    for workers in (1, 2, 3, 4, 5):
        require_progress(journal, "a")
        journal.event("start", "...", reached=0, launch="a", workers=workers)
    assert pauses == []
    for _ in range(2):
        journal.event("start", "...", reached=0, launch="a", workers=5)
    with pytest.raises(RunError, match="3 times"):
        require_progress(journal, "a")


def test_a_rank_that_halves_its_microbatch_is_not_stuck(tmp_path: Path, pauses: list[float]):
    """Of several workers each halving is a restart at the same step: 512 images need six to come down to 8."""
    journal = Journal(tmp_path)
    for images in (512, 256, 128, 64, 32, 16):
        attempt(journal, 7)
        journal.event("memory", f"rank 1 ran out of memory with {images} images at once: now {images // 2}")
    for _ in range(3):
        attempt(journal, 7)
    with pytest.raises(RunError, match="3 times"):
        attempt(journal, 7)


def test_events_of_other_kinds_and_of_older_versions_are_no_starts(tmp_path: Path, pauses: list[float]):
    journal = Journal(tmp_path)
    facts: list[dict[str, Any]] = [{}, {"launch": "a"}, {"launch": "b", "reached": 7}]
    for kind, fact in zip(("start", "rollback", "continue"), facts, strict=True):
        for _ in range(5):
            journal.event(kind, "...", **fact)
    require_progress(journal, "a")
    assert pauses == []
