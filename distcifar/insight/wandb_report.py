"""The report of runs as a W&B report: made and kept without a server, saved there when there is one.

Nothing else imports wandb-workspaces, whose version is pinned: a report becomes text only through a private call.
W&B draws the curves from the runs themselves; tables are markdown, written from the run directories.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distcifar.config import Recipe
from distcifar.errors import TrackingError
from distcifar.files import write_json
from distcifar.insight import report_markdown as markdown
from distcifar.insight.report_facts import promise
from distcifar.insight.report_registry import registry_rows
from distcifar.insight.report_run import RunRecord
from distcifar.tracking.wandb.run import has_key

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.reports.v2.interface import BlockTypes, PanelTypes

CURVES = (  # title, names of metrics as tracking/shipping/content.py gives them, what they are drawn over
    ("Loss", ("epoch/train/loss", "validation/loss"), "epoch"),
    ("Accuracy", ("epoch/train/accuracy", "validation/accuracy"), "epoch"),
    ("Loss of each step", ("train/loss",), "step"),
    ("Learning rate", ("train/lr",), "step"),
    ("Gradient norm", ("train/grad_norm",), "step"),
    ("Images per second", ("perf/images_per_s",), "step"),
)
KEPT = "report.json"
COLOURS = ("#1668dc", "#d9730d", "#14803c", "#8b3fd1", "#c2255c", "#0c8599", "#8a6d00", "#5c677d")
LONGEST_TITLE = 128
SEARCH = "distcifar report"  # with a digest of what it is about: by this it is found again on a server


def keep_and_publish(
    records: Sequence[RunRecord], path: Path, *, runs: Path, group: str, known: Mapping[str, Recipe], online: bool,
    later: str,
) -> str:  # fmt: skip
    """Keeps the W&B report at `path` and, `online` and with a key, publishes it; a sentence about what was done.

    later: the command that publishes it another time.
    """
    if all(run.identity is None for run in records):
        return f"No W&B report: W&B knows nothing of these runs yet. To send them: {later}"
    write_spec(build_report(records, runs=runs, group=group, known=known), path)
    if online and has_key():
        return f"Report in W&B: {publish(path)}"
    return f"The W&B report is kept in {path}. To publish it: {later}"


def build_report(
    records: Sequence[RunRecord], *, runs: Path, group: str = "", known: Mapping[str, Recipe] | None = None
) -> "wr.Report":
    """The report of `records`, in the W&B project of the first that W&B knows. Speaks with no server.

    runs: where the registry lies. known: recipes as they are published. Raises TrackingError if W&B knows none.
    """
    tracked = [run.identity for run in records if run.identity is not None]
    if not tracked:
        raise TrackingError(
            f"W&B has no run of {', '.join(run.name for run in records)}",
            "A W&B report draws its curves from W&B runs",
            "Send them first: python jobs/report.py sync",
        )
    import wandb_workspaces.reports.v2 as wr

    place = tracked[0]
    ids = [identity.id for identity in tracked if (identity.entity, identity.project) == (place.entity, place.project)]
    differences: list[BlockTypes] = [wr.H2("What differs"), _comparer(ids)] if len(records) > 1 else []
    names = ", ".join(run.name for run in records)
    title = group or (names if len(records) == 1 else f"{len(records)} runs: {names}")
    return wr.Report(
        entity=place.entity,
        project=place.project,
        title=title[:LONGEST_TITLE],
        description=f"{SEARCH} {_digest(group, ids)}",
        width="fluid",
        blocks=[
            wr.MarkdownBlock(markdown.results(records)),
            *_titled("Promise and result", markdown.promises(records, [promise(run, known or {}) for run in records])),
            wr.H2("Curves"),
            wr.PanelGrid(runsets=[_runset(ids)], panels=_curves()),
            *differences,
            *(block for run in records for block in _classes(run, alone=len(records) == 1)),
            *_titled("Registered models", markdown.versions(registry_rows(runs, records)[0])),
            *(block for run in records for block in _titled(f"What happened to {run.name}", markdown.events(run))),
        ],
    )


def write_spec(report: "wr.Report", path: Path) -> None:
    """Keeps `report` at `path`. Where the same one was published before, that is not forgotten."""
    kept = {
        "entity": report.entity,
        "project": report.project,
        "title": report.title,
        "description": report.description,
        "published": {},
        "spec": json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)),
    }
    if path.exists():
        before = _read(path)
        if before["description"] == kept["description"]:
            kept["published"] = before["published"]
    write_json(path, kept)


def kept_reports(folders: Sequence[Path], runs: Path) -> list[Path]:
    """The reports that are kept of runs, and beside the runs of several of them."""
    return [
        *(path for folder in folders if (path := folder / KEPT).exists()),
        *sorted(runs.glob(f"{Path(KEPT).stem}-*.json")),
    ]


def publish(path: Path, entity: str = "", project: str = "") -> str:
    """Saves the report kept at `path` to the W&B server, in place of what was saved of it before; its address.

    entity, project: where to, instead of where its first run is. Raises TrackingError; the report stays kept then.
    """
    from wandb_workspaces.reports.v2 import interface

    kept = _read(path)
    try:
        api = interface._get_api()
        entity = entity or kept["entity"] or str(api.default_entity)
        project = project or kept["project"]
        report = _report(kept, entity, project)
        report.id = _find(api, kept, entity, project)
        report.save()
        url = str(report.url)
    except (interface.wandb.errors.Error, ValueError, OSError) as error:
        raise TrackingError(
            f"The report could not be saved to W&B: {' '.join(str(error).split())}",
            "W&B reports need a server that answers, and a key",
            f"It is kept in {path}; python jobs/report.py sync saves it",
        ) from error
    write_json(path, kept | {"published": {"id": report.id, "url": url, "entity": entity, "project": project}})
    return url


def _report(kept: dict[str, Any], entity: str, project: str) -> "wr.Report":
    """The report that was kept, for its place, with the links that only now can be known."""
    from wandb_workspaces.reports.v2 import interface, internal

    site = interface.get_app_url(interface._get_api()).rstrip("/")
    spec = json.dumps(kept["spec"]).replace(markdown.SITE, site).replace(markdown.ENTITY, entity)
    model = internal.ReportViewspec(
        display_name=kept["title"],
        description=kept["description"],
        project=internal.Project(name=project, entity_name=entity),
        spec=internal.Spec.model_validate_json(spec),
    )
    report = interface.Report._from_model(model)
    report.width = kept["spec"]["width"]  # which _from_model leaves out
    return report


def _find(api: Any, kept: dict[str, Any], entity: str, project: str) -> str:
    """The id of this report on the server; empty where it has none.

    The server is asked, and not only the file: the run directory may be a copy, the last attempt may have ended
    between saving and writing down, and somebody may have deleted the report.
    """
    if project not in [found.name for found in api.projects(entity)]:
        return ""
    for report in api.reports(f"{entity}/{project}"):
        if report.id == kept["published"].get("id") or report.description == kept["description"]:
            return str(report.id)
    return ""


def _runset(ids: Sequence[str]) -> "wr.Runset":
    """Of the report's own project: one with a name could not be written without asking the server for its number."""
    import wandb_workspaces.reports.v2 as wr

    settings = {run: wr.RunSettings(color=colour) for run, colour in zip(ids, COLOURS, strict=False)}
    return wr.Runset(name="runs", filters=f"ID in {list(ids)!r}", run_settings=settings)


