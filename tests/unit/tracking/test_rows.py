"""Rows in rotated files: whatever is appended, cut, or killed in between, they read as one list without gaps."""

import csv
import json
import shutil
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from distcifar.insight.curves import draw_curves
from distcifar.tracking.journal import COLUMNS, Journal, JournalFollower
from distcifar.tracking.rows import RowFollower, copy_rows, epoch_rows, iter_rows, last_row, part_numbers, read_rows

SMALL = 350  # bytes: four rows in a file, or five
Rows = list[dict[str, Any]]


def row_at(index: int, attempt: int = 0) -> dict[str, Any]:
    """The row at that place of any run: after each third step comes its epoch's."""
    epoch, place = divmod(index, 4)
    if place == 3:
        return {
            "kind": "epoch",
            "step": 3 * epoch + 3,
            "epoch": epoch + 1,
            "train/loss": 0.1 * attempt,
            "best_epoch": 1,
        }
    step = 3 * epoch + place + 1
    return {"kind": "step", "step": step, "epoch": step / 3, "train/loss": attempt / 3, "train/lr": 1e-300}


def rows_at(start: int, stop: int, attempt: int = 0) -> Rows:
    return [row_at(index, attempt) for index in range(start, stop)]


def places(rows: Rows) -> list[tuple[int, str]]:
    return [(row["step"], row["kind"]) for row in rows]


