"""When a run is not to be started again: it fails at the same step, time after time."""

import time
from collections.abc import Sequence
from typing import Any

from distcifar.errors import RunError
from distcifar.tracking.journal import Journal
from distcifar.tracking.rows import last_row

SAME_STEP_FAILURES = 3
PAUSE = 5.0  # seconds before the last attempt: a node or a disk may need a moment


def require_progress(journal: Journal, launch: str) -> None:
    """Called by a rank that starts: pauses after a second failure at one step, raises RunError after a third.

    Only the starts of this `launch` count: who types the command again has changed something, or wants to try. So
    do those after a rank has halved its microbatch: that is progress though no step was done. And those from the last
    one with more workers than before on: Ray ended the others because nodes had come.
    """
    starts: list[dict[str, Any]] = []
    for event in journal.events():
        if event["kind"] == "memory":
            starts = []
        elif event["kind"] in ("start", "continue") and event.get("launch") == launch:
            grown = bool(starts) and event.get("workers", 0) > starts[-1].get("workers", 0)
            starts = [event] if grown else [*starts, event]
    if not starts:
        return
    reached = last_step(journal)
    failures = same_step_failures([*(start["reached"] for start in starts[1:]), reached])
    if failures >= SAME_STEP_FAILURES:
        reasons = [event["text"] for event in journal.events() if event["kind"] in ("failure", "hang")]
        raise RunError(
            f"The run failed {failures} times after step {reached}"
            + (f"; the last reason: {reasons[-1]}" if reasons else "; its workers died without a word"),
            "A run that cannot get past a step is not tried for ever",
            f"Look into {journal.folder}/events.jsonl, mend the cause, and type the same command to go on",
        )
    if failures > 1:
        time.sleep(PAUSE)


def same_step_failures(ends: Sequence[int]) -> int:
    """How many of the last attempts ended at the same step, given the last step of each."""
    count = 0
    for end in reversed(ends):
        if end != ends[-1]:
            break
        count += 1
    return count


def last_step(journal: Journal) -> int:
    """The last step whose row is in the journal; 0 for none."""
    row = last_row(journal.folder)
    return int(row["step"]) if row else 0
