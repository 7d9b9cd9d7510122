"""The run directory: metrics, events, facts and summary. The truth from which all else is drawn (contract 9).

    runs/NAME/
      recipe.json    every field of the recipe
      run.json       where and how: run specification, versions, hardware, git commit, data digest
      metrics.jsonl  one row per optimizer step ("kind": "step") and per epoch ("kind": "epoch"); of a long run the
                     newest ones, and the older ones in metrics-000001.jsonl, ... (rows.py)
      metrics.csv    the same rows
      events.jsonl   starts, restarts, failures, rollbacks, damaged checkpoints: time, kind, text, facts
      summary.json   the result, once there is one
      system.jsonl   how busy the machines are (system.py); tracking.json: which W&B run this is (identity.py)
      curves.png     drawn from the metrics; samples.npz, samples.png: test images with what they were taken for
      checkpoints/   training/checkpoint.py
      model/         the best weights alone

Rows belong to the checkpoint: continuing from one cuts the metrics back to its step, so that no row is
missing or doubled.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from distcifar.files import write_atomically, write_json
from distcifar.tracking.rows import (
    NEWEST,
    PART_BYTES,
    RowFollower,
    Tail,
    epoch_rows,
    first_row_in,
    inode_of,
    last_row,
    newest_first,
    opened,
    part,
    part_numbers,
    read_rows,
    readable,
    rows_in,
)

COLUMNS = (
    "kind", "step", "epoch", "train/loss", "train/accuracy", "validation/loss", "validation/accuracy",
    "test/loss", "test/accuracy", "train/lr", "train/grad_norm", "perf/images_per_s", "perf/data_wait",
    "perf/memory_bytes", "best_epoch", "seconds",
)  # fmt: skip
BLOCK = 4096  # bytes looked through at once for the end of the last whole line


class Journal:
    """Appends to the files of one run directory. Only the primary rank has one.

    A process may be killed between any two operations: the rows (of the jsonl files) are then those of before or of
    after, and the next cut makes the csv files anew that are missing or differ.
    """

    def __init__(self, folder: Path, *, part_bytes: int = PART_BYTES) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._newest, self._csv = folder / NEWEST, folder / "metrics.csv"
        self._part_bytes = part_bytes
        self._alike = False  # whether metrics.csv surely has the rows of metrics.jsonl
        if not self._csv.exists():
            write_atomically(self._csv, _csv_text([], header=True))

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds metric rows to metrics.jsonl and metrics.csv."""
        rows = list(rows)
        if self._newest.exists() and self._newest.stat().st_size >= self._part_bytes:
            self._rotate()
        with open(self._newest, "ab+") as file:
            _drop_half_line(file)
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        with open(self._csv, "a", newline="") as table:
            table.write(_csv_text(rows))

    def sync(self) -> None:
        """Flushes the metrics to the disk: called before a checkpoint that they belong to is sealed.

        Another thread may append meanwhile: a file that is not there was flushed before it was renamed.
        """
        for path in (self._newest, self._csv):
            with suppress(FileNotFoundError), open(path, "rb") as file:
                os.fsync(file.fileno())

    def cut(self, *, step: int, epoch: int) -> None:
        """Drops the rows after optimizer step `step` and after the end of epoch `epoch`. One file is rewritten."""

        def stays(row: Mapping[str, Any]) -> bool:
            return bool(row["step"] <= step if row["kind"] == "step" else row["epoch"] <= epoch)

        for path in newest_first(self.folder):
            first = first_row_in(path)
            if first is not None and stays(first):
                os.rename(path, self._newest)
                break
            path.unlink(missing_ok=True)  # the newest first: what is there is never without rows in between
        kept = (json.dumps(row) + "\n" for row in rows_in(self._newest) if stays(row))
        write_atomically(self._newest, "".join(kept))
        self._write_csv(self._newest, self._csv)
        self._mend_csv_parts()
        self._alike = True

    def rows(self) -> list[dict[str, Any]]:
        """All metric rows; a last line that a killed process left half-written is dropped."""
        return read_rows(self.folder)

    def epoch_rows(self) -> list[dict[str, Any]]:
        """Those of kind "epoch"."""
        return epoch_rows(self.folder)

    def event(self, kind: str, text: str, **facts: Any) -> dict[str, Any]:
        """Adds a line to events.jsonl and returns it."""
        return append_event(self.folder, kind, text, **facts)

    def events(self) -> list[dict[str, Any]]:
        """All lines of events.jsonl that can be read."""
        return read_events(self.folder)

    def write(self, name: str, value: Any) -> None:
        """Writes `name`.json atomically."""
        write_json(self.folder / f"{name}.json", value)

    def _rotate(self) -> None:
        """Gives the newest files a number, and begins new ones."""
        with open(self._newest, "rb+") as file:
            _drop_half_line(file)
        if not self._alike:
            self._write_csv(self._newest, self._csv)
        self.sync()
        number = max(part_numbers(self.folder), default=0) + 1
        os.rename(self._newest, part(self.folder, number))
        self._newest.touch()
        os.rename(self._csv, part(self.folder, number, "csv"))
        write_atomically(self._csv, _csv_text([], header=True))  # which flushes the folder too
        self._alike = True

    def _mend_csv_parts(self) -> None:
        """One for each jsonl part: a kill may have left others, or the run has begun from another one."""
        numbers, tables = {*part_numbers(self.folder)}, {*part_numbers(self.folder, "csv")}
        for number in tables - numbers:
            part(self.folder, number, "csv").unlink()
        for number in numbers - tables:
            self._write_csv(part(self.folder, number), part(self.folder, number, "csv"))

    def _write_csv(self, rows: Path, table: Path) -> None:
        write_atomically(table, _csv_text(rows_in(rows), header=True))


