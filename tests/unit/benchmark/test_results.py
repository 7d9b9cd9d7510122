"""Ratios within rounds, goals, the JSON of a benchmark, its picture and tables."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from distcifar.benchmark.plot import draw
from distcifar.benchmark.results import Comparison, Goal, Line, document, lines_of
from distcifar.benchmark.screen import show, spelled

slowdowns = st.lists(st.floats(0.01, 100), min_size=1, max_size=9)


@given(slowdowns, st.floats(0.1, 10), st.booleans())
def test_what_slows_a_whole_round_changes_no_ratio(slow: list[float], factor: float, more_is_better: bool):
    better = factor if more_is_better else 1 / factor
    lines = lines_of({"peer": [7.0 * s for s in slow], "ours": [7.0 * s * better for s in slow]})
    found = Comparison("t", "images/s", lines, "peer", more_is_better=more_is_better)
    assert found.ratio("ours", "peer") == pytest.approx(factor)
    assert found.ratio("peer", "peer") == 1.0


def test_lines_of_different_lengths_are_compared_by_their_medians():
    found = Comparison("t", "s", lines_of({"a": [1.0, 2.0, 9.0], "b": [4.0]}), more_is_better=False)
    assert found.ratio("a", "b") == 2.0


def test_a_goal_is_reached_at_its_ratio_and_not_below_it():
    lines = lines_of({"plain": [100.0], "enough": [250.0], "short": [249.0]})
    goals = (Goal("enough", "plain", 2.5), Goal("short", "plain", 2.5))
    found = Comparison("t", "images/s", lines, "plain", goals=goals).to_json()["goals"]
    assert [goal["reached"] for goal in found] == [True, False]
    assert found[1] == {"line": "short", "than": "plain", "at_least": 2.5, "found": 2.49, "reached": False}


def stacked_and_curved() -> list[Comparison]:
    start = Line("debug: first", (3.0, 5.0), parts={"import": 2.5, "data": 1.5})
    curve = tuple(Line(f"{n} workers", (10.0 * n,), float(n), "fixed") for n in (1, 2))
    bars = lines_of({"plain": [1.0, 3.0, 2.0], "ours": [9.0, 8.0, 7.0]})
    return [
        Comparison("Bars", "images/s", bars, "plain", goals=(Goal("ours", "plain", 2.5),), notes=("A note [bold].",)),
        Comparison("Start", "s", (start,), more_is_better=False),
        Comparison("Workers", "images/s", curve),
    ]


def test_the_document_holds_each_round_and_the_machine_and_survives_json():
    found = document("step", {"rounds": 3}, stacked_and_curved())
    assert json.loads(json.dumps(found)) == found
    assert (found["schema"], found["benchmark"], found["arguments"]) == (1, "step", {"rounds": 3})
    assert {"torch", "ray", "ffcv"} <= set(found["packages"])
    assert found["hardware"]["cores"] >= 1
    assert "processor" in found["hardware"]
    assert "gpus" in found["hardware"]
    line = found["comparisons"][0]["lines"][0]
    expected = {"name": "plain", "median": 2.0, "lowest": 1.0, "highest": 3.0, "values": [1.0, 3.0, 2.0], "ratio": 1.0}
    assert line == expected
    assert found["comparisons"][1]["lines"][0]["parts"] == {"import": 2.5, "data": 1.5}
    assert found["comparisons"][2]["lines"][1]["x"] == 2.0


def test_the_tables_tell_medians_ratios_goals_and_notes():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for comparison in stacked_and_curved():
        show(comparison, console)
    text = console.export_text()
    for words in (
        "ours",
        "8",
        "3.50",
        "at least 2.5 x plain: 3.50 x, reached",
        "A note [bold].",
        "import",
        "2 workers",
    ):
        assert words in text
    assert [spelled(value) for value in (12345.6, 99.96, 0.01234)] == ["12,346", "100", "0.0123"]


def test_the_picture_has_a_panel_for_each_comparison(tmp_path):
    draw(stacked_and_curved(), tmp_path / "all.png", title="all")
    draw(stacked_and_curved()[:1], tmp_path / "one.png", title="one")
    pixels = {}
    for name in ("all", "one"):
        content = (tmp_path / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        pixels[name] = int.from_bytes(content[20:24], "big")  # height in the header
    assert pixels["all"] > 2 * pixels["one"]
