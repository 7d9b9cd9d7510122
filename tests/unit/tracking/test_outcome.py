"""How a run stands, told from its directory: whatever kills it, and whoever asks."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from distcifar.tracking.journal import append_event
from distcifar.tracking.outcome import Outcome, is_held, launch_lock, outcome, told_outcome, writer_lock

HOLDER = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "run"
    found.mkdir()
    return found


@contextmanager
def held_elsewhere(lock: FileLock) -> Iterator["subprocess.Popen[str]"]:
    """While open a process of its own holds `lock`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, lock.lock_file], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


KINDS = [
    # events as (kind, facts), and what the run then is when nobody holds it
    ([], "killed"),
    ([("start", {})], "killed"),
    ([("start", {}), ("failure", {})], "killed"),
    ([("start", {}), ("stopped", {"signal": "SIGINT"})], "stopped"),
    ([("start", {}), ("stopped", {"signal": ""})], "stopped"),
    ([("start", {}), ("stopped", {})], "stopped"),
    ([("start", {}), ("stopped", {"signal": "SIGTERM"})], "preempted"),
    ([("start", {}), ("failed", {})], "failed"),
    ([("start", {}), ("failed", {}), ("continue", {})], "killed"),
    ([("start", {}), ("stopped", {"signal": "SIGTERM"}), ("continue", {}), ("stopped", {})], "stopped"),
    ([("start", {}), ("stopped", {}), ("continue", {}), ("rollback", {})], "killed"),
    ([("start", {}), ("finished", {}), ("extended", {})], "killed"),
]


@pytest.mark.parametrize(("events", "kind"), KINDS)
def test_the_last_event_that_counts_says_how_a_run_has_ended(
    folder: Path, events: list[tuple[str, dict[str, str]]], kind: str
):
    for event, facts in events:
        append_event(folder, event, f"text of {event}", **facts)
    assert outcome(folder).kind == kind
    assert outcome(folder).over


def test_a_summary_says_that_a_run_is_finished_whatever_came_before(folder: Path):
    append_event(folder, "failed", "no")
    (folder / "summary.json").write_text("{}")
    assert outcome(folder) == Outcome("finished")


@pytest.mark.parametrize(
    ("kind", "code"),
    [("finished", 0), ("running", 1), ("stopped", 130), ("preempted", 143), ("killed", 137), ("failed", 1)],
)
def test_the_exit_code_is_that_of_a_shell(kind: str, code: int):
    assert Outcome(kind).exit_code == code
    assert Outcome(kind).over == (kind != "running")


def test_an_end_tells_why(folder: Path):
    append_event(folder, "failed", "RunError: no luck")
    assert outcome(folder).text == "RunError: no luck"


def test_a_run_that_another_process_trains_is_running_until_that_dies(folder: Path):
    append_event(folder, "start", "")
    assert outcome(folder).kind == "killed"
    with held_elsewhere(launch_lock(folder)) as holder:
        assert outcome(folder).kind == "running"
        assert outcome(folder).kind == "running"  # to ask takes nothing away
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert outcome(folder).kind == "killed"


def test_a_stopped_run_that_another_process_has_taken_up_is_running_once_it_says_so(folder: Path):
    append_event(folder, "stopped", "")
    with held_elsewhere(launch_lock(folder)):
        append_event(folder, "continue", "")
        assert outcome(folder).kind == "running"


def test_workers_that_outlive_their_program_do_not_make_a_run_a_running_one(folder: Path):
    append_event(folder, "start", "")
    with held_elsewhere(writer_lock(folder)):
        assert outcome(folder).kind == "killed"
        assert is_held(writer_lock(folder))
    assert not is_held(writer_lock(folder))


def test_asking_leaves_no_lock_behind_and_makes_no_file(folder: Path):
    assert not is_held(launch_lock(folder))
    assert list(folder.parent.iterdir()) == [folder]
    with launch_lock(folder):
        pass
    assert not is_held(launch_lock(folder))
    with launch_lock(folder).acquire(timeout=0):
        pass


def test_who_asks_does_not_keep_a_program_from_its_run(folder: Path):
    stop = time.monotonic() + 1.0
    with launch_lock(folder):
        pass  # the file is there
    asker = subprocess.Popen([sys.executable, "-c", ASKER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert asker.stdout is not None
        assert asker.stdout.readline() == "asking\n"
        while time.monotonic() < stop:
            with launch_lock(folder).acquire(timeout=5, poll_interval=0.001):
                pass
    except Timeout:
        pytest.fail("the lock was not to be had")
    finally:
        asker.kill()
        asker.wait()
        assert asker.stdout is not None
        asker.stdout.close()


ASKER = """
import sys
from pathlib import Path
from distcifar.tracking.outcome import is_held, launch_lock
print("asking", flush=True)
while True:
    is_held(launch_lock(Path(sys.argv[1])))
"""


def whole(kind: str) -> bytes:
    return json.dumps({"time": "t", "kind": kind, "text": ""}).encode() + b"\n"


TORN: list[tuple[bytes, str]] = [
    (whole("start") + whole("failed")[:-9], "killed"),  # the kill came before the line was there
    (whole("start") + whole("failed")[:-9] + b"\n" + whole("stopped"), "stopped"),
    (whole("failed") + whole("continue")[:-2], "failed"),
    (b"\n\n" + whole("failed") + b"\n", "failed"),
    (whole("failed") + '{"time": "t", "kind": "conti猫'.encode()[:-1], "failed"),
    (b"\0" * 100 + b"\n" + whole("failed"), "failed"),
    (b"", "killed"),
]


@pytest.mark.parametrize(("text", "kind"), TORN)
def test_half_a_line_is_no_event(folder: Path, text: bytes, kind: str):
    (folder / "events.jsonl").write_bytes(text)
    assert outcome(folder).kind == kind


def test_a_run_without_events_says_nothing(folder: Path):
    assert told_outcome(folder) is None
