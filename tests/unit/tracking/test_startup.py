"""The stages of a start add up to what a watch beside it shows, and are told once."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distcifar.files import write_json
from distcifar.tracking.startup import FILE, FirstStep, Marks, describe, in_a_line, read_startup

ENDS = st.lists(st.tuples(st.sampled_from(("imports", "data", "model")), st.floats(0, 1e6)), min_size=1)


@given(start=st.floats(0, 1e6), ends=ENDS)
def test_stages_are_not_negative_and_add_up_to_the_last_mark(start: float, ends: list[tuple[str, float]]):
    stages = Marks("here", 0.0, start, tuple(ends)).stages()
    assert list(stages) == list(dict.fromkeys(name for name, _ in ends))
    assert all(seconds >= 0 for seconds in stages.values())
    assert sum(stages.values()) == pytest.approx(max(start, *(moment for _, moment in ends)) - start, abs=1e-6)


def test_marks_of_another_machine_are_moved_by_the_difference_of_the_wall_clocks():
    """The driver's machine booted at 1000, the worker's at 900: what was 5 there is 105 here."""
    driver = Marks("driver", 1000.0, 5.0).at("imports", 7.0)
    worker = Marks("worker", 900.0, 0.0)
    assert driver.seen_from(worker) == Marks("worker", 900.0, 105.0, (("imports", 107.0),))
    assert driver.seen_from(worker).seen_from(driver) == driver


def test_on_one_machine_no_wall_clock_is_asked():
    earlier, later = Marks("here", 1000.0, 5.0), Marks("here", 4600.0, 6.0)  # summer time has begun between them
    assert earlier.seen_from(later) is earlier


def test_the_interpreters_start_counts_and_other_processes_share_the_clock():
    program = "import time; time.sleep(0.3); from distcifar.tracking.startup import Marks; "
    program += "print(repr(Marks.of_this_process().ended('imports')))"
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    marks: Marks = eval(done.stdout, {"Marks": Marks})
    waited = marks.ended("waiting").stages()
    elapsed = time.monotonic() - begun
    assert waited["imports"] > 0.3
    assert 0 < waited["waiting"] < elapsed - 0.3
    assert sum(waited.values()) == pytest.approx(elapsed, abs=0.3)  # the fork before, a clock tick
    assert sum(waited.values()) < elapsed + 0.02


def test_the_first_step_ends_when_the_device_is_done_and_is_told_once():
    told: list[Marks] = []
    waits: list[int] = []
    first = FirstStep(Marks.of_this_process(), lambda: waits.append(len(told)), told.append)
    first.ended("data")
    first.ended("model")
    for stage in ("data", "step", "data", "step", "report"):
        first.enter(stage)
    first.ended("model")  # of a rollback
    (marks,) = told
    assert [name for name, _ in marks.ends] == ["data", "model", "first batch", "first step"]
    assert waits == [0]


def test_a_first_step_that_fails_is_counted_with_the_one_that_does_not():
    told: list[Marks] = []
    first = FirstStep(Marks("here", 0.0, 0.0), lambda: None, told.append)
    for stages in (("data", "step"), ("data", "step", "report")):  # out of memory in the first one
        first.ended("model")
        for stage in stages:
            first.enter(stage)
    (marks,) = told
    assert [name for name, _ in marks.ends] == ["model", "first batch", "model", "first batch", "first step"]
    assert list(marks.stages()) == ["model", "first batch", "first step"]


def test_what_is_written_is_read_again(tmp_path: Path):
    assert read_startup(tmp_path) is None
    startup = describe(Marks("here", 0.0, 1.0).at("imports", 1.25).at("first step", 3.75), "ab12", workers=2)
    assert startup["total"] == 2.75
    assert in_a_line(startup) == "imports 0.2 s, first step 2.5 s"
    write_json(tmp_path / FILE, startup)
    assert read_startup(tmp_path) == startup
    for text in ("", "{", "[]", '{"launch": "a"}'):
        (tmp_path / FILE).write_text(text)
        assert read_startup(tmp_path) is None
