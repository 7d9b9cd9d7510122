"""The HTML report says what a run has, survives what it lacks, loads nothing, and shows what people typed as text."""

import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distcifar.config import to_dict
from distcifar.errors import ConfigError, DataError, StorageError
from distcifar.insight.report import MOST_COLOURS, render, report_path, write_report
from distcifar.insight.report_charts import HEIGHT, WIDTH, Series, line_chart, nice_ticks
from distcifar.insight.report_classes import class_rows, confused_pairs
from distcifar.insight.report_facts import MOST_EPOCHS, compare, epoch_table, promise, tiles
from distcifar.insight.report_run import all_runs, find_runs, read_run
from distcifar.recipes import RECIPES
from distcifar.tracking.registry.log import Act, append_act
from tests.unit.insight.report_runs import Page, change, write_run

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/a.png onerror=alert(1)>"


def page_of(*folders, group=""):
    runs = folders[0].parent
    page = Page(render([read_run(folder) for folder in folders], runs=runs, group=group, known=RECIPES))
    assert page.open == [], "elements that are never closed"
    assert page.loads_from_outside == []
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    return page


def test_a_run_is_told(tmp_path):
    events = [("failure", "rank 1 on node-7: it was killed"), ("continue", "at step 20 with 2 worker(s)")]
    page = page_of(write_run(tmp_path / "first", samples=True, events=events))
    for part in ("first", "finished", "90.00%", "3 of 3", "1:23", "1,234", "627.9 k", "CPU", "cifar10 (aa1d6b127f)",
                 "2026-11-22 09:04 UTC", "node-1", "Ours: 92 % on CIFAR-10", "epochs 3 instead of 14",
                 "rank 1 on node-7: it was killed", "optim.muon_lr", "airplane", "Gradient norm"):  # fmt: skip
        assert part in page.text, part
    assert page.tags.count("svg") == 4
    assert page.tags.count("img") == 6
    assert "is: cat" in page.text, "the mistaken picture does not say what it is"
    assert "epoch 2\ntrain: " in page.text, "curves do not tell their values"
    assert "cat taken for dog: 10 of 100" in page.titles


def test_it_is_written_whole_beside_the_run(tmp_path):
    folder = write_run(tmp_path / "first")
    path = report_path([folder], tmp_path)
    assert path == folder / "report.html"
    write_report([read_run(folder)], path, runs=tmp_path)
    assert path.read_text().startswith("<!doctype html>")
    assert path.stat().st_size < 200_000
    assert report_path([folder, tmp_path / "b"], tmp_path).name == "report-first+b.html"
    assert report_path([folder], tmp_path, "widths").name == "report-widths.html"


def test_reports_of_other_runs_have_other_names_that_a_file_system_takes(tmp_path):
    def name(*names, group="", runs=tmp_path):
        return report_path([runs / name for name in names], tmp_path, group).name

    long = "类" * 80
    pairs = [
        (name("a-b", "c"), name("a", "b-c")),
        (name("a", "b"), name("a", group="a-b")),
        (name("a", group="a/b"), name("a", group="a-b")),
        (name("a", group="a/b"), name("a", group="a b")),
        (name(long, long + "a"), name(long, long + "b")),
        (name("a", "b"), name("a", "b", runs=tmp_path / "elsewhere")),
    ]
    for one, other in pairs:
        assert one != other
        assert all(len(found.encode()) < 200 and found.startswith("report-") for found in (one, other))


