"""The samples of a run's machines go out with its rows: each once, the newest first, however often it is looked."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from distcifar.tracking.shipping.hardware import HardwareSamples, hardware_values


def sample(second: int, step: int, **values: Any) -> dict[str, Any]:
    when = f"2026-01-01T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}+00:00"
    return {"time": when, "step": step, "ranks": [{"rank": 0, "host": "a", "cpu": float(second), **values}]}


def add(folder: Path, *samples: dict[str, Any]) -> None:
    with open(folder / "system.jsonl", "a") as file:
        file.writelines(json.dumps(found) + "\n" for found in samples)


def cpu(values: dict[str, Any]) -> float | None:
    return values.get("hardware/rank0/cpu")


def test_a_run_without_samples_has_no_values(tmp_path: Path):
    assert HardwareSamples(tmp_path).until(5) == {}


def test_a_sample_goes_to_the_first_row_at_or_after_its_step_and_to_no_other(tmp_path: Path):
    add(tmp_path, sample(10, 3), sample(20, 6))
    samples = HardwareSamples(tmp_path)
    assert [cpu(samples.until(step)) for step in range(1, 9)] == [None, None, 10.0, None, None, 20.0, None, None]


def test_of_several_samples_for_one_row_the_newest_goes(tmp_path: Path):
    add(tmp_path, sample(10, 3), sample(20, 3), sample(30, 4))
    samples = HardwareSamples(tmp_path)
    assert cpu(samples.until(4)) == 30.0
    assert samples.until(5) == {}


def test_samples_that_come_while_rows_go_out_are_seen(tmp_path: Path):
    samples = HardwareSamples(tmp_path)
    assert samples.until(1) == {}
    add(tmp_path, sample(10, 1))
    assert cpu(samples.until(2)) == 10.0
    add(tmp_path, sample(20, 2), sample(30, 50))
    assert cpu(samples.until(3)) == 20.0
    assert samples.until(49) == {}
    assert cpu(samples.until(50)) == 30.0


def test_after_a_restart_the_steps_of_samples_may_go_back(tmp_path: Path):
    add(tmp_path, sample(10, 30), sample(20, 60), sample(100, 31), sample(110, 61))
    samples = HardwareSamples(tmp_path)
    found = [cpu(samples.until(step)) for step in (30, 31, 60, 61)]
    assert found == [10.0, 100.0, 20.0, 110.0]


def test_what_a_shipper_has_passed_when_the_run_goes_back_is_not_held_up(tmp_path: Path):
    samples = HardwareSamples(tmp_path)
    add(tmp_path, sample(10, 30))
    assert cpu(samples.until(40)) == 10.0
    add(tmp_path, sample(20, 20))  # the run goes on from step 10; W&B has step 40
    assert cpu(samples.until(41)) == 20.0


def test_half_a_line_is_no_sample_and_comes_when_it_is_whole(tmp_path: Path):
    text = json.dumps(sample(10, 1)) + "\n"
    (tmp_path / "system.jsonl").write_text(text[:20])
    samples = HardwareSamples(tmp_path)
    assert samples.until(1) == {}
    (tmp_path / "system.jsonl").write_text(text)
    assert cpu(samples.until(2)) == 10.0


def test_a_file_that_was_thinned_out_tells_nothing_twice(tmp_path: Path):
    every = [sample(10 * i, i) for i in range(1, 20)]
    add(tmp_path, *every)
    samples = HardwareSamples(tmp_path)
    assert cpu(samples.until(19)) == 190.0
    (tmp_path / "system.jsonl").unlink()
    add(tmp_path, *every[::2], sample(200, 20))
    assert cpu(samples.until(30)) == 200.0
    assert samples.until(31) == {}


def test_a_file_that_is_gone_is_no_mistake(tmp_path: Path):
    add(tmp_path, sample(10, 1))
    samples = HardwareSamples(tmp_path)
    samples.until(1)
    (tmp_path / "system.jsonl").unlink()
    assert samples.until(2) == {}


def test_only_finite_numbers_go_out_under_the_name_of_their_rank():
    ranks = [
        {"rank": 0, "host": "a", "cpu": 1.5, "gpu": None, "memory": 2, "load": math.nan},
        {"rank": 3, "host": "b", "cpu": math.inf, "gpu": 99.0},
    ]
    assert hardware_values({"ranks": ranks}) == {
        "hardware/rank0/cpu": 1.5,
        "hardware/rank0/memory": 2,
        "hardware/rank3/gpu": 99.0,
    }


@pytest.mark.timeout(120)
def test_two_days_of_samples_do_not_hold_up_a_hundred_thousand_rows(tmp_path: Path):
    add(tmp_path, *(sample(i, 5 * i) for i in range(20_000)))
    samples = HardwareSamples(tmp_path)
    start = time.process_time()
    found = sum(bool(samples.until(step)) for step in range(1, 100_001))
    assert found >= 19_990
    assert time.process_time() - start < 20