def _curves() -> "list[PanelTypes]":
    import wandb_workspaces.reports.v2 as wr

    panels: list[PanelTypes] = []
    for place, (title, metrics, axis) in enumerate(CURVES):
        layout = wr.Layout(x=12 * (place % 2), y=7 * (place // 2), w=12, h=7)
        panels.append(wr.LinePlot(title=title, x=axis, y=list(metrics), layout=layout))
    return panels


def _comparer(ids: Sequence[str]) -> "wr.PanelGrid":
    import wandb_workspaces.reports.v2 as wr

    panel = wr.RunComparer(diff_only="split", layout=wr.Layout(w=24, h=12))
    return wr.PanelGrid(runsets=[_runset(ids)], panels=[panel])


def _classes(run: RunRecord, *, alone: bool) -> "list[BlockTypes]":
    of = "" if alone else f" of {run.name}"
    return [
        *_titled(f"Accuracy of each class{of}", markdown.classes(run)),
        *_titled(f"Confusion{of}", markdown.confusion(run)),
    ]


def _titled(title: str, text: str) -> "list[BlockTypes]":
    """A heading and a text; nothing where there is no text."""
    import wandb_workspaces.reports.v2 as wr

    return [wr.H2(title), wr.MarkdownBlock(text)] if text else []


def _digest(group: str, ids: Sequence[str]) -> str:
    """What the report is about: a group, which may grow, or these runs."""
    return hashlib.sha256("\n".join([group] if group else sorted(ids)).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
        return {"published": {}} | {
            key: kept[key] for key in ("entity", "project", "title", "description", "published", "spec")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrackingError(
            f"{path} is no report: {error}",
            "A report is kept as jobs/report.py writes it",
            "Make it again: python jobs/report.py RUN",
        ) from error
