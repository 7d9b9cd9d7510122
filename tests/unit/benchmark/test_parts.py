"""What the parts make of their measurements: scaling, speedrun, startup, growth."""

import math
from dataclasses import replace

import pytest

from distcifar.benchmark.growth import straight_lines
from distcifar.benchmark.results import Line
from distcifar.benchmark.scaling import GLOBAL, LOCAL, efficiencies, medians, predictions, worker_counts
from distcifar.benchmark.speedrun import accuracies, told
from distcifar.benchmark.startup import stacked
from distcifar.cluster.time_model import Observation


def test_worker_counts_double_and_end_at_the_most():
    assert [worker_counts(most) for most in (1, 2, 3, 8, 12)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 12],
    ]


def test_efficiency_is_the_share_of_n_times_one_worker():
    speeds = {(1, GLOBAL): 100.0, (2, GLOBAL): 150.0, (1, LOCAL): 80.0, (2, LOCAL): 160.0}
    lines = [Line(f"{n}, {kind}", (speed,), float(n), kind) for (n, kind), speed in speeds.items()]
    assert efficiencies(lines) == [f"2, {GLOBAL}: 75% of the ideal.", f"2, {LOCAL}: 100% of the ideal."]


def observed(*, ranks: tuple[int, ...]) -> list[Observation]:
    """Of a machine of 1 ms a step, 10 us an image, 1 ns a byte and 100 us a message; 4 MB of gradients."""
    found = []
    for n in ranks:
        for images in (64, 128):
            ring = (2 * (n - 1) / n * 4e6 * 1e-9 + 2 * (n - 1) * 1e-4) if n > 1 else 0.0
            found.append(Observation(1e-3 + images * 1e-5 + ring, n, images, 4e6))
        for size in (1e4, 1e7) if n > 1 else ():
            found.append(Observation(2 * (n - 1) / n * size * 1e-9 + 2 * (n - 1) * 1e-4, n, 0, size, steps=0))
    return found


def test_a_prediction_is_called_one_and_follows_the_formula():
    model, *rest = predictions(observed(ranks=(1, 2)), batches={GLOBAL: 64, LOCAL: 64})
    for words in ("1 ms a step", "10 us an image", "1 ns a byte", "100 us a message", "4.0 MB", "not overlapped"):
        assert words in model
    assert len(rest) == 4
    assert all(text.startswith("Predicted, not measured: ") for text in rest)
    seconds = 1e-3 + 64e-5 + 2 * 7 / 8 * 4e-3 + 14e-4  # 8 workers, 64 images each
    assert f"8 workers, {LOCAL}: {8 * 64 / seconds:,.0f} images/s, {1.64e-3 / seconds:.0%} of the ideal" in rest[1]
    assert "as measured here" in rest[1]
    seconds += 8e-5 - 64e-5  # 64 images over all of them
    assert f"8 workers, {GLOBAL}: {64 / seconds:,.0f} images/s, {1.64e-3 / 8 / seconds:.0%} of the ideal" in rest[0]


def test_one_worker_alone_predicts_with_a_link_that_is_named_as_assumed():
    model, *rest = predictions(observed(ranks=(1,)), batches={GLOBAL: 64})
    assert "a byte" not in model
    assert all("assumed, not measured" in text for text in rest)


def test_a_slow_moment_does_not_reach_the_fit():
    exact = observed(ranks=(1, 2))
    rounds = [*exact, *(replace(each, seconds=100 * each.seconds) for each in exact), *exact]
    assert medians(rounds) == exact


def test_accuracies_are_told_with_mean_standard_error_and_lowest():
    values = [94.0, 94.2, 93.9, 94.1]
    error = math.sqrt(sum((value - 94.05) ** 2 for value in values) / 3) / 2
    assert told(values) == f"mean 94.05 % +- {error:.2f} (standard error), lowest 93.90 %, 4 run(s)."
    assert told([94.0]) == "mean 94.00 %, lowest 94.00 %, 1 run(s)."
    assert accuracies("r", {"ours": [0.94, 0.95]}).line("ours").values == pytest.approx((94.0, 95.0))


def test_starts_are_stacked_by_the_medians_of_their_stages():
    line = stacked(
        "debug", [{"import": 2.0, "data": 1.0}, {"import": 4.0, "compile": 9.0}, {"import": 3.0, "data": 3.0}]
    )
    assert line.values == (3.0, 13.0, 6.0)
    assert line.parts == {"import": 3.0, "data": 1.0, "compile": 0.0}


def test_a_straight_line_is_found_and_what_is_off_it_told():
    points = {1000: 3.0, 2000: 5.0, 4000: 9.0}
    exact = [Line(str(x), (y,), float(x), "streamed") for x, y in points.items()]
    assert straight_lines(exact, "s") == ("streamed: 1 s + 0.002 s for each; at most 0% off that line.",)
    bent = [*exact, Line("8000", (40.0,), 8000.0, "streamed")]
    assert "at most 0%" not in straight_lines(bent, "s")[0]