def test_a_page_that_cannot_be_written_is_told(tmp_path):
    run = read_run(write_run(tmp_path / "a"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"is a folder.*--out .*report.html"):
        write_report([run], tmp_path, runs=tmp_path)
    for path in (tmp_path / "file/a.html", tmp_path / f"{'a' * 300}.html"):
        with pytest.raises(StorageError, match="--out FILE"):
            write_report([run], path, runs=tmp_path)


@pytest.mark.parametrize(
    "odd",
    [
        {"finished": False},
        {"finished": False, "epochs": 0},
        {"epochs": 1},
        {"epochs": 1, "steps": 1},
        {"finished": False, "epochs": 1, "killed_at": 15},
        {"accuracy": 1.0},
        {"validation": False},
        {"validation": False, "finished": False},
        {"nan": True},
        {"steps": 500, "epochs": 20},
        {"classes": [f"class {i}" for i in range(100)]},
        {"classes": ["飞机", "汽车 | пример", "カエル", "말"]},
        {"classes": ["only"]},
    ],
    ids=str,
)
def test_odd_runs_are_told_too(tmp_path, odd):
    folder = write_run(tmp_path / "odd", **odd)
    page = page_of(folder)
    for name in list(odd.get("classes", []))[:1]:
        assert name in page.text
    assert len(page.html) < 1_000_000
    assert "nan" not in page.text.lower()
    both = page_of(folder, write_run(tmp_path / "usual"))
    assert both.tags.count("svg") == 4


def test_an_unfinished_run_says_how_it_stands(tmp_path):
    failed = write_run(tmp_path / "failed", finished=False, events=[("failed", "three failures at step 40")])
    page = page_of(failed)
    for part in ("failed", "three failures at step 40", "Validation accuracy so far", "80.00%", "no result yet"):
        assert part in page.text, part
    begun = write_run(tmp_path / "begun", finished=False, epochs=0)
    assert page_of(begun).tags.count("svg") == 0
    assert tiles(read_run(begun))[0].value == "–"


def test_what_people_typed_is_text(tmp_path):
    folder = write_run(tmp_path / "a", classes=(EVIL, "b"), events=[(EVIL, EVIL)], samples=True)
    recipe = json.loads((folder / "recipe.json").read_text()) | {"name": EVIL, "description": EVIL}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    facts = json.loads((folder / "run.json").read_text())
    facts["hardware"]["host"] = facts["started"] = facts["spec"]["source"] = facts["data_digest"] = EVIL
    (folder / "run.json").write_text(json.dumps(facts))
    named = write_run(tmp_path / "<b>bold")
    for page in (page_of(folder), page_of(folder, named, group=EVIL)):
        assert EVIL in page.text
    assert "<b>bold" in page_of(folder, named).text


def test_the_page_forbids_what_it_does_not_need(tmp_path):
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page_of(write_run(tmp_path / "a")).html


def test_several_runs_are_compared(tmp_path):
    folders = [write_run(tmp_path / f"run-{i}", accuracy=0.5 + i / 40, seed=i, samples=True) for i in range(10)]
    page = page_of(*folders, group="seeds")
    best_first = [page.text.index(f"run-{i}") for i in reversed(range(10))]
    assert best_first == sorted(best_first)
    assert "seeds" in page.text
    assert "the others" in page.text, "more lines than colours"
    differing = [field.name for field in compare([read_run(folder) for folder in folders]) if field.differs]
    assert differing == ["recipe.seed"]
    assert len(page.html) < 1_000_000
    assert f'class="c{MOST_COLOURS}"' in page.html


@pytest.mark.parametrize(
    ("measured", "reported", "told"),
    [(0.90, 0.85, "Kept: 5.00 points above"), (0.90, 0.905, "Kept: 0.50 points below"),
     (0.90, 0.99, "Missed: 9.00 points"), (math.nan, 0.9, "Not measured")],
)  # fmt: skip
def test_the_promise_is_held_against_the_measured_figure(tmp_path, measured, reported, told):
    folder = write_run(tmp_path / "a", reported=reported)
    change(folder, "summary", test_accuracy=measured)
    assert told in promise(read_run(folder), RECIPES).verdict


def test_a_promise_in_words_stands_beside_what_was_measured(tmp_path):
    folder = write_run(tmp_path / "a", accuracy=0.8912)
    page = page_of(folder)
    assert "reports no accuracy" not in page.text
    assert re.search(r"measured here:\s*89.12%\s*Ours: 92 % on CIFAR-10", page.text)
    assert "optimistic" not in page.text
    change(folder, "summary", selected_on="test")
    assert "chosen on the test split: the measured accuracy is optimistic" in page_of(folder).text
    change(folder, "recipe", description="Two layers.")
    assert "reports no accuracy" in page_of(folder).text
    begun = write_run(tmp_path / "begun", finished=False)
    assert "Not measured yet" in page_of(begun).text


def test_a_changed_recipe_is_told_and_an_unchanged_one_is_not(tmp_path):
    changed = read_run(write_run(tmp_path / "a", epochs=14, label_smoothing=0.0))
    assert promise(changed, RECIPES).changed == ("label_smoothing 0 instead of 0.2",)
    assert promise(read_run(write_run(tmp_path / "b", epochs=14)), RECIPES).changed == ()
    assert promise(changed, {}).changed == ()


def test_classes_come_hardest_first_with_what_they_are_taken_for(tmp_path):
    folder = write_run(tmp_path / "a")
    summary = json.loads((folder / "summary.json").read_text())
    summary["per_class_accuracy"] = {"airplane": 0.9, "cat": None, "dog": 0.2, "ship": 1.0}
    summary["confusion"] = [[90, 0, 10, 0], [0, 0, 0, 0], [1, 70, 20, 9], [0, 0, 0, 100]]
    (folder / "summary.json").write_text(json.dumps(summary))
    run = read_run(folder)
    rows = class_rows(run)
    assert [row.name for row in rows] == ["dog", "airplane", "ship", "cat"]
    assert (rows[0].mistaken_for, rows[0].mistakes, rows[0].images) == ("cat", 70, 100)
    assert rows[2].mistaken_for == ""
    pairs = [(pair.true, pair.predicted, pair.count) for pair in confused_pairs(run)]
    assert pairs == [("dog", "cat", 70), ("airplane", "dog", 10), ("dog", "ship", 9), ("dog", "airplane", 1)]
    page_of(folder)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half", None], ids=["empty", "half", "without an array"])
def test_damaged_samples_are_left_out(tmp_path, damage):
    folder = write_run(tmp_path / "a", samples=True)
    if damage is None:
        np.savez(folder / "samples.npz", images=np.zeros((1, 8, 8, 3), np.uint8))
    else:
        (folder / "samples.npz").write_bytes(damage)
    assert page_of(folder).tags.count("img") == 0


def test_grey_and_large_samples_are_drawn(tmp_path):
    folder = write_run(tmp_path / "a")
    for shape in ((2, 28, 28, 1), (2, 300, 200, 3)):
        images = np.full(shape, 7, np.uint8)
        np.savez(folder / "samples.npz", images=images, labels=[0, 99], predictions=[0, 1], confidence=[1.0, 0.5])
        page = page_of(folder)
        assert page.tags.count("img") == 2
        assert "class 99" in page.text
        assert len(page.html) < 200_000


def test_registered_versions_are_told(tmp_path):
    folder = write_run(tmp_path / "a")
    log = tmp_path / ".registry/model/log.jsonl"
    log.parent.mkdir(parents=True)
    act = Act(time="2026-11-22T10:00:00+00:00", act="promote", alias="staging", version="v1", before="", digest="d",
              recipe="quick", run="a", wandb="", test_accuracy=0.9, data_digest="aa", class_names=("x",),
              who="ann@node", forced=False, reason="")  # fmt: skip
    append_act(log, act)
    assert "Registered models" not in page_of(folder).text, "the run's name is that of one with other weights"
    change(folder, "summary", model_sha256="d")
    folder = folder.rename(tmp_path / "renamed")
    page = page_of(folder)
    assert "Registered models" in page.text
    assert "ann@node" in page.text
    assert "Registered models" not in page_of(write_run(tmp_path / "b")).text
    log.write_text("{}\n")
    assert "The registry's log is damaged" in page_of(folder).text


def test_runs_are_found_by_name_path_and_group(tmp_path):
    a, b = (write_run(tmp_path / "runs" / name, group=group) for name, group in (("a", "g"), ("b", "")))
    runs = tmp_path / "runs"
    assert all_runs(runs) == [a, b]
    assert find_runs(["b", str(a), "b"], runs) == [b, a]
    assert find_runs(["b"], runs, "g") == [b, a]
    for names, group, told in ((["aa"], "", "Did you mean 'a'"), ([], "gg", "Did you mean 'g'"), (["."], "", "no run")):
        with pytest.raises(DataError, match=told):
            find_runs(names, runs, group)


def test_a_run_that_does_not_tell_its_group_stops_no_other(tmp_path):
    a, b = (write_run(tmp_path / name, group="g") for name in ("a", "b"))
    (b / "tracking.json").write_text("{")
    told = []
    assert find_runs([], tmp_path, "g", told.append) == [a]
    assert len(told) == 1
    assert told[0].startswith("b is left out")


def test_a_name_that_is_too_long_for_a_file_is_no_run(tmp_path):
    with pytest.raises(DataError, match="There is no run"):
        find_runs(["a" * 300], tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "quick"}'])
def test_a_damaged_run_is_said_to_be_one(tmp_path, text):
    folder = write_run(tmp_path / "a")
    (folder / "recipe.json").write_text(text)
    with pytest.raises(DataError, match="cannot be read as a run"):
        read_run(folder)


@pytest.mark.parametrize(
    "odd",
    [
        {"selected_on": ..., "select_metric": ...},
        {"select_metric": None},
        {"per_class_accuracy": None},
        {"confusion": None},
        {"per_class_accuracy": ..., "confusion": ..., "model_sha256": ..., "best_metric": ..., "test_loss": None},
    ],
    ids=str,
)
def test_runs_of_another_version_are_told_too(tmp_path, odd):
    folder = write_run(tmp_path / "a", reported=0.9)
    change(folder, "summary", **odd)
    change(folder, "run", spec=None, hardware=None)
    assert "90.00%" in page_of(folder).text
    assert "90.00%" in page_of(folder, write_run(tmp_path / "b")).text


def test_values_of_curves_can_be_read_without_pointing(tmp_path):
    folder = write_run(tmp_path / "a", epochs=2)
    head, rows = epoch_table(read_run(folder))
    assert head == ["epoch", "train loss", "train accuracy", "validation loss", "validation accuracy", "learning rate"]
    assert rows[-1] == ["2", "0.1888", "60.00%", "0.1888", "80.00%", "0.01"]
    assert re.search(r"Values of the epochs[\s\w]*?learning rate\s*1\s*\d\.", page_of(folder).text)
    _, rows = epoch_table(read_run(write_run(tmp_path / "long", epochs=1201, steps=1)))
    assert len(rows) <= MOST_EPOCHS
    assert rows[-1][0] == "1201"
    assert epoch_table(read_run(write_run(tmp_path / "begun", finished=False, epochs=0)))[1] == []


def test_the_page_can_be_read_by_keyboard_and_by_ear(tmp_path):
    folder = write_run(tmp_path / "a", samples=True)
    many = write_run(tmp_path / "b", classes=[f"class {i}" for i in range(40)])
    for page in (page_of(folder), page_of(many), page_of(folder, many)):
        regions = [attributes for _, attributes in page.elements if attributes.get("class") == "scroll"]
        assert regions
        for region in regions:
            assert (region.get("tabindex"), region.get("role")) == ("0", "region")
            assert region.get("aria-label")
        assert {attributes.get("scope") for tag, attributes in page.elements if tag == "th"} <= {"col", "row"}


def luminance(colour):
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_numbers_in_cells_can_be_read_on_every_shade(tmp_path):
    """The rule of WCAG 2 for text: a contrast of at least 4.5 to 1, in both schemes."""
    html = page_of(write_run(tmp_path / "a")).html
    least, factor = re.search(
        r"background: color-mix\(in srgb, var\(--hue\) calc\((\d+)% \+ var\(--v\) \* (.*?)\), var\(--card\)\); }", html
    ).groups()
    assert factor == "var(--most)"
    assert "color" not in re.search(r"td\.deep {(.*?)}", html)[1], "the ink is that of the page"
    light, dark = html.split("@media (prefers-color-scheme: dark)")[:2]
    for scheme in (light, dark.split("\n  }\n")[0]):
        found = dict(re.findall(r"--(\w+): (#\w{6}|\d+%);", scheme))
        rgb = {
            name: [int(found[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
            for name in ("ink", "card", "blue", "orange")
        }
        for hue in ("blue", "orange"):
            for step in range(101):
                share = (int(least) + step / 100 * int(found["most"][:-1])) / 100
                ground = [share * a + (1 - share) * b for a, b in zip(rgb[hue], rgb["card"], strict=True)]
                low, high = sorted((luminance(ground), luminance(rgb["ink"])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (hue, step)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95, 1.0])
def test_shares_have_an_axis_of_shares(share):
    chart = line_chart("t", [Series("a", "c1", [1, 2, 3], [share] * 3)], write="{:.0%}".format, limits=(0.0, 1.0))
    shown = [int(tick.text[:-1]) for tick in chart.y_ticks]
    assert 0 <= min(shown) < max(shown) <= 100
    assert all(-1e-6 <= tick.place <= 100 + 1e-6 for tick in chart.y_ticks)


def test_an_accuracy_of_a_hundred_percent_is_the_upper_edge(tmp_path):
    folder = write_run(tmp_path / "a")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row |= dict.fromkeys(("train/accuracy", "validation/accuracy"), 1.0) if row["kind"] == "epoch" else {}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ticks = re.findall(r'<span class="y"[^>]*>(\d+)%</span>', page_of(folder).html)
    assert max(map(int, ticks)) == 100


def test_recipes_of_another_version_are_told(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "recipe.json").write_text(json.dumps(to_dict(RECIPES["quick"]) | {"newer": 1}))
    assert "cannot be compared" in page_of(folder).text


FLOATS = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(low=FLOATS, high=FLOATS, most=st.integers(2, 8))
def test_ticks_are_few_even_and_within(low, high, most):
    low, high = sorted((low, high))
    ticks = nice_ticks(low, high, most=most)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert len(ticks) <= most
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert ticks == sorted(ticks)


@given(values=st.lists(FLOATS, min_size=1, max_size=30), low=st.sampled_from([None, 0.0]))
def test_lines_stay_in_their_box(values, low):
    bounds = (low, None)
    chart = line_chart("t", [Series("a", "c1", list(range(len(values))), [abs(v) for v in values])], bounds=bounds)
    assert chart is not None
    places = [tuple(map(float, point.split(","))) for point in chart.lines[0].points.split()]
    assert len(places) == len(values)
    assert all(-0.1 <= x <= WIDTH + 0.1 and -0.1 <= y <= HEIGHT + 0.1 for x, y in places)
    assert all(-1e-6 <= tick.place <= 100 + 1e-6 for tick in (*chart.x_ticks, *chart.y_ticks))
    heights = [-y for _, y in places]
    order = sorted(range(len(values)), key=lambda i: abs(values[i]))
    assert all(heights[a] <= heights[b] for a, b in pairwise(order)), "higher values lie higher"
    assert sum(band.width for band in chart.bands) == pytest.approx(WIDTH)


def test_nothing_to_draw_is_no_chart():
    assert line_chart("t", [Series("a", "c1", [], [])]) is None
