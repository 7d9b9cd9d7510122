"""The metric rows of a run directory, in files that stay small however long the run is.

    metrics-000001.jsonl, metrics-000002.jsonl, ...   older rows
    metrics.jsonl                                     the newest: past PART_BYTES it gets the next number
    metrics-000001.csv, ..., metrics.csv              the same rows

Here they are read, also by other processes than the one that writes them (journal.py).
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

NEWEST = "metrics.jsonl"
PART_BYTES = 32 * 2**20
TAIL_BYTES = 2**16  # read at first to find the last row
BLOCK = 2**20  # bytes that a follower reads at once

Row = dict[str, Any]


def iter_rows(folder: Path) -> Iterator[Row]:
    """All metric rows of a run directory, oldest first, one line in memory at a time; none if there are none.

    Another process may append meanwhile. A line that a killed process left half-written is passed over.
    """
    return readable(_lines(folder))


def read_rows(folder: Path) -> list[Row]:
    """`iter_rows` as a list: of a long run, gigabytes."""
    return list(iter_rows(folder))


def epoch_rows(folder: Path) -> list[Row]:
    """The rows of kind "epoch"; the many others are not parsed."""
    likely = readable(line for line in _lines(folder) if b'"kind": "epoch"' in line)
    return [row for row in likely if row["kind"] == "epoch"]


def last_row(folder: Path) -> Row | None:
    """The newest row, of which only the end of a file is read."""
    return next(filter(None, map(_last_row_in, newest_first(folder))), None)


def readable(lines: Iterable[bytes]) -> Iterator[Row]:
    """`lines` parsed, without those that a killed process or a damaged disk has made something else of."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def part(folder: Path, number: int, suffix: str = "jsonl") -> Path:
    return folder / f"metrics-{number:06d}.{suffix}"


def part_numbers(folder: Path, suffix: str = "jsonl") -> list[int]:
    """Of the files with older rows, oldest first."""
    names = (path.stem.removeprefix("metrics-") for path in folder.glob(f"metrics-*.{suffix}"))
    return sorted(int(name) for name in names if name.isdecimal())


def newest_first(folder: Path) -> Iterator[Path]:
    """The files with rows, by name. The older ones are listed later: the newest may just have become one of them."""
    yield folder / NEWEST
    yield from (part(folder, number) for number in reversed(part_numbers(folder)))


def copy_rows(source: Path, target: Path) -> None:
    """Copies the rows of a run directory, also of one that goes on meanwhile, into a directory without any.

    The csv files are left to the next cut.
    """
    number = 0
    for number, file in enumerate(_files(source), 1):
        with open(part(target, number), "wb") as copy:
            shutil.copyfileobj(file, copy)
    if number:
        os.rename(part(target, number), target / NEWEST)


def _files(folder: Path) -> Iterator[IO[bytes]]:
    """The files with rows, oldest first, each open until the next. What is rotated meanwhile is met once."""
    done = 0
    while True:
        for number in [number for number in part_numbers(folder) if number > done]:
            done = number
            with suppress(FileNotFoundError), open(part(folder, number), "rb") as file:
                yield file
        with ExitStack() as stack:
            newest = None
            with suppress(FileNotFoundError):
                newest = stack.enter_context(open(folder / NEWEST, "rb"))
            if any(number > done for number in part_numbers(folder)):
                continue  # rotated in between: this may be the file after that one
            if newest is not None:
                yield newest
            return


def _lines(folder: Path) -> Iterator[bytes]:
    return chain.from_iterable(map(_whole_lines, _files(folder)))


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    return (line for line in file if line.endswith(b"\n"))


def rows_in(path: Path) -> Iterator[Row]:
    """The rows of one file; none if there is no file."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        yield from readable(_whole_lines(file))


def first_row_in(path: Path) -> Row | None:
    return next(rows_in(path), None)


def _last_row_in(path: Path) -> Row | None:
    with suppress(FileNotFoundError), open(path, "rb") as file:
        size, length = file.seek(0, os.SEEK_END), TAIL_BYTES
        while True:
            start = max(0, size - length)
            file.seek(start)
            lines = file.read(size - start).split(b"\n")[:-1]
            for row in readable(reversed(lines[1:] if start else lines)):  # the first one may have begun before
                return row
            if not start:
                return None
            length *= 8
    return None


class RowFollower:
    """The metric rows that are added, also where the files are rotated, or cut back by a restart.

    Each is told once, also if it is written again after a cut: from the very first on, or from the one after `after`.
    """

    def __init__(self, folder: Path, *, after: Row | None = None) -> None:
        self._folder = folder
        self._told = (-1, False) if after is None else _place(after)
        self._tail: Tail | None = None

    def new_rows(self, limit: int | None = None) -> list[Row]:
        """The rows since the last call; where there are more than `limit`, the next call goes on there."""
        found: list[Row] = []
        while limit is None or len(found) < limit:
            following = self._following()  # asked first: to a file that has one nothing more is added
            for row in readable(self._tail.lines() if self._tail else ()):
                if _place(row) > self._told:
                    found.append(row)
                    self._told = _place(row)
                if len(found) == limit:
                    return found
            if following is None:
                break
            inode, path = following
            tail = opened(path)
            if tail is not None and tail.inode == inode:  # else it was renamed just now: look again
                self._tail = tail
        return found

    def _following(self) -> tuple[int, Path] | None:
        """What is to be read after the file that is open, if there is something: its inode and its name."""
        newest = self._folder / NEWEST
        last = inode_of(newest)  # asked before the others are listed: what is renamed in between is there twice
        listed = [(inode_of(path), path) for path in (part(self._folder, n) for n in part_numbers(self._folder))]
        files = [(inode, path) for inode, path in listed if inode is not None]
        if last is not None and last not in dict(files):
            files.append((last, newest))
        if self._tail is not None and self._tail.inode in dict(files):
            later = files[list(dict(files)).index(self._tail.inode) + 1 :]
            return later[0] if later else None
        self._tail = None  # it was cut: what it had after the last row told is written again
        begun = [(inode, path) for inode, path in files if self._has_told_first_of(path)]
        return next(iter(begun[-1:] or files), None)

    def _has_told_first_of(self, path: Path) -> bool:
        first = first_row_in(path)
        return first is not None and _place(first) <= self._told


class Tail:
    """The whole lines that are added to a file, whatever it is called by now. While open it keeps its inode."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._read = file, 0
        self.inode = os.fstat(file.fileno()).st_ino

    def __del__(self) -> None:
        self._file.close()

    def lines(self) -> Iterator[bytes]:
        """Those that were not taken before; who stops in between goes on there the next time."""
        size = BLOCK
        while True:
            self._file.seek(self._read)
            text = self._file.read(size)
            whole = text.split(b"\n")[:-1]
            for line in whole:
                self._read += len(line) + 1
                yield line
            if len(text) < size:
                return
            size = BLOCK if whole else 2 * size


def opened(path: Path) -> Tail | None:
    """The lines of a file from its beginning; None where there is no file."""
    try:
        return Tail(open(path, "rb", buffering=0))
    except FileNotFoundError:
        return None


def inode_of(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _place(row: Row) -> tuple[int, bool]:
    """Rows come in this order: an epoch's row after its last step's."""
    return row["step"], row["kind"] == "epoch"
