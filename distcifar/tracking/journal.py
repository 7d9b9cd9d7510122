"""The run directory: metrics, events, facts and summary. The truth from which all else is drawn (contract 9).

    runs/NAME/
      recipe.json    every field of the recipe
      run.json       where and how: run specification, versions, hardware, git commit, data digest
      metrics.jsonl  one row per optimizer step ("kind": "step") and per epoch ("kind": "epoch")
      metrics.csv    the same rows
      events.jsonl   starts, restarts, failures, rollbacks, damaged checkpoints: time, kind, text, facts
      summary.json   the result, once there is one
      curves.png     drawn from metrics.jsonl
      checkpoints/   training/checkpoint.py
      model/         the best weights alone

Rows belong to the checkpoint: continuing from one cuts the metrics back to its step, so that no row is
missing or doubled.
"""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from distcifar.files import write_atomically, write_json

COLUMNS = (
    "kind", "step", "epoch", "train/loss", "train/accuracy", "validation/loss", "validation/accuracy",
    "test/loss", "test/accuracy", "train/lr", "train/grad_norm", "perf/images_per_s", "perf/data_wait",
    "perf/memory_bytes", "best_epoch", "seconds",
)  # fmt: skip


class Journal:
    """Appends to the files of one run directory. Only the primary rank has one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._rows = folder / "metrics.jsonl"
        self._csv = folder / "metrics.csv"
        if not self._csv.exists():
            write_atomically(self._csv, _csv_text([dict(zip(COLUMNS, COLUMNS, strict=True))]))

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds metric rows to metrics.jsonl and metrics.csv."""
        rows = list(rows)
        with open(self._rows, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        with open(self._csv, "a", newline="") as file:
            file.write(_csv_text(rows))

    def sync(self) -> None:
        """Flushes the metrics to the disk: called before a checkpoint that they belong to is sealed."""
        for path in (self._rows, self._csv):
            if path.exists():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())

    def cut(self, *, step: int, epoch: int) -> None:
        """Drops the rows after optimizer step `step` and after the end of epoch `epoch`."""
        kept = [row for row in self.rows() if (row["step"] <= step if row["kind"] == "step" else row["epoch"] <= epoch)]
        write_atomically(self._rows, "".join(json.dumps(row) + "\n" for row in kept))
        header = dict(zip(COLUMNS, COLUMNS, strict=True))
        write_atomically(self._csv, _csv_text([header, *kept]))

    def rows(self) -> list[dict[str, Any]]:
        """All metric rows; a last line that a killed process left half-written is dropped."""
        return read_rows(self._rows)

    def event(self, kind: str, text: str, **facts: Any) -> dict[str, Any]:
        """Adds a line to events.jsonl and returns it."""
        return append_event(self.folder, kind, text, **facts)

    def events(self) -> list[dict[str, Any]]:
        """All lines of events.jsonl that can be read."""
        return read_events(self.folder)

    def write(self, name: str, value: Any) -> None:
        """Writes `name`.json atomically."""
        write_json(self.folder / f"{name}.json", value)


def append_event(folder: Path, kind: str, text: str, **facts: Any) -> dict[str, Any]:
    """Adds a line to the events.jsonl of a run directory and returns it. Any rank may: a line is one write."""
    event = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "kind": kind, "text": text, **facts}
    path = folder / "events.jsonl"
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with open(path, "a") as file:
        file.write("\n" * torn + json.dumps(event, ensure_ascii=False) + "\n")
    return event


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run directory, without lines that a killed process left half-written."""
    path = folder / "events.jsonl"
    return _readable(path.read_bytes().split(b"\n")) if path.exists() else []


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; none if there is no file. A half-written last line is dropped."""
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _readable(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """`lines` without those that a killed process left half-written."""
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    csv.DictWriter(buffer, COLUMNS, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


class JournalFollower:
    """Reads metric rows and events of a run directory as another process adds them, each once."""

    def __init__(self, folder: Path) -> None:
        self._metrics, self._events = _Tail(folder / "metrics.jsonl"), _Tail(folder / "events.jsonl")
        self._last = (-1, False)  # step and kind of the last row told
        self.new_rows()

    def new_rows(self) -> list[dict[str, Any]]:
        """The events and the rows that were added since the last call.

        A restart replaces the metrics by a shorter file: rows that are then written again are not told again.
        """
        events = _readable(self._events.new_lines())
        rows = [row for row in _readable(self._metrics.new_lines()) if _place(row) > self._last]
        self._last = max([self._last, *map(_place, rows)])
        return events + rows


class _Tail:
    """The whole lines that are added to a file; when another takes its name, all of that one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = (0, 0)  # inode, and bytes read of it
        self._last: IO[bytes] | None = None  # stays open until the next look: no other file is given its inode

    def new_lines(self) -> list[bytes]:
        try:
            file = open(self._path, "rb")  # noqa: SIM115 (see _last)
        except FileNotFoundError:
            return []
        inode = os.fstat(file.fileno()).st_ino
        place = self._seen[1] if inode == self._seen[0] else 0
        if self._last is not None:
            self._last.close()
        self._last = file
        file.seek(place)
        text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._seen = (inode, place + len(whole))
        return whole.splitlines()


def _place(row: Mapping[str, Any]) -> tuple[int, bool]:
    """Rows come in this order: an epoch's row after its last step's."""
    return row["step"], row["kind"] == "epoch"
