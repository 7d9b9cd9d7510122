"""The simulation in small: each part finds what it looks for, says so if not, and tells what grows too fast."""

from pathlib import Path

import numpy as np
import pytest

from distcifar.benchmark import simulated_ranks, simulated_runs, simulation
from distcifar.benchmark.place import Place
from distcifar.benchmark.results import Line
from distcifar.benchmark.settings import Settings
from distcifar.errors import RunError


def test_all_parts_come_to_their_end_with_times_of_every_size(tmp_path: Path):
    found = simulation.simulation(Place(Settings(quick=True, rounds=2), tmp_path, {}, print))
    assert len(found) == 7
    for comparison in found[:-1]:
        assert all(len(line.values) == 2 and min(line.values) >= 0 for line in comparison.lines), comparison.title
        curves = {line.curve for line in comparison.lines}
        assert len(comparison.notes) == len(curves)
        assert len(comparison.lines) == len(curves) * len({line.x for line in comparison.lines})
    assert found[-1].title.startswith("Predicted, not measured")
    ring = 2 * 7 / 8 * 44.7e6 / 1.25e9 + 14 * 5e-5
    assert found[-1].line("8: 10 Gbit/s Ethernet").median == pytest.approx(ring)


def test_a_plan_that_misses_an_image_or_takes_it_twice_is_told(monkeypatch: pytest.MonkeyPatch):
    simulated_ranks.plan_cost(7, 100, 30)
    monkeypatch.setattr(simulated_ranks, "share", lambda count, rank, size: slice(rank * (count // size), count))
    with pytest.raises(RunError, match="images of an epoch are not in exactly one share on 7 ranks"):
        simulated_ranks.plan_cost(7, 100, 30)
    with pytest.raises(RunError, match="1 images"):
        simulated_ranks.require_once(np.array([1, 1, 0]), 3)


def test_signs_that_are_not_found_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(simulated_ranks, "samples_of", lambda folder, ranks: [])
    with pytest.raises(RunError, match="0 samples of 5 ranks"):
        simulated_ranks.sign_cost(5, tmp_path / "run")


def test_runs_that_are_not_listed_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(simulated_runs, "all_runs", lambda runs: [])
    with pytest.raises(RunError, match="0 runs of 12 are listed"):
        simulated_runs.run_cost(12, tmp_path)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_what_grows_faster_than_what_it_is_of_is_named(power: int):
    costs = {("reading", float(x)): (1e-3 * x**power,) for x in (10, 100, 1000)}
    (note,) = simulation.told("a title", costs).notes
    assert note == f"reading: grows with the power {power:.1f}" + (": faster than what it is of." if power > 1 else ".")
    lines = [Line(str(x), (x**1.5,), float(x), "c") for x in (1000, 10, 100)]
    assert simulation.exponent(lines) == pytest.approx(1.5)
