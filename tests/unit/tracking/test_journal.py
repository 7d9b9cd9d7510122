"""Contract 9: the run directory is the truth. No row is missing, doubled or half there, whenever a process dies."""

import csv
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from distcifar.tracking.journal import COLUMNS, Journal, JournalFollower, append_event, read_events
from distcifar.tracking.rows import PART_BYTES, read_rows


def step_row(step: int, loss: float = 1.5) -> dict[str, Any]:
    return {
        "kind": "step", "step": step, "epoch": step / 3, "train/loss": loss, "train/lr": 0.1,
        "train/grad_norm": 1 / 3, "perf/images_per_s": 1000.25, "perf/data_wait": 0.0, "perf/memory_bytes": 2**40,
    }  # fmt: skip


def epoch_row(epoch: int) -> dict[str, Any]:
    return {
        "kind": "epoch", "step": 3 * epoch, "epoch": epoch, "train/loss": 1e-300, "train/accuracy": 0.5,
        "train/lr": 0.1, "validation/loss": 2.0, "validation/accuracy": 1.0, "best_epoch": 1, "seconds": 0.1 + 0.2,
    }  # fmt: skip


def run_rows(first: int, last: int) -> list[dict[str, Any]]:
    """The rows of steps `first` to `last`, three to an epoch."""
    rows = []
    for step in range(first, last + 1):
        rows.append(step_row(step))
        if step % 3 == 0:
            rows.append(epoch_row(step // 3))
    return rows


def places(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(row["kind"], row["step"]) for row in rows]


def csv_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_csv_is_the_rows(folder: Path) -> None:
    rows = read_rows(folder)
    assert csv_rows(folder) == [{name: str(row.get(name, "")) for name in COLUMNS} for row in rows]


def test_rows_come_back_as_they_were_added_and_the_csv_has_the_same(tmp_path: Path):
    journal = Journal(tmp_path)
    rows = run_rows(1, 7)
    journal.append(rows[:2])
    journal.append([])
    journal.append(rows[2:])
    assert journal.rows() == rows
    assert_csv_is_the_rows(tmp_path)
    assert tuple(csv_rows(tmp_path)[0]) == COLUMNS


def test_a_journal_is_opened_again_without_a_second_header(tmp_path: Path):
    Journal(tmp_path).append(run_rows(1, 2))
    Journal(tmp_path).append(run_rows(3, 3))
    assert Journal(tmp_path).rows() == run_rows(1, 3)
    assert_csv_is_the_rows(tmp_path)


@pytest.mark.parametrize(
    ("step", "epoch", "last"),
    [
        (4, 1, ("step", 4)),  # in the second epoch
        (6, 1, ("step", 6)),  # at the last step of the second epoch, before it was measured
        (6, 2, ("epoch", 6)),  # after it was measured
        (0, 0, None),
    ],
)
def test_cutting_leaves_exactly_what_belongs_to_the_checkpoint(tmp_path: Path, step: int, epoch: int, last):
    journal = Journal(tmp_path)
    journal.append(run_rows(1, 9))
    journal.cut(step=step, epoch=epoch)
    expected = run_rows(1, 9)
    kept = expected[: places(expected).index(last) + 1] if last else []
    assert journal.rows() == kept
    assert_csv_is_the_rows(tmp_path)
    journal.append(run_rows(1, 9)[len(kept) :])
    assert journal.rows() == expected, "cut and written again: nothing missing, nothing doubled"
    assert_csv_is_the_rows(tmp_path)


def test_cutting_a_journal_without_rows_is_no_error(tmp_path: Path):
    Journal(tmp_path).cut(step=0, epoch=0)
    assert Journal(tmp_path).rows() == []


def test_a_last_line_that_was_cut_at_any_byte_is_dropped_and_the_rest_kept(tmp_path: Path):
    """What a killed process or a full disk leaves; the csv may be ahead or behind."""
    Journal(tmp_path).append(run_rows(1, 4))
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for end in range(start, len(whole) - 1):
        (tmp_path / "metrics.jsonl").write_bytes(whole[:end])
        assert read_rows(tmp_path) == run_rows(1, 4)[:-1], end
    journal = Journal(tmp_path)
    journal.cut(step=3, epoch=1)
    journal.append([step_row(4)])
    assert journal.rows() == run_rows(1, 4)
    assert_csv_is_the_rows(tmp_path)


@pytest.mark.parametrize("tail", [b"\0" * 40, b"\xff\xfe\x80 garbage", b"{\xc3"])
def test_bytes_that_a_power_cut_left_behind_are_dropped_like_a_half_line(tmp_path: Path, tail: bytes):
    """Blocks that were allocated and never written hold zeros or whatever was there."""
    Journal(tmp_path).append(run_rows(1, 4))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(tail)
    assert Journal(tmp_path).rows() == run_rows(1, 4)


def test_the_csv_header_survives_a_run_without_rows(tmp_path: Path):
    Journal(tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_events_are_lines_of_time_kind_and_text(tmp_path: Path):
    journal = Journal(tmp_path)
    journal.event("start", "at step 0")
    journal.event("damaged checkpoint", "猫\nof two lines")
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["kind"], event["text"]) for event in events] == [
        ("start", "at step 0"),
        ("damaged checkpoint", "猫\nof two lines"),
    ]
    assert all(event["time"].endswith("+00:00") for event in events)
    assert "猫" in (tmp_path / "events.jsonl").read_text()


def test_an_event_after_a_half_written_one_is_on_a_line_of_its_own(tmp_path: Path):
    """The restart after a kill is what the events are for: its line must be readable."""
    journal = Journal(tmp_path)
    journal.event("start", "at step 0")
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"time": "2026-01-01T00:00')
    Journal(tmp_path).event("start", "at step 7")
    last = (tmp_path / "events.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["text"] == "at step 7"


def test_flushing_beside_a_writer_that_rotates_is_no_error(tmp_path: Path):
    """Checkpoints are written by a thread of their own, which flushes the rows first."""
    journal, stop, problems = Journal(tmp_path, part_bytes=300), threading.Event(), []

    def flush() -> None:
        while not stop.is_set():
            try:
                journal.sync()
            except OSError as error:
                problems.append(error)

    thread = threading.Thread(target=flush)
    thread.start()
    for step in range(1, 60):
        journal.append([step_row(step)])
    stop.set()
    thread.join()
    assert problems == []


# The follower


def test_a_follower_tells_each_new_row_once_and_none_from_before(tmp_path: Path):
    journal = Journal(tmp_path)
    journal.append(run_rows(1, 2))
    follower = JournalFollower(tmp_path)
    assert follower.new_rows() == []
    journal.append(run_rows(3, 5))
    assert follower.new_rows() == run_rows(3, 5)
    assert follower.new_rows() == []


def test_a_follower_from_the_start_tells_all_and_rows_and_events_may_be_followed_apart(tmp_path: Path):
    journal = Journal(tmp_path, part_bytes=1000)
    for row in run_rows(1, 20):
        journal.append([row])
    event = journal.event("start", "at step 0")
    follower = JournalFollower(tmp_path, from_start=True)
    assert follower.events.new_events() == [event]
    assert follower.rows.new_rows(5) == run_rows(1, 20)[:5]
    assert follower.new_rows(4) == run_rows(1, 20)[5:9]
    other = journal.event("continue", "at step 20")
    assert follower.new_rows() == [other, *run_rows(1, 20)[9:]]
    assert follower.new_rows() == []


def test_a_follower_waits_for_a_file_and_for_the_end_of_a_line(tmp_path: Path):
    follower = JournalFollower(tmp_path)
    assert follower.new_rows() == []
    line = json.dumps(step_row(1)) + "\n"
    with open(tmp_path / "metrics.jsonl", "a") as file:
        for part in (line[:10], line[10:-1]):
            file.write(part)
            file.flush()
            assert follower.new_rows() == []
        file.write(line[-1] + line[:5])
        file.flush()
        assert follower.new_rows() == [step_row(1)]


@pytest.mark.parametrize("polls", [True, False])
@pytest.mark.parametrize("cuts", [1, 2, 3])
def test_after_restarts_a_follower_goes_on_with_the_rows_it_has_not_told(tmp_path: Path, polls: bool, cuts: int):
    """Each restart cuts the file back and writes on, perhaps past the old length before the follower looks."""
    journal = Journal(tmp_path)
    follower = JournalFollower(tmp_path)
    journal.append(run_rows(1, 5))
    told = follower.new_rows()
    for restart in range(cuts):
        journal.cut(step=2, epoch=0)
        if polls:
            told += follower.new_rows()
        journal.append(run_rows(3, 8 + 10 * restart))
    told += follower.new_rows()
    assert places(told) == places(run_rows(1, 8 + 10 * (cuts - 1)))


@pytest.mark.parametrize("part_bytes", [PART_BYTES, 2000])
def test_a_follower_beside_a_writer_that_appends_and_restarts_misses_and_doubles_nothing(
    tmp_path: Path, part_bytes: int
):
    journal = Journal(tmp_path, part_bytes=part_bytes)
    follower = JournalFollower(tmp_path)
    told: list[dict[str, Any]] = []
    last = 120

    def write() -> None:
        step = 0
        while step < last:
            journal.append(run_rows(step + 1, step + 4))
            step += 4
            if step % 20 == 0:
                journal.cut(step=step - 6, epoch=(step - 6) // 3)
                journal.append(run_rows(step - 5, step))
            time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        told += follower.new_rows()
    writer.join()
    told += follower.new_rows()
    assert places(told) == places(run_rows(1, last))


def texts(events: list[dict[str, Any]]) -> list[str]:
    return [event["text"] for event in events]


def test_events_have_facts_and_come_back_without_half_written_lines(tmp_path: Path):
    append_event(tmp_path, "start", "one", step=0, launch="a")
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"time": "2026-01-01T00:00')
    append_event(tmp_path, "hang", "two", rank=3)
    events = read_events(tmp_path)
    assert texts(events) == ["one", "two"]
    assert (events[0]["launch"], events[1]["rank"]) == ("a", 3)
    assert read_events(tmp_path / "nothing") == []


def test_any_rank_may_add_events_beside_the_others(tmp_path: Path):
    def add(rank: int) -> None:
        for number in range(30):
            append_event(tmp_path, "failure", f"{rank}/{number} 猫" + "x" * 300, rank=rank)

    ranks = [threading.Thread(target=add, args=(rank,)) for rank in range(4)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    events = read_events(tmp_path)
    assert len(events) == 120
    for rank in range(4):
        assert [e["text"].split()[0] for e in events if e["rank"] == rank] == [f"{rank}/{n}" for n in range(30)]


def test_a_follower_tells_events_and_passes_over_one_that_a_killed_process_left_half_written(tmp_path: Path):
    """Before the follower's start and after it: the driver that follows must not die of what a worker's death left."""
    append_event(tmp_path, "start", "old")
    half = '{"time": "2026-01-01T00:00'
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write(half)
    append_event(tmp_path, "continue", "older")
    follower = JournalFollower(tmp_path)
    append_event(tmp_path, "failure", "one")
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write(half)
    assert texts(follower.new_rows()) == ["one"]
    append_event(tmp_path, "continue", "two")
    assert texts(follower.new_rows()) == ["two"]
    assert follower.new_rows() == []


def test_a_file_that_happens_to_get_the_old_ones_inode_is_still_another_file(tmp_path: Path):
    """File systems give the number of a removed file to the next one: two restarts between two looks."""
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "aside"

    def replaced_by(rows: list[dict[str, Any]]) -> int:
        aside.write_text("".join(json.dumps(row) + "\n" for row in rows))
        aside.replace(path)
        return path.stat().st_ino

    first = replaced_by([row | {"note": "x" * 300} for row in run_rows(1, 5)])
    follower = JournalFollower(tmp_path)
    for _ in range(10):
        if replaced_by(run_rows(1, 9)) == first:
            break
    assert places(follower.new_rows()) == places(run_rows(6, 9))
