"""The page of a search says what came of it, at any stage, loads nothing, and shows what people typed as text."""

import base64
import re
from dataclasses import replace

import pytest

from distcifar.errors import ConfigError, StorageError
from distcifar.insight.sweep_plots import draw_sweep
from distcifar.insight.sweep_report import MOST_RANKED, render_sweep, scheduler_text, write_sweep_report
from distcifar.sweep.ranking import Confirmed, ranking, trials_of
from distcifar.sweep.winner import ending_of
from tests.unit.insight.report_runs import Page
from tests.unit.sweep.sweeps import FIELDS, all_fields, made_up

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/a.png onerror=alert(1)>"


def ended(found, *, failed=(), problem="", confirm=0, test=()):
    """The search's end; `confirm`: so many of the best are confirmed, and the second one of them wins."""
    trials = trials_of(found.sweep, found.results, found.points, failed)
    if problem:
        trials[-1] = replace(trials[-1], state="failed", problem=problem)
    ranked = ranking(found.sweep, trials)
    confirmed = [
        Confirmed(row.group, f"{row.place:016x}", (5, 6), (0.71, 0.73), 0.72, 0.01, place == 1, test * (place == 1))
        for place, row in enumerate(ranked[:confirm])
    ]
    return ending_of(found.sweep, trials, ranked, confirmed)


def page_of(found, ending):
    page = Page(render_sweep(found.sweep, ending))
    assert page.open == [], "elements that are never closed"
    assert page.loads_from_outside == []
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    return page


def cells(page, label):
    """The rows of the table in the region `label`, as texts."""
    table = page.html.partition(f'aria-label="{label}"')[2].partition("</table>")[0]
    return [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in re.findall("<tr.*?</tr>", table, re.DOTALL)]


def test_a_search_is_told(tmp_path):
    found = made_up(tmp_path / "first", trials=40)
    ending = ended(found, failed=[3], problem="The loss is nan at step 7", confirm=3, test=(0.701, 0.699))
    page = page_of(found, ending)
    best, second = ending.ranked[:2]
    assert f"{second.trials[0]:03d}" in cells(page, "confirmation")[2]
    assert "winner" in cells(page, "confirmation")[2]
    for part in ("71.00%, 73.00%", "72.00% ± 1.00%", "70.10%, 69.90%", f"{second.mean:.2%}"):
        assert part in cells(page, "confirmation")[2], part
    assert cells(page, "confirmation")[1].count("not measured") == 1, "test accuracy of who did not win"
    assert "Test accuracy of the winner, 2 seeds" in page.text
    assert "70.00%" in page.text
    assert f"{best.mean:.2%}" in page.text
    ranks = cells(page, "ranking")
    assert len(ranks) == 1 + MOST_RANKED
    assert "the first 20 of 40" in page.text
    assert f"{best.trials[0]:03d}" in ranks[1]
    lines = {line.split()[0]: line for line in cells(page, "searched fields")[1:]}
    assert list(lines) == [dimension.path for dimension in FIELDS], "a winner's fields in another order"
    assert "0.0001 to 1 (logarithmic)" in lines["optim.lr"]
    assert lines["batch_size"].startswith(f"batch_size 64 {second.point['batch_size']} 32, 64, 128, 256")
    assert "optim.name = sgd" in lines["optim.momentum"]
    assert ("not searched here" in lines["optim.momentum"]) == ("optim.momentum" not in second.point)
    assert f"{second.point['model.dropout']:g}" in lines["model.dropout"]
    weighed = cells(page, "importance")
    assert len(weighed) == len(FIELDS)
    assert "optim.lr" in weighed[0]
    assert f"{ending.savings.epochs} epochs of the 360" in page.text
    assert f"{ending.savings.saved:.1%}" in page.text
    assert sum(int(line.split()[-1]) for line in cells(page, "how far trials came")[1:]) == 40
    assert "The loss is nan at step 7" in page.text
    assert "given up after crashes" in page.text
    assert "ASHA: after 1 epoch, and at each further rung, one of 3 goes on; 9 epochs at most" in page.text


@pytest.mark.parametrize(
    "search",
    [
        {"trials": 12, "until": 1},
        {"trials": 4, "fields": FIELDS[:1], "scheduler": "none"},
        {"trials": 12, "seeds": 3, "epochs": 1},
        {"trials": 30, "fields": all_fields(14), "recipe": "speedrun94"},
    ],
    ids=["one epoch of one", "few", "seeds", "many fields"],
)
def test_at_any_stage_there_is_a_page(tmp_path, search):
    found = made_up(tmp_path / "a", **search)
    ending = ended(found)
    page = page_of(found, ending)
    assert "Best validation accuracy" in page.text
    assert "not confirmed with other seeds" in page.text
    assert "Test accuracy" not in page.text
    assert f"{ending.ranked[0].mean:.2%}" in page.text
    if len(ending.ranked) < 6:
        assert f"{len(ending.ranked)} configurations with a result are too few" in page.text
    if "seeds" in search:
        assert "000, 001, 002" in page.text
        assert "±" in page.text


def test_confirmed_without_a_test_says_validation(tmp_path):
    found = made_up(tmp_path / "a", trials=12)
    page = page_of(found, ended(found, confirm=2))
    assert "Confirmed validation accuracy" in page.text
    assert "Test accuracy of" not in page.text


def test_pictures_are_inside_and_the_file_is_whole(tmp_path):
    found = made_up(tmp_path / "a", trials=6)
    ending = ended(found)
    assert "Pictures" not in page_of(found, ending).text
    paths = draw_sweep(found.sweep, ending.trials, found.sweep.folder)
    page = page_of(found, ending)
    shown = [value.removeprefix("data:image/png;base64,") for value in page.loads]
    assert [base64.b64decode(text) for text in shown] == [path.read_bytes() for path in paths]
    write_sweep_report(found.sweep, ending, tmp_path / "new" / "sweep.html")
    assert (tmp_path / "new" / "sweep.html").read_text().startswith("<!doctype html>")
    with pytest.raises(ConfigError, match="is a folder"):
        write_sweep_report(found.sweep, ending, tmp_path)
    with pytest.raises(StorageError, match="cannot be written"):
        write_sweep_report(found.sweep, ending, paths[0] / "sweep.html")


def test_what_people_typed_is_text(tmp_path):
    found = made_up(tmp_path / "a", trials=12, fields=FIELDS)
    sweep = replace(
        found.sweep,
        folder=tmp_path / EVIL.replace("/", "_"),
        recipe=replace(found.sweep.recipe, name=EVIL, data=replace(found.sweep.recipe.data, dataset=EVIL)),
    )
    found = replace(found, sweep=sweep)
    page = page_of(found, ended(found, problem=EVIL, confirm=1))
    assert page.text.count("<script>alert('x')") >= 5  # title, heading, recipe, data, problem


def test_every_scheduler_is_told_in_words(tmp_path):
    spec = made_up(tmp_path / "a", until=0).sweep.spec
    told = {
        name: scheduler_text(replace(spec, scheduler=name, grace=2), 27)
        for name in ("asha", "hyperband", "pbt", "median", "none")
    }
    assert len(set(told.values())) == 5
    assert all("27 epochs" in text for text in told.values())
    assert all("2 epochs" in text for name, text in told.items() if name != "none")
