"""The report of runs as a W&B report: made and kept without a server, saved there when there is one.

Nothing but this and its panels imports wandb-workspaces, whose version is pinned: a report becomes text only through
a private call. W&B draws the curves from the runs themselves; tables are markdown, written from the run directories.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from distcifar.config import Recipe
from distcifar.errors import DistcifarError, TrackingError
from distcifar.insight import report_markdown as markdown
from distcifar.insight.report_facts import promise
from distcifar.insight.report_kept import KeptReport, kept_reports, read_kept, relative, write_kept
from distcifar.insight.report_registry import registry_rows
from distcifar.insight.report_run import RunRecord, find_runs, read_run
from distcifar.insight.wandb_panels import comparer, curves, fields_and_accuracy, varied_fields
from distcifar.tracking.wandb.run import has_key

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.reports.v2.interface import BlockTypes

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
    keep(records, path, runs=runs, group=group, known=known)
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
    varied = varied_fields(records)
    differences: list[BlockTypes] = [wr.H2("What differs"), comparer(ids)] if len(records) > 1 else []
    if len(records) > 2 and varied:
        differences += [wr.H2("Fields and accuracy"), fields_and_accuracy(ids, varied)]
    names = ", ".join(run.name for run in records)
    title = group or (names if len(records) == 1 else f"{len(records)} runs: {names}")
    return wr.Report(
        entity=place.entity,
        project=place.project,
        title=title[:LONGEST_TITLE],
        description=f"{SEARCH} {_digest(group, records)}",
        width="fluid",
        blocks=[
            wr.MarkdownBlock(markdown.results(records)),
            *_titled("Promise and result", markdown.promises(records, [promise(run, known or {}) for run in records])),
            wr.H2("Curves"),
            curves(ids),
            *differences,
            *(block for run in records for block in _classes(run, alone=len(records) == 1)),
            *_titled("Registered models", markdown.versions(registry_rows(runs, records)[0])),
            *(block for run in records for block in _titled(f"What happened to {run.name}", markdown.events(run))),
        ],
    )


def keep(
    records: Sequence[RunRecord], path: Path, *, runs: Path, group: str = "", known: Mapping[str, Recipe] | None = None
) -> None:
    """Keeps the report of `records` at `path`. Where the same one was published before, that is not forgotten."""
    report = build_report(records, runs=runs, group=group, known=known)
    kept = KeptReport(
        entity=report.entity or "",
        project=report.project,
        title=report.title,
        description=report.description,
        group=group,
        runs={relative(run.folder, path): run.identity.id if run.identity is not None else "" for run in records},
        published={},
        spec=json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)),
    )
    before = _before(path)
    if before is not None and kept.succeeds(before):
        kept = replace(kept, description=before.description, published=before.published)
    write_kept(path, kept)


def publish(path: Path) -> str:
    """Saves the report kept at `path` to the W&B server, in place of what was saved of it before; its address.

    What is there already is not saved again: somebody may have written more into it. Raises TrackingError; the report
    stays kept then.
    """
    from wandb_workspaces.reports.v2 import interface

    kept = read_kept(path)
    try:
        api = interface._get_api()
        site = interface.get_app_url(api).rstrip("/")
        noted = kept.published.get(site, {})
        entity = kept.entity or str(api.default_entity)
        report = _report(kept, entity, site)
        report.id = _find(api, kept, noted.get("id", ""), entity)
        if report.id and (report.id, kept.digest) == (noted.get("id"), noted.get("digest")):
            return noted["url"]
        report.save()
        url = str(report.url)
    except (interface.wandb.errors.Error, ValueError, OSError) as error:
        raise TrackingError(
            f"The report could not be saved to W&B: {' '.join(str(error).split())}",
            "W&B reports need a server that answers, and a key",
            f"It is kept in {path}; python jobs/report.py sync saves it",
        ) from error
    saved = {"id": str(report.id), "url": url, "digest": kept.digest}
    write_kept(path, replace(kept, published={**kept.published, site: saved}))
    return url


def publish_kept(
    folders: Sequence[Path], *, only: bool, runs: Path, known: Mapping[str, Recipe], announce: Callable[[str], None]
) -> list[str]:
    """Makes the reports that are kept of runs anew and publishes them; sentences about those that could not be.

    Anew, because since they were kept runs have gone on, and models were promoted. only: no reports of other runs.
    """
    problems = []
    for path in kept_reports(folders, runs, only=only):
        try:
            _renew(path, runs, known, announce)
            announce(f"Report in W&B: {publish(path)}")
        except DistcifarError as error:
            problems.append(f"{path} is not published. {error}")
    return problems


def _renew(path: Path, runs: Path, known: Mapping[str, Recipe], announce: Callable[[str], None]) -> None:
    kept = read_kept(path)
    folders = [Path(os.path.normpath(path.absolute().parent / name)) for name in kept.runs]
    if kept.group:  # which may have grown, or have lost a run
        there = [folder for folder in folders if (folder / "recipe.json").exists()]
        folders = list(
            dict.fromkeys([*there, *find_runs([], Path(os.path.normpath(runs.absolute())), kept.group, announce)])
        )
    keep([read_run(folder) for folder in folders], path, runs=runs, group=kept.group, known=known)


def _before(path: Path) -> KeptReport | None:
    """What was kept at `path`; a file that cannot be read as a report is as none."""
    try:
        return read_kept(path)
    except TrackingError:
        return None


def _report(kept: KeptReport, entity: str, site: str) -> "wr.Report":
    """The report that was kept, for its place, with the links that only now can be known."""
    from wandb_workspaces.reports.v2 import interface, internal

    spec = json.dumps(kept.spec).replace(markdown.SITE, site).replace(markdown.ENTITY, quote(entity, safe=""))
    model = internal.ReportViewspec(
        display_name=kept.title,
        description=kept.description,
        project=internal.Project(name=kept.project, entity_name=entity),
        spec=internal.Spec.model_validate_json(spec),
    )
    report = interface.Report._from_model(model)
    report.width = kept.spec["width"]  # which _from_model leaves out
    return report


def _find(api: Any, kept: KeptReport, noted: str, entity: str) -> str:
    """The id of this report on the server; empty where it has none.

    The server is asked, and not only the file: the run directory may be a copy, the last attempt may have ended
    between saving and writing down, and somebody may have deleted the report.
    """
    if kept.project not in [found.name for found in api.projects(entity)]:
        return ""
    for report in api.reports(f"{entity}/{kept.project}"):
        if report.id == noted or report.description == kept.description:
            return str(report.id)
    return ""


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


def _digest(group: str, records: Sequence[RunRecord]) -> str:
    """What the report is about: these runs, or a group, told by its first run from what others call the same."""
    about = sorted(f"{run.name} {run.identity.id if run.identity is not None else ''}" for run in records)
    if group:
        begun = [(str(run.facts.get("started")), run.identity.id) for run in records if run.identity is not None]
        about = [group, min(begun)[1]]
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
