"""system.jsonl: how busy the machines of a run are, measured every few seconds.

It belongs to no checkpoint: going on from one cuts nothing away, and the steps of its lines may go back.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distcifar.files import write_atomically
from distcifar.tracking.rows import readable

MOST_LINES = 20_000  # two days with a line each ten seconds
MOST_BYTES = 64 * 2**20  # of which a line of a thousand ranks takes a third of a megabyte


class SystemLog:
    """Appends to the system.jsonl of a run directory. Only the primary rank has one."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "system.jsonl"
        text = self._path.read_bytes() if self._path.exists() else b""
        self._lines, self._bytes = text.count(b"\n"), len(text)
        self._torn = bool(text) and not text.endswith(b"\n")  # by a kill: the next line is not to hang on to it

    def append(self, step: int, ranks: Sequence[dict[str, Any]]) -> None:
        """A line: now, the optimizer step, and a sample of each rank (cluster/hardware.py).

        Where there are MOST_LINES or MOST_BYTES already every second one goes: of a long run the file tells less the
        longer ago.
        """
        if self._lines >= MOST_LINES or self._bytes >= MOST_BYTES:
            kept = b"".join(line + b"\n" for line in self._path.read_bytes().split(b"\n")[:-1][::2])
            write_atomically(self._path, kept)
            self._lines, self._bytes, self._torn = kept.count(b"\n"), len(kept), False
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": step, "ranks": list(ranks)}
        text = "\n" * self._torn + json.dumps(line) + "\n"
        with open(self._path, "a") as file:
            file.write(text)
        self._lines, self._bytes, self._torn = self._lines + 1, self._bytes + len(text), False


def read_system(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run directory's system.jsonl, without those that a killed process left half-written."""
    path = folder / "system.jsonl"
    return list(readable(path.read_bytes().split(b"\n"))) if path.exists() else []
