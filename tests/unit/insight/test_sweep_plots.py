"""The pictures of a search: there for any search, with every mark where the numbers say it is."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from distcifar.config.domain import Domain
from distcifar.config.space import Dimension, chosen, ranged
from distcifar.errors import DataError
from distcifar.insight import sweep_plots
from distcifar.insight.curves import STYLE
from distcifar.insight.sweep_axes import NEAREST, field_axis
from distcifar.insight.sweep_plots import PICTURES, ScoreScale, counts, draw_sweep
from distcifar.sweep.ranking import trials_of
from tests.unit.sweep.sweeps import FIELDS, all_fields, made_up


@pytest.fixture(autouse=True)
def _no_missing_glyphs_and_no_room_that_is_too_small():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # matplotlib's: glyphs, and layouts that do not fit
        yield


def of(found, failed=()):
    return trials_of(found.sweep, found.results, found.points, failed)


@pytest.mark.parametrize(
    "search",
    [
        {"trials": 5, "fields": FIELDS[:1], "scheduler": "none"},
        {"trials": 100, "fields": all_fields(14), "recipe": "speedrun94", "epochs": 27},
        {"trials": 12, "until": 1},
        {"trials": 12, "seeds": 2, "epochs": 1},
    ],
    ids=["one field", "a hundred", "one epoch of one", "one epoch each"],
)
def test_any_search_is_drawn(tmp_path, search):
    found = made_up(tmp_path / "搜索 $x$", **search)
    paths = draw_sweep(found.sweep, of(found, failed=[0]), tmp_path)
    assert [path.name for path in paths] == list(PICTURES)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            grey = np.asarray(image.convert("L"), dtype=float)
        assert min(grey.shape) > 300
        assert grey.std() > 5, f"{path.name} is blank"
        edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
        assert (edge > 250).mean() > 0.99, f"something is cut off at the edge of {path.name}"


def test_without_an_epoch_there_is_nothing_to_draw(tmp_path):
    found = made_up(tmp_path / "a", until=0)
    with pytest.raises(DataError, match="nothing to draw"):
        draw_sweep(found.sweep, of(found, failed=[1, 2]), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".png"]


def test_marks_are_where_the_numbers_say(tmp_path, monkeypatch):
    """The figures themselves are looked into, before they become pixels."""
    figures = []

    def kept(draw):
        with rc_context(STYLE):
            figures.append(Figure())
            draw(figures[-1])
        return b"png"

    monkeypatch.setattr(sweep_plots, "_png", kept)
    found = made_up(tmp_path / "a", trials=24)
    trials = of(found, failed=[2])
    draw_sweep(found.sweep, trials, tmp_path)
    curves, parallel, parameters = figures
    best = max((trial for trial in trials), key=lambda trial: trial.score)

    named = {line.get_label(): line for line in curves.axes[0].lines}
    assert sorted(zip(*named["stopped here"].get_data(), strict=True)) == sorted(
        trial.curve[-1] for trial in trials if trial.state == "stopped"
    )
    assert [tuple(named["failed here"].get_xydata()[0])] == [trials[2].curve[-1]]
    [label] = [label for label in named if label.startswith("best")]
    assert label == f"best: trial {best.number:03d}, {best.score:.2%}"
    assert tuple(named[label].get_ydata()) == tuple(accuracy for _, accuracy in best.curve)

    drawn = [line for line in parallel.axes[0].lines if len(line.get_xdata()) == len(FIELDS) + 1]
    assert len(drawn) == len(trials) + 1, "a line each, and the white one below the best"
    assert drawn[-1].get_ydata()[-1] == 1.0, "the best one ends at the top"
    rate = field_axis(FIELDS[0], [])
    assert sorted(line.get_ydata()[0] for line in drawn[:-2]) == pytest.approx(
        sorted(rate.place(trial.point["optim.lr"]) for trial in trials if trial is not best)
    )
    absent = [line for line in drawn if line.get_ydata()[4] < -0.05]
    white = "optim.momentum" not in best.point
    assert len(absent) == sum("optim.momentum" not in trial.point for trial in trials) + white

    panels = {axes.get_title(loc="left"): axes for axes in parameters.axes if axes.get_visible()}
    assert list(panels) == [dimension.path for dimension in FIELDS]
    finished, others = panels["optim.lr"].collections[:2]
    if finished.get_label() != "finished":
        finished, others = others, finished
    assert len(finished.get_offsets()) == sum(trial.state == "finished" for trial in trials)
    momentum = panels["optim.momentum"]
    here = [trial for trial in trials if "optim.momentum" in trial.point]
    assert momentum.get_title(loc="right") == f"{len(here)} of 24 trials"


@pytest.mark.parametrize("most", [4, 5])
@given(low=st.floats(1e-8, 1e3), times=st.floats(1.01, 1e7), kind=st.sampled_from(["loguniform", "uniform", "int"]))
def test_ticks_do_not_overlap_and_have_both_ends(most, low, times, kind):
    if kind == "int":
        low, times = float(int(low) + 1), float(int(times) + 1)
    axis = field_axis(Dimension(path="optim.lr", domain=Domain(kind=kind, low=low, high=low * times)), [])
    places = [place for place, _ in axis.ticks(most)]
    assert places[0] == pytest.approx(0)
    assert places[-1] == pytest.approx(1)
    assert all(b - a >= NEAREST * 0.99 for a, b in pairwise(places))
    assert len(places) <= most + 2


def test_axes_reach_to_what_was_tried():
    axis = field_axis(ranged("optim.lr", 0.01, 1.0, log=True), [{"optim.lr": 10.0}, {}])
    assert axis.place(10.0) == 1.0
    assert axis.place(1.0) == pytest.approx(2 / 3)
    listed = field_axis(chosen("model.hidden", (96,), (1024, 512, 256, 128, 64)), [{"model.hidden": (7,)}])
    assert [text for _, text in listed.ticks()] == ["96", "1024,512,256,12…", "7"]
    assert listed.lines == ("model.", "hidden")


def test_the_worst_tenth_takes_no_room_on_the_scale(tmp_path):
    found = made_up(tmp_path / "a", trials=20)
    trials = of(found)
    scale = ScoreScale(trials)
    scores = sorted(trial.score for trial in trials)
    assert [scale.place(scores[0]), scale.place(scores[-1])] == [0.0, 1.0]
    assert scale.low == scores[2]
    assert scale.colour(scores[0]) != scale.colour(scores[-1])
    assert ScoreScale(trials[:1]).place(trials[0].score) == 1.0


def test_states_are_counted(tmp_path):
    assert counts(of(made_up(tmp_path / "a", trials=3, until=1))) == "1 trial: 1 running"