def checkpoint_after(count: int) -> dict[str, int]:
    """Of which the first `count` rows are: what a cut to it is told."""
    return {"step": row_at(count - 1)["step"] if count else 0, "epoch": count // 4}


def csv_problems(folder: Path) -> list[str]:
    """Where the csv files differ from the jsonl files."""
    found = []
    if part_numbers(folder) != part_numbers(folder, "csv"):
        found.append(f"parts {part_numbers(folder)} and {part_numbers(folder, 'csv')}")
    for path in folder.glob("metrics*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        expected = [[*COLUMNS], *([str(row.get(name, "")) for name in COLUMNS] for row in rows)]
        with open(path.with_suffix(".csv"), newline="") as file:
            if list(csv.reader(file)) != expected:
                found.append(path.name)
    return found


# A process that dies at its n-th change to the disk


class Killed(BaseException):
    pass


@dataclass
class Fuse:
    """Lets no change to the file system happen from the `left`-th on, while it burns."""

    burns: bool = False
    left: int = 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        changes = event in ("os.rename", "os.remove", "os.truncate") or (
            event == "open" and (args[2] & 0o103)  # for writing, or to be made
        )
        if self.burns and changes:
            self.left -= 1
            if self.left < 0:
                raise Killed


FUSE = Fuse()
sys.addaudithook(FUSE)  # there is no way to remove it, so it sleeps between the tests


@contextmanager
def killed_at_change(number: int) -> Iterator[None]:
    FUSE.burns, FUSE.left = True, number
    try:
        yield
    finally:
        FUSE.burns = False


@pytest.fixture
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing is for power cuts, of which this is not about."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


# Against a list


class Run(RuleBasedStateMachine):
    """A run that is trained, killed, cut back and gone on with, beside its rows in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="rows-"))
        self.rows: Rows = []
        self.attempt = 0
        self.told: Rows = []
        self.follower = RowFollower(self.folder)
        self.restart()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def restart(self) -> None:
        self.journal = Journal(self.folder, part_bytes=SMALL)
        self.attempt += 1

    def next_rows(self, count: int) -> Rows:
        return rows_at(len(self.rows), len(self.rows) + count, self.attempt)

    @rule(count=st.integers(0, 9))
    def append(self, count: int) -> None:
        rows = self.next_rows(count)
        self.journal.append(rows)
        self.rows += rows

    @rule(count=st.integers(1, 9), change=st.integers(0, 12))
    def append_and_be_killed(self, count: int, change: int) -> None:
        rows, killed = self.next_rows(count), False
        try:
            with killed_at_change(change):
                self.journal.append(rows)
        except Killed:
            killed = True
        found = read_rows(self.folder)
        assert found in ([self.rows, self.rows + rows] if killed else [self.rows + rows])
        self.rows = found
        self.restart()

    @rule(count=st.integers(1, 9), data=st.data())
    def append_and_be_killed_inside_a_file(self, count: int, data: st.DataObject) -> None:
        """Either file ends at any byte of what was being written."""
        rows = self.next_rows(count)
        self.journal.append([])  # which rotates, if that is due
        newest, table = self.folder / "metrics.jsonl", self.folder / "metrics.csv"
        before, csv_before = newest.stat().st_size, table.stat().st_size
        self.journal.append(rows)
        if (self.folder / "metrics.jsonl").stat().st_size > before:
            torn = data.draw(st.sampled_from([newest, table]))
            start = before if torn == newest else csv_before
            end = data.draw(st.integers(start, torn.stat().st_size))
            written = newest.read_bytes()[before : end if torn == newest else None]
            with open(torn, "r+b") as file:
                file.truncate(end)
            if torn == newest:
                with open(table, "r+b") as file:
                    file.truncate(csv_before)
            self.rows += rows[: written.count(b"\n")]
        self.restart()

    @rule(tail=st.binary(max_size=60).filter(lambda tail: b"\n" not in tail))
    def lose_power(self, tail: bytes) -> None:
        """Blocks that were never written hold whatever was there."""
        with open(self.folder / "metrics.jsonl", "ab") as file:
            file.write(tail)
        self.restart()

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, len(self.rows)))
        self.restart()
        self.journal.cut(**checkpoint_after(count))
        self.rows = self.rows[:count]
        assert csv_problems(self.folder) == []

    @rule(data=st.data(), change=st.integers(0, 40))
    def cut_and_be_killed(self, data: st.DataObject, change: int) -> None:
        count = data.draw(st.integers(0, len(self.rows)))
        with suppress(Killed), killed_at_change(change):
            self.journal.cut(**checkpoint_after(count))
        found = read_rows(self.folder)
        assert len(found) >= count, "of what was to stay something is lost"
        assert found == self.rows[: len(found)]
        self.rows = found
        self.restart()

    @rule(limit=st.none() | st.integers(1, 5))
    def follow(self, limit: int | None) -> None:
        found = self.follower.new_rows(limit)
        self.told += found
        assert limit is None or len(found) <= limit
        if limit is None:
            assert {*places(self.rows)} <= {*places(self.told)}, "a row is not told"

    @precondition(lambda self: self.rows)
    @rule(after=st.integers(0, 100))
    def follow_from_there(self, after: int) -> None:
        after %= len(self.rows)
        assert RowFollower(self.folder, after=self.rows[after]).new_rows() == self.rows[after + 1 :]
        follower = JournalFollower(self.folder)
        assert follower.new_rows() == []

    @rule()
    def copy(self) -> None:
        other = self.folder / "other"
        other.mkdir()
        copy_rows(self.folder, other)
        count = len(self.rows) // 2
        assert read_rows(other) == self.rows
        Journal(other, part_bytes=SMALL).cut(**checkpoint_after(count))
        assert read_rows(other) == self.rows[:count]
        assert csv_problems(other) == []
        shutil.rmtree(other)

    @invariant()
    def reads_as_the_list(self) -> None:
        assert read_rows(self.folder) == self.rows
        assert last_row(self.folder) == (self.rows[-1] if self.rows else None)
        assert epoch_rows(self.folder) == [row for row in self.rows if row["kind"] == "epoch"]

    @invariant()
    def is_told_in_order_and_once(self) -> None:
        assert places(self.told) == places(rows_at(0, len(self.told)))


@pytest.mark.usefixtures("_fast_disk")
def test_whatever_happens_to_a_run_its_rows_are_those_of_a_plain_list():
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Run, settings=settings(max_examples=120, stateful_step_count=25, deadline=None, suppress_health_check=checks)
    )


@pytest.mark.usefixtures("_fast_disk")
@pytest.mark.parametrize("count", [0, 1, 11, 18, 29, 30])
def test_killed_between_any_two_changes_a_cut_loses_nothing_and_the_next_one_ends_it(tmp_path: Path, count: int):
    for number in range(100):
        folder = tmp_path / str(number)
        journal = Journal(folder, part_bytes=SMALL)
        for index in range(30):
            journal.append([row_at(index)])
        assert len(part_numbers(folder)) >= 4
        killed = True
        with suppress(Killed), killed_at_change(number):
            journal.cut(**checkpoint_after(count))
            killed = False
        found = read_rows(folder)
        assert found == rows_at(0, len(found))
        assert len(found) >= count
        Journal(folder, part_bytes=SMALL).cut(**checkpoint_after(count))
        assert read_rows(folder) == rows_at(0, count)
        assert csv_problems(folder) == []
        if not killed:
            break
    assert number >= 2


@pytest.mark.usefixtures("_fast_disk")
def test_killed_between_any_two_changes_of_a_rotation_the_run_goes_on(tmp_path: Path):
    for number in range(100):
        folder = tmp_path / str(number)
        journal = Journal(folder, part_bytes=SMALL)
        journal.append(rows_at(0, 10))
        killed = True
        with suppress(Killed), killed_at_change(number):
            journal.append(rows_at(10, 11))
            killed = False
        count = len(read_rows(folder))
        assert read_rows(folder) == rows_at(0, count)
        assert count in ((10, 11) if killed else (11,))
        again = Journal(folder, part_bytes=SMALL)
        again.append(rows_at(count, 12))
        again.append(rows_at(12, 30))
        assert read_rows(folder) == rows_at(0, 30)
        again.cut(**checkpoint_after(25))
        assert csv_problems(folder) == []
        if not killed:
            break
    assert number >= 5


# Files


def test_a_file_that_has_grown_enough_gets_a_number_and_its_rows_stay_where_they_are(tmp_path: Path):
    journal = Journal(tmp_path, part_bytes=SMALL)
    for index in range(40):
        journal.append([row_at(index)])
    assert part_numbers(tmp_path) == [*range(1, len(part_numbers(tmp_path)) + 1)]
    assert len(part_numbers(tmp_path)) >= 5
    assert all(path.stat().st_size < SMALL + 150 for path in tmp_path.glob("metrics*.jsonl"))
    assert csv_problems(tmp_path) == []
    assert read_rows(tmp_path) == rows_at(0, 40)


def test_a_cut_writes_one_file_anew_and_leaves_the_older_ones_alone(tmp_path: Path):
    journal = Journal(tmp_path, part_bytes=SMALL)
    for index in range(40):
        journal.append([row_at(index)])
    before = {path.name: path.stat().st_ino for path in tmp_path.glob("metrics-*")}
    journal.cut(**checkpoint_after(20))
    after = {path.name: path.stat().st_ino for path in tmp_path.glob("metrics-*")}
    assert after.items() < before.items()
    assert len(after) >= 4


def test_there_are_no_rows_where_nothing_is(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert (read_rows(folder), epoch_rows(folder), last_row(folder)) == ([], [], None)
        assert RowFollower(folder).new_rows() == []
    copy_rows(tmp_path / "nowhere", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_line_in_between_hides_no_other_row(tmp_path: Path):
    journal = Journal(tmp_path, part_bytes=SMALL)
    for index in range(20):
        journal.append([row_at(index)])
    path = tmp_path / "metrics-000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step": 2,', b'"step"\xff 2,', 1))
    assert read_rows(tmp_path) == [row_at(0), *rows_at(2, 20)]


def test_the_last_row_is_found_behind_more_damage_than_is_read_at_first(tmp_path: Path):
    Journal(tmp_path).append([row_at(0), row_at(1) | {"seconds": "x" * 200_000}])
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b"\0" * 150_000 + b"\n" + b"\0" * 150_000)
    assert last_row(tmp_path) == row_at(1) | {"seconds": "x" * 200_000}


def test_a_line_longer_than_what_a_follower_reads_at_once_is_told(tmp_path: Path):
    rows = [row_at(0), row_at(1) | {"seconds": "x" * 5 * 2**20}, row_at(2)]
    Journal(tmp_path).append(rows)
    assert RowFollower(tmp_path).new_rows() == rows


def test_a_run_that_is_read_copied_and_followed_while_it_rotates_has_each_row_once(tmp_path: Path):
    last, folder = 1200, tmp_path / "run"
    journal = Journal(folder, part_bytes=SMALL)
    follower, told, problems, copies = RowFollower(folder), [], [], 0

    def write() -> None:
        for index in range(0, last, 3):
            journal.append(rows_at(index, index + 3))
            time.sleep(0.001)

    def read() -> None:
        while writer.is_alive():
            rows = read_rows(folder)
            if rows != rows_at(0, len(rows)):
                problems.append(places(rows))

    writer, reader = threading.Thread(target=write), threading.Thread(target=read)
    writer.start()
    reader.start()
    while writer.is_alive():
        found = follower.new_rows(7)
        told += found
        if len(told) > 300 * (copies + 1):
            other = tmp_path / f"copy-{copies}"
            other.mkdir()
            copy_rows(folder, other)
            copied = read_rows(other)
            assert copied == rows_at(0, len(copied))
            copies += 1
    reader.join()
    assert problems == []
    assert told + follower.new_rows() == rows_at(0, last)
    assert copies >= 1


# A million


def timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    before = time.perf_counter()
    result = work()
    seconds[name] = time.perf_counter() - before
    return result


@pytest.mark.slow
def test_a_million_steps_are_no_burden(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    journal, seconds, steps, an_epoch = Journal(tmp_path), dict[str, float](), 1_000_000, 1000
    names = ("train/grad_norm", "perf/images_per_s", "perf/data_wait")
    for first in range(0, steps, an_epoch):
        loss = 2.3 / (1 + first / 1e5)
        journal.append(
            {"kind": "step", "step": step, "epoch": step / an_epoch, "train/loss": loss + (step * 7919 % 1000) / 3e3,
             "train/lr": 0.1 * (1 - step / steps), "perf/memory_bytes": 2**33} | dict.fromkeys(names, 1 / (step + 1))
            for step in range(first + 1, first + an_epoch + 1)
        )  # fmt: skip
        epoch = first // an_epoch + 1
        journal.append([{"kind": "epoch", "step": first + an_epoch, "epoch": epoch, "train/loss": loss,
                         "validation/accuracy": 1 - loss / 3, "best_epoch": epoch, "seconds": 1.0}])  # fmt: skip
    assert len(part_numbers(tmp_path)) >= 5

    assert timed(seconds, "last_row", lambda: last_row(tmp_path))["kind"] == "epoch"
    assert len(timed(seconds, "epoch_rows", lambda: epoch_rows(tmp_path))) == 1000
    picture = tmp_path / "curves.png"
    timed(seconds, "draw_curves", lambda: draw_curves(iter_rows(tmp_path), picture, title="long"))
    assert picture.stat().st_size < 500_000
    follower = RowFollower(tmp_path)
    timed(seconds, "follow 5000", lambda: follower.new_rows(5000))
    timed(seconds, "cut near the end", lambda: journal.cut(step=999_500, epoch=999))
    assert last_row(tmp_path)["step"] == 999_500

    tracemalloc.start()
    count = sum(1 for _ in iter_rows(tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 999_500 + 999
    with capsys.disabled():
        print({name: round(value, 3) for name, value in seconds.items()}, f"peak {peak / 1e6:.1f} MB")
    assert peak < 5e6
    assert seconds["last_row"] < 0.05
    assert seconds["epoch_rows"] < 10
    assert seconds["draw_curves"] < 90
    assert seconds["follow 5000"] < 2
    assert seconds["cut near the end"] < 15
