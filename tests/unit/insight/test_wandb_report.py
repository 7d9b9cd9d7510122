"""The W&B report is made without a server, is published once however often, and shows what people typed as text."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distcifar.errors import TrackingError
from distcifar.insight import report_markdown as markdown
from distcifar.insight.report_run import read_run
from distcifar.insight.wandb_report import (
    CURVES,
    build_report,
    keep_and_publish,
    kept_reports,
    publish,
    write_spec,
)
from distcifar.recipes import RECIPES
from distcifar.tracking.shipping.content import METRICS
from tests.support.wandb_lab import KEY
from tests.unit.insight.report_runs import write_run

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # of wandb-workspaces
REPOSITORY = Path(__file__).parents[3]
PUBLISH = "import sys; from pathlib import Path; from distcifar.insight.wandb_report import publish; "
PUBLISH += "print(publish(Path(sys.argv[1])))"
SPECS = "import json, wandb; print(json.dumps([found.spec for found in wandb.Api().reports('local-team/distcifar')]))"
EVIL = "<script>|a|`b`\n# c</script>"


def keep(path, *folders, group=""):
    """Keeps the report of `folders` at `path`; what is kept."""
    records = [read_run(folder) for folder in folders]
    write_spec(build_report(records, runs=folders[0].parent, group=group, known=RECIPES), path)
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
                     "rank 1 was killed", "epochs 3 instead of 6"):  # fmt: skip
            assert part in text, part
    kinds = [panel["viewType"] for grid in blocks(both, "panel-grid") for panel in
             grid["metadata"]["panelBankSectionConfig"]["panels"]]  # fmt: skip
    assert kinds.count("Run Comparer") == 1
    assert KEY not in (tmp_path / "both.json").read_text()


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


def test_published_again_it_is_the_same_report(tmp_path, lab):
    home, folder = tmp_path / "home", write_run(tmp_path / "runs/a", group="")
    path = folder / "report.json"
    kept = keep(path, folder)
    first = python(lab, home, PUBLISH, path)
    assert first.returncode == 0, first.stderr
    assert json.loads(path.read_text())["published"]["url"] == first.stdout.strip()
    keep(path, folder)  # made anew: it is known that it was published
    assert json.loads(path.read_text())["published"]["entity"] == "local-team"
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


def test_a_group_that_grows_keeps_its_report_and_another_has_its_own(tmp_path, lab):
    home, path = tmp_path / "home", tmp_path / "runs/report-sweep.json"
    folders = [write_run(tmp_path / "runs" / name, group="sweep") for name in ("a", "b")]
    for members, group in ((folders[:1], "sweep"), (folders, "sweep"), (folders, "other")):
        keep(path, *members, group=group)
        done = python(lab, home, PUBLISH, path)
        assert done.returncode == 0, done.stderr
    assert sorted(report["title"] for report in lab.state()["reports"]) == ["other", "sweep"]


def test_a_refused_report_stays_kept(tmp_path, lab):
    path = write_run(tmp_path / "runs/a", group="") / "report.json"
    before = keep(path, path.parent)
    refused = python(lab, tmp_path / "home", PUBLISH, path, key="0" * 40)
    assert refused.returncode != 0
    assert "TrackingError: The report could not be saved to W&B" in refused.stderr
    assert json.loads(path.read_text()) == before
    assert lab.state()["reports"] == []
