"""The W&B report is made without a server, is published once however often, and shows what people typed as text."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distcifar.errors import StorageError, TrackingError
from distcifar.insight import report_markdown as markdown
from distcifar.insight import wandb_report
from distcifar.insight.report_kept import KeptReport, kept_reports, read_kept, write_kept
from distcifar.insight.report_run import read_run
from distcifar.insight.wandb_panels import BEST, CURVES, is_logarithmic
from distcifar.insight.wandb_report import (
    build_report,
    keep_and_publish,
    publish,
)
from distcifar.recipes import RECIPES
from distcifar.tracking.identity import Identity, write_identity
from distcifar.tracking.shipping.content import METRICS
from tests.support.wandb_lab import KEY
from tests.unit.insight.report_runs import change, write_run

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # of wandb-workspaces
REPOSITORY = Path(__file__).parents[3]
PUBLISH = "import sys; from pathlib import Path; from distcifar.insight.wandb_report import publish; "
PUBLISH += "print(publish(Path(sys.argv[1])))"
SYNC = """import sys; from pathlib import Path; from distcifar.insight.wandb_report import publish_kept
from distcifar.recipes import RECIPES; runs = Path(sys.argv[1]); folders = [runs / name for name in sys.argv[2:]]
print(publish_kept(folders, only=bool(folders), runs=runs, known=RECIPES, announce=lambda told: None))"""
EDIT = """import sys, wandb_workspaces.reports.v2 as wr
report = wr.Report.from_url(sys.argv[1]); report.title = sys.argv[2]; report.save()"""
SPECS = "import json, wandb; print(json.dumps([found.spec for found in wandb.Api().reports('local-team/distcifar')]))"
EVIL = "<script>|a|`b`\n# c</script>"


def keep(path, *folders, group=""):
    """Keeps the report of `folders` at `path`; what is kept."""
    records = [read_run(folder) for folder in folders]
    wandb_report.keep(records, path, runs=folders[0].parent, group=group, known=RECIPES)
    return json.loads(path.read_text())


def blocks(kept, kind):
    return [block for block in kept["spec"]["blocks"] if block["type"] == kind]


def python(lab, home, program, *words, key=KEY):
    """A program on a machine of its own that knows only the stand-in server."""
    environment = lab.client(home) | {"WANDB_API_KEY": key}
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def test_metrics_are_drawn_as_they_are_shipped():
    axes = {name: axis for name, axis, _ in METRICS}
    for _, names, axis in CURVES:
        assert [axes[name] for name in names] == [axis] * len(names)


def test_a_report_is_kept_without_a_server(tmp_path):
    events = [("failure", "rank 1 was killed")]
    folders = [write_run(tmp_path / name, group="", reported=0.85, events=events) for name in ("a", "b")]
    alone, both = keep(tmp_path / "a.json", folders[0]), keep(tmp_path / "both.json", *folders, group="sweep")
    assert (alone["title"], both["title"], alone["project"]) == ("a", "sweep", "distcifar")
    for kept, ids in ((alone, ["a-abc123"]), (both, ["a-abc123", "b-abc123"])):
        grid = blocks(kept, "panel-grid")[0]["metadata"]
        assert grid["runSets"][0]["filters"]["filters"][0]["value"] == ids
        drawn = {name for panel in grid["panelBankSectionConfig"]["panels"] for name in panel["config"]["metrics"]}
        assert drawn == {name for _, names, _ in CURVES for name in names}
        text = "\n".join(block["content"] for block in blocks(kept, "markdown-block"))
        for part in ("90.00%", "Kept: 5.00 points above", "| airplane | 90.00% | 100 | cat (10) |", "| **cat** |",
                     "rank 1 was killed", "epochs 3 instead of 14"):  # fmt: skip
            assert part in text, part
    kinds = [panel["viewType"] for grid in blocks(both, "panel-grid") for panel in
             grid["metadata"]["panelBankSectionConfig"]["panels"]]  # fmt: skip
    assert kinds.count("Run Comparer") == 1
    assert KEY not in (tmp_path / "both.json").read_text()


def test_of_a_search_it_is_shown_what_was_searched(tmp_path):
    rates, batches = (0.001, 0.01, 0.1), (64, 128, 64)
    quick = RECIPES["quick"]
    folders = [
        write_run(tmp_path / f"{n}", group="s", optim=replace(quick.optim, lr=rate), batch_size=batch)
        for n, (rate, batch) in enumerate(zip(rates, batches, strict=True))
    ]
    grid = blocks(keep(tmp_path / "s.json", *folders, group="s"), "panel-grid")[2]["metadata"]
    parallel, importance, *scatter = grid["panelBankSectionConfig"]["panels"]
    columns = [(column["accessor"], column.get("log", False)) for column in parallel["config"]["columns"]]
    best = (f"summary:{BEST}", False)
    assert columns == [("config:batch_size.value", False), ("config:optim.value.lr", True), best]
    assert importance["config"]["targetKey"] == BEST
    assert [panel["config"]["xAxis"] for panel in scatter] == ["config:batch_size.value", "config:optim.value.lr"]
    assert {panel["config"]["yAxis"] for panel in scatter} == {f"summary:{BEST}"}
    assert ("validation/accuracy", "epoch", "max") in METRICS, "else W&B's summary has no such value"
    places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in (parallel, importance, *scatter)]
    assert len(set(places)) == len(places)


def test_an_axis_is_logarithmic_where_its_numbers_span_a_decade():
    assert is_logarithmic([1e-3, 0.1])
    for plain in ([0.1, 0.2], [0.0, 1.0], [], ["a", "b"], [None, 1.0], [True, 30]):
        assert not is_logarithmic(plain), plain


@pytest.mark.parametrize("odd", [{"finished": False, "epochs": 0}, {"validation": False}, {"nan": True}], ids=str)
def test_odd_runs_are_kept_too(tmp_path, odd):
    assert blocks(keep(tmp_path / "a.json", write_run(tmp_path / "a", group="", **odd)), "panel-grid")


def test_of_many_classes_the_hardest_and_the_most_confused_are_told(tmp_path):
    run = read_run(write_run(tmp_path / "a", classes=[f"class {i}" for i in range(150)]))
    assert "50 easier classes are not shown" in markdown.classes(run)
    assert markdown.confusion(run).count("\n") == 21


def test_what_people_typed_stays_in_its_cell(tmp_path):
    folder = write_run(tmp_path / "a_b", group="", classes=(EVIL, "b"), events=[(EVIL, EVIL)])
    run = read_run(folder)
    for table in (markdown.results([run]), markdown.classes(run), markdown.confusion(run), markdown.events(run)):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table
        assert "<script" not in table
    assert markdown.text("a_[b](c)*`$") == r"a\_\[b\]\(c\)\*\`\$"


def test_what_w_and_b_does_not_know_has_no_report(tmp_path):
    unknown, known = write_run(tmp_path / "a"), write_run(tmp_path / "b", group="")
    with pytest.raises(TrackingError, match="W&B has no run of a"):
        build_report([read_run(unknown)], runs=tmp_path)
    words = {"runs": tmp_path, "group": "", "known": RECIPES, "online": False, "later": "report.py sync"}
    assert "To send them: report.py sync" in keep_and_publish([read_run(unknown)], tmp_path / "a.json", **words)
    assert not (tmp_path / "a.json").exists()
    told = keep_and_publish([read_run(run) for run in (unknown, known)], known / "report.json", **words)
    assert told == f"The W&B report is kept in {known / 'report.json'}. To publish it: report.py sync"
    (tmp_path / "report-sweep.json").write_text("{}")
    assert kept_reports([unknown, known], tmp_path) == [known / "report.json", tmp_path / "report-sweep.json"]
    with pytest.raises(TrackingError, match="is no report"):
        publish(tmp_path / "report-sweep.json")


@pytest.mark.slow
def test_published_again_it_is_the_same_report(tmp_path, lab):
    home, folder = tmp_path / "home", write_run(tmp_path / "runs/a", group="")
    path = folder / "report.json"
    kept = keep(path, folder)
    first = python(lab, home, PUBLISH, path)
    assert first.returncode == 0, first.stderr
    assert json.loads(path.read_text())["published"][lab.url]["url"] == first.stdout.strip()
    keep(path, folder)  # made anew: it is known that it was published
    assert json.loads(path.read_text())["published"][lab.url]["url"] == first.stdout.strip()
    path.unlink()
    kept = keep(path, folder)  # as on another machine, or after an end between saving and writing down
    again = python(lab, home, PUBLISH, path)
    assert again.stdout == first.stdout, again.stderr
    assert [report["title"] for report in lab.state()["reports"]] == ["a"]
    (spec,) = json.loads(python(lab, home, SPECS).stdout)
    sent = json.dumps(kept["spec"]).replace(markdown.SITE, lab.url).replace(markdown.ENTITY, "local-team")
    assert spec == json.loads(sent), "what is published is what was kept"
    assert f"({lab.url}/local-team/distcifar/runs/a-abc123)" in json.dumps(spec)
    assert KEY not in path.read_text()


@pytest.mark.slow
def test_a_group_that_grows_keeps_its_report_and_another_has_its_own(tmp_path, lab):
    home, path = tmp_path / "home", tmp_path / "runs/report-sweep.json"
    folders = [write_run(tmp_path / "runs" / name, group="sweep") for name in ("a", "b")]
    for members, group in ((folders[:1], "sweep"), (folders, "sweep"), (folders, "other")):
        keep(path, *members, group=group)
        done = python(lab, home, PUBLISH, path)
        assert done.returncode == 0, done.stderr
    assert sorted(report["title"] for report in lab.state()["reports"]) == ["other", "sweep"]


def titles(lab):
    return sorted(report["title"] for report in lab.state()["reports"])


def test_sync_publishes_what_is_true_then_and_nothing_twice(tmp_path, lab):
    runs, home = tmp_path / "runs", tmp_path / "home"
    folder = write_run(runs / "a", group="", finished=False)
    summary = write_run(tmp_path / "finished/a") / "summary.json"
    path = folder / "report.json"
    keep(path, folder)
    summary.rename(folder / "summary.json")  # it has finished since
    first = python(lab, home, SYNC, runs, "a")
    assert first.stdout == "[]\n", first.stderr
    (spec,) = json.loads(python(lab, home, SPECS).stdout)
    assert "90.00%" in json.dumps(spec), "the report is as it was when it was kept"
    assert "so far" not in json.dumps(spec)
    edited = python(lab, home, EDIT, read_kept(path).published[lab.url]["url"], "with remarks of ours")
    assert edited.returncode == 0, edited.stderr
    assert python(lab, home, SYNC, runs, "a").stdout == "[]\n"
    assert titles(lab) == ["with remarks of ours"], "what people have changed is lost"
    change(folder, "summary", test_accuracy=0.5)
    assert python(lab, home, SYNC, runs, "a").stdout == "[]\n"
    assert titles(lab) == ["a"]
    assert len(lab.state()["reports"]) == 1


def test_sync_goes_on_after_a_report_that_cannot_be_read(tmp_path, lab):
    runs = tmp_path / "runs"
    folders = [write_run(runs / name, group="") for name in ("a", "b")]
    (folders[0] / "report.json").write_text("{}")
    keep(folders[1] / "report.json", folders[1])
    done = python(lab, tmp_path / "home", SYNC, runs, "a", "b")
    assert "a/report.json is not published." in done.stdout, done.stderr
    assert titles(lab) == ["b"]


def test_reports_of_other_runs_are_left_alone(tmp_path):
    a, b, c = (write_run(tmp_path / name, group="") for name in "abc")
    for name, folders in (("a+b", (a, b)), ("b+c", (b, c))):
        keep(tmp_path / f"report-{name}.json", *folders)
    (tmp_path / "report-odd.json").write_text("")

    def names(*folders, only=True):
        return [path.stem for path in kept_reports(folders, tmp_path, only=only)]

    assert names(a) == []
    assert names(a, b) == ["report-a+b"]
    assert names(a, only=False) == ["report-a+b", "report-b+c", "report-odd"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"spec": 1}', "\x00"])
def test_a_damaged_or_foreign_file_is_written_anew(tmp_path, text):
    folder = write_run(tmp_path / "a", group="")
    path = folder / "report.json"
    whole = keep(path, folder)
    for damaged in (text, json.dumps(whole | {"published": []}), json.dumps(whole | {"runs": None})):
        path.write_text(damaged)
        assert keep(path, folder)["title"] == "a"


def test_where_a_report_cannot_be_kept_a_remedy_is_told(tmp_path):
    folder = write_run(tmp_path / "a", group="")
    with pytest.raises(StorageError, match="--html-only"):
        keep(folder / "recipe.json" / "report.json", folder)


def test_a_report_is_known_by_all_of_its_runs(tmp_path):
    known, first, second = (
        write_run(tmp_path / name, group=group) for name, group in (("k", ""), ("a", None), ("b", None))
    )
    told = {keep(tmp_path / f"{len(folders)}.json", *folders)["description"] for folders in
            ((known,), (known, first), (known, first, second))}  # fmt: skip
    assert len(told) == 3
    assert (
        keep(tmp_path / "4.json", known, first)["description"]
        != keep(tmp_path / "5.json", known, second)["description"]
    )
    write_identity(first, Identity("a-abc123", "a", "distcifar"))
    again = keep(tmp_path / "2.json", known, first)
    assert again["description"] in told, "W&B has heard of a run since: the report is the same"


def test_a_group_of_somebody_else_with_the_same_name_has_its_own_report(tmp_path):
    ours, theirs = (write_run(tmp_path / who / who, group="widths") for who in ("ours", "theirs"))
    both = write_run(tmp_path / "ours/later", group="widths")
    change(both, "run", started="2026-11-23T09:00:00+00:00")
    said = keep(tmp_path / "ours/report-widths.json", ours, group="widths")["description"]
    assert keep(tmp_path / "theirs/report-widths.json", theirs, group="widths")["description"] != said
    (tmp_path / "ours/report-widths.json").unlink()
    assert keep(tmp_path / "ours/report-widths.json", ours, both, group="widths")["description"] == said


def test_the_same_file_of_other_runs_is_another_report(tmp_path):
    path = tmp_path / "a/report.json"
    before = keep(path, write_run(tmp_path / "a", group=""))
    write_kept(path, KeptReport(**before | {"published": {"https://w": {"id": "x", "url": "u", "digest": "d"}}}))
    assert keep(path, path.parent)["published"]
    write_identity(path.parent, Identity("a-other1", "a", "distcifar"))
    after = keep(path, path.parent)
    assert after["published"] == {}, "a run of the same name has taken the place of the first"
    assert after["description"] != before["description"]


def test_addresses_are_quoted(tmp_path):
    folder = write_run(tmp_path / "a", group="")
    write_identity(folder, Identity("a(1) b", "a", "my project", "team"))
    assert f"({markdown.SITE}/team/my%20project/runs/a%281%29%20b)" in markdown.results([read_run(folder)])


def test_a_refused_report_stays_kept(tmp_path, lab):
    path = write_run(tmp_path / "runs/a", group="") / "report.json"
    before = keep(path, path.parent)
    refused = python(lab, tmp_path / "home", PUBLISH, path, key="0" * 40)
    assert refused.returncode != 0
    assert "TrackingError: The report could not be saved to W&B" in refused.stderr
    assert json.loads(path.read_text()) == before
    assert lab.state()["reports"] == []