def append_event(folder: Path, kind: str, text: str, **facts: Any) -> dict[str, Any]:
    """Adds a line to the events.jsonl of a run directory and returns it. Any rank may: a line is one write."""
    event = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "kind": kind, "text": text, **facts}
    line = json.dumps(event, ensure_ascii=False) + "\n"
    with open(folder / "events.jsonl", "ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        torn = file.read(1) not in (b"", b"\n")
        file.write(("\n" * torn + line).encode())
    return event


def note_event(folder: Path, kind: str, text: str, **facts: Any) -> None:
    """`append_event`; storage that is full or gone is told by what cannot go on without it, not by this."""
    with suppress(OSError):
        append_event(folder, kind, text, **facts)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run directory, without lines that a killed process left half-written."""
    path = folder / "events.jsonl"
    return list(readable(path.read_bytes().split(b"\n"))) if path.exists() else []


def _drop_half_line(file: IO[bytes]) -> None:
    """Cuts off what a killed process has written after the last whole line."""
    end = place = file.seek(0, os.SEEK_END)
    while place:
        start = max(0, place - BLOCK)
        file.seek(start)
        found = file.read(place - start).rfind(b"\n")
        if found >= 0:
            place = start + found + 1
            break
        place = start
    if place < end:
        file.truncate(place)


def _csv_text(rows: Iterable[Mapping[str, Any]], *, header: bool = False) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


class JournalFollower:
    """Reads metric rows and events of a run directory as another process adds them, each once.

    from_start: tells also those that are there already. `rows` and `events` may be followed apart.
    """

    def __init__(self, folder: Path, *, from_start: bool = False) -> None:
        self.events = EventFollower(folder, from_start=from_start)
        self.rows = RowFollower(folder, after=None if from_start else last_row(folder))

    def new_rows(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The events and the rows (at most `limit` of these) that were added since the last call."""
        return self.events.new_events() + self.rows.new_rows(limit)


class EventFollower:
    """The lines that are added to events.jsonl; when another file takes its name, all of that one."""

    def __init__(self, folder: Path, *, from_start: bool = False) -> None:
        self._path = folder / "events.jsonl"
        self._tail: Tail | None = None
        if not from_start:
            self.new_events()

    def new_events(self) -> list[dict[str, Any]]:
        """The events since the last call."""
        if self._tail is None or inode_of(self._path) not in (None, self._tail.inode):
            self._tail = opened(self._path) or self._tail
        return list(readable(self._tail.lines())) if self._tail else []
