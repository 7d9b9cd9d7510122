"""A search on the screen: the table fits the terminal, a log has a line for each epoch."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.text import Text

from distcifar.config.sweep import SweepSpec
from distcifar.sweep.ranking import Confirmed, ranking, trials_of
from distcifar.sweep.screen import SweepDisplay, clock, confirmed_table, line_of, ranking_table, rung_of, short
from tests.unit.sweep.sweeps import made_up


def console(width, height, terminal=True):
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=terminal, highlight=False)


def shown(display, made):
    for result in made.results:
        display.show(result)
    display.console.print(display._table())
    return display.console.file.getvalue()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (200, 60)])
def test_the_table_fits_the_terminal_and_has_those_that_run_first(tmp_path, width, height):
    made = made_up(tmp_path / "s", trials=40, until=70)
    text = shown(SweepDisplay(made.sweep, console(width, height)), made)
    lines = Text.from_ansi(text).plain.splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    running = [r.run for r in made.results if r.decision == "continue"][-1]
    assert running in lines[1]
    assert f"/{40} trials in" in lines[-1]


def test_without_a_terminal_each_epoch_is_a_line(tmp_path):
    made = made_up(tmp_path / "s", trials=3)
    display = SweepDisplay(made.sweep, console(80, 24, terminal=False))
    with display:
        for result in made.results:
            display.show(result)
    assert display.console.file.getvalue().splitlines() == [line_of(result, 9) for result in made.results]


def test_runs_of_a_confirmation_do_not_hide_trials(tmp_path):
    made = made_up(tmp_path / "s", trials=3)
    display = SweepDisplay(made.sweep, console(100, 40))
    confirming = [replace(made.results[0], run=f"c000-{n}") for n in range(3)]
    text = shown(display, replace(made, results=made.results + confirming))
    assert all(name in text for name in ("000", "001", "002", "c000-0", "c000-1", "c000-2"))


def test_a_line_says_what_was_decided_and_why_a_trial_failed(tmp_path):
    made = made_up(tmp_path / "s", trials=3)
    stopped = next(r for r in made.results if r.decision == "stop" and r.epoch < 9)
    assert line_of(stopped, 9).endswith("stop")
    failed = replace(stopped, problem="the loss is NaN", decision="failed")
    assert "failed: the loss is NaN" in line_of(failed, 9)


@pytest.mark.parametrize(("epoch", "rung"), [(1, 0), (2, 1), (5, 1), (6, 2), (17, 2), (18, 3)])
def test_rungs_are_counted_from_the_grace(epoch, rung):
    assert rung_of(SweepSpec(grace=2, reduction=3), epoch) == rung


def test_tables_name_the_winner_and_its_test_accuracy(tmp_path):
    made = made_up(tmp_path / "s", trials=6)
    ranked = ranking(made.sweep, trials_of(made.sweep, made.results, made.points))
    out = console(120, 40)
    out.print(ranking_table(ranked, made.sweep.space, 120))
    won = Confirmed(ranked[0].group, "d", (1, 2), (0.5, 0.52), 0.51, 0.01, winner=True, test=(0.49, 0.5))
    out.print(confirmed_table([won], {ranked[0].group: "004"}))
    text = out.file.getvalue()
    assert "51.00% +- 1.00%" in text
    assert "49.00%, 50.00%" in text
    assert "lr" in text


def test_words():
    assert (short("optim.lr"), short("schedule.name"), short("batch_size")) == ("lr", "schedule", "batch_size")
    assert (clock(59.6), clock(61), clock(3725)) == ("1:00", "1:01", "1:02:05")
