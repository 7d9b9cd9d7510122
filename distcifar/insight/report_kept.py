"""The W&B report of runs as it waits in a file: what it says, of which runs it is, and where it was published."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from distcifar.errors import StorageError, TrackingError
from distcifar.files import write_json

KEPT = "report.json"
DRAWN = ("id", "__id__")  # of parts of a spec: random, and other ones each time it is built


@dataclass(frozen=True)
class KeptReport:
    """A report before it has a place on a server."""

    entity: str  # empty: the account of the key
    project: str
    title: str
    description: str  # by it the report is found again on a server
    group: str
    runs: Mapping[str, str]  # folders, from that of the file, and ids in W&B; no id: W&B did not know the run
    published: Mapping[str, Mapping[str, str]]  # by server: id, url and digest
    spec: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Changes when the report says something else."""
        said = [self.entity, self.project, self.title, _without_ids(self.spec)]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def succeeds(self, before: "KeptReport") -> bool:
        """Whether this is `before`, made anew: of the same runs, or of the same group, which may have grown."""
        now, then = ({*report.runs.values()} - {""} for report in (self, before))
        if self.group or before.group:
            return self.group == before.group and bool(now & then)
        return self.runs.keys() == before.runs.keys() and then <= now


def read_kept(path: Path) -> KeptReport:
    """The report kept at `path`. Raises TrackingError where there is none."""
    try:
        found = json.loads(path.read_text())
        kept = KeptReport(**{field.name: found[field.name] for field in fields(KeptReport)})
        for value in (kept.runs, kept.published, kept.spec, *kept.published.values()):
            if not isinstance(value, dict):
                raise TypeError(f"{value!r} is no table")
        return kept
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrackingError(
            f"{path} is no report: {error}",
            "A report is kept as jobs/report.py writes it",
            "Make it again: python jobs/report.py RUN; or remove the file",
        ) from error


def write_kept(path: Path, kept: KeptReport) -> None:
    """Keeps `kept` at `path`. Raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(kept))
    except OSError as error:
        raise StorageError(
            f"The W&B report cannot be kept in {path}: {error.strerror}",
            "It is kept beside its runs until it is published",
            "Make the folder writable, or leave W&B out: --html-only",
        ) from error


def kept_reports(folders: Sequence[Path], runs: Path, *, only: bool = False) -> list[Path]:
    """The reports that are kept of runs, and beside the runs of several of them.

    only: of several runs only where all of them are among `folders`.
    """
    of_several = sorted(runs.glob(f"{Path(KEPT).stem}-*.json"))
    return [
        *(path for folder in folders if (path := folder / KEPT).exists()),
        *(path for path in of_several if not only or _is_of(path, folders)),
    ]


def relative(folder: Path, path: Path) -> str:
    """`folder` as the report at `path` names it, so that both can be moved together."""
    return os.path.relpath(folder.absolute(), path.absolute().parent)


def _is_of(path: Path, folders: Sequence[Path]) -> bool:
    try:
        return set(read_kept(path).runs) <= {relative(folder, path) for folder in folders}
    except TrackingError:
        return False  # of which runs it is, nobody knows: told when all are sent


def _without_ids(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_ids(inner) for key, inner in value.items() if key not in DRAWN}
    return [_without_ids(inner) for inner in value] if isinstance(value, list) else value
