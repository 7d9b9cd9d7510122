"""system.jsonl: readable whatever happened to its writer, and of bounded size."""

from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from distcifar.tracking import system
from distcifar.tracking.system import SystemLog, read_system

RANKS = [{"rank": 0, "host": "a", "cpu_percent": 99.5}, {"rank": 1, "host": "b"}]


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in read_system(folder)]


def test_a_line_has_the_time_the_step_and_all_ranks(tmp_path: Path):
    SystemLog(tmp_path).append(7, RANKS)
    (line,) = read_system(tmp_path)
    assert (line["step"], line["ranks"]) == (7, RANKS)
    assert datetime.fromisoformat(line["time"]).utcoffset() is not None


def test_a_run_without_measurements_has_none(tmp_path: Path):
    assert read_system(tmp_path) == []


def test_a_line_that_a_kill_has_torn_is_lost_and_no_other(tmp_path: Path):
    """At every byte of the last line."""
    SystemLog(tmp_path).append(1, RANKS)
    path = tmp_path / "system.jsonl"
    line = path.read_bytes()
    for cut in range(1, len(line)):
        path.write_bytes(line + line[:cut])
        SystemLog(tmp_path).append(3, RANKS)
        whole = cut == len(line) - 1  # only the end of the line is missing
        assert steps(tmp_path) == ([1, 1, 3] if whole else [1, 3])


def test_a_start_after_a_resume_goes_on_below(tmp_path: Path):
    for step in (5, 9, 6):
        SystemLog(tmp_path).append(step, RANKS)
    assert steps(tmp_path) == [5, 9, 6]


def test_a_thousand_ranks_file_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(system, "MOST_BYTES", 5000)
    path, log = tmp_path / "system.jsonl", SystemLog(tmp_path)
    log.append(0, RANKS * 10)
    line = path.stat().st_size
    for step in range(1, 60):
        log = log if step % 7 else SystemLog(tmp_path)
        log.append(step, RANKS * 10)
        assert path.stat().st_size < 5000 + 1.1 * line
    assert (steps(tmp_path)[0], steps(tmp_path)[-1]) == (0, 59)


def test_a_long_run_s_file_is_thinned_and_goes_back_to_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(system, "MOST_LINES", 8)
    log = SystemLog(tmp_path)
    for step in range(100):
        log = log if step % 7 else SystemLog(tmp_path)  # starts anew count the lines that are there
        log.append(step, RANKS)
        found = steps(tmp_path)
        assert len(found) <= 8
        assert found == sorted(set(found))
        assert (found[0], found[-1]) == (0, step)
    assert len(found) >= 4
    gaps = [after - before for before, after in pairwise(found)]
    assert gaps == sorted(gaps, reverse=True), "the longer ago the less"


def test_thinning_that_fails_leaves_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(system, "MOST_LINES", 4)
    log = SystemLog(tmp_path)
    for step in range(4):
        log.append(step, RANKS)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distcifar.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        log.append(4, RANKS)
    assert steps(tmp_path) == [0, 1, 2, 3]
