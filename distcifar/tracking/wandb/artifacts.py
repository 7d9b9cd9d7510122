"""A run's files as W&B artifacts: training state and models up, training state down again, data named."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distcifar.errors import TrackingError
from distcifar.tracking.identity import Identity
from distcifar.tracking.shipping.uploads import CHECKPOINT, RUN, Upload
from distcifar.tracking.wandb.run import require_key

if TYPE_CHECKING:
    import wandb

TYPES = {"state": "train-state", "model": "model"}
KEPT_ALIASES = ("latest", "best")
STATE_FILES = re.compile(
    rf"{CHECKPOINT}/(state\.safetensors|state\.json|model\.safetensors|model\.json|recipe\.json|manifest\.json)"
    rf"|{RUN}/(metrics(-[0-9]+)?\.jsonl|run\.json|tracking\.json)"
)
MOST_BYTES = 64 * 10**9  # of one training state: more is not what it says it is


def upload(run: "wandb.Run", identity: Identity, found: Upload) -> str:
    """Sends `found` and waits for it: its version. The same content again is the same version."""
    import wandb

    try:
        name = identity.artifact(found.kind)
        artifact = wandb.Artifact(name, type=TYPES[found.kind], metadata=dict(found.metadata))
        # No copy in the client's staging area, nor in its cache: the folder stays until this is done.
        artifact.add_dir(str(found.folder), policy="immutable", skip_cache=True)
        logged = run.log_artifact(artifact, aliases=["latest", *found.aliases])
        logged.wait(timeout=3600)
        return logged.version
    except (wandb.errors.Error, ValueError, OSError, TimeoutError) as error:
        raise TrackingError(
            f"The {TYPES[found.kind]} of {found.key} could not be sent to W&B: {error}",
            "It stays in the run directory",
            "It is tried again; later with `python jobs/report.py sync`",
        ) from error


def prune_states(identity: Identity, *, keep: int) -> list[str]:
    """Deletes the versions of this run's training state but the newest `keep`, `latest` and `best`; which ones."""
    import wandb

    with _told(f"Old states of {identity.id} could not be removed"):
        versions = list(wandb.Api().artifacts(TYPES["state"], f"{_project(identity)}/{identity.artifact('state')}"))
        versions.sort(key=lambda version: int(version.version[1:]), reverse=True)
        dropped = [version for version in versions[keep:] if not set(KEPT_ALIASES) & set(version.aliases)]
        for version in dropped:
            version.delete(delete_aliases=True)
    return [version.version for version in dropped]


@contextmanager
def _told(found: str) -> Iterator[None]:
    """Within, what the client raises is told as TrackingError."""
    import wandb

    try:
        yield
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise TrackingError(f"{found}: {error}", "It is tried again", "Nothing is lost") from error


def use_data(run: "wandb.Run", dataset: str, digest: str, folder: Path, *, images: bool = False) -> None:
    """Notes the prepared data as used by the run: their name and digest, and the sealed files only if `images`.

    The same data are the same version on whichever machine: the folder, which need not be here, is a note only.
    """
    import wandb

    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", dataset)[-60:].strip("-")  # which may be a path
    try:
        facts = {"digest": digest, "folder": str(folder)}
        artifact = wandb.Artifact(f"{name}-{digest[:12]}", type="dataset", metadata=facts)
        with artifact.new_file("data.json") as file:
            json.dump({"dataset": dataset, "digest": digest}, file)
        if images:
            artifact.add_dir(str(folder), name="prepared", policy="immutable", skip_cache=True)
        run.use_artifact(artifact)
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise TrackingError(
            f"The data of the run could not be noted in W&B: {error}", "They stay where they are", "It is tried again"
        ) from error


def _project(identity: Identity) -> str:
    return "/".join(part for part in (identity.entity, identity.project) if part)


def fetch_state(reference: str, into: Path, *, most_bytes: int = MOST_BYTES) -> Path:
    """Downloads the training state `wandb:ENTITY/PROJECT/RUN[:ALIAS]` as a run directory in `into`, and returns it.

    Only files with the names of a training state are asked for, one by one, so nothing is written anywhere else.
    Nothing is verified here but names and sizes. Raises TrackingError.
    """
    import wandb

    project, run, alias = parse_reference(reference)
    require_key()
    try:
        artifact = wandb.Api().artifact(f"{project}/{run}-state:{alias}", type=TYPES["state"])
        entries = artifact.manifest.entries
        # A reference is to a file elsewhere: on this machine, perhaps.
        foreign = sorted(name for name, entry in entries.items() if entry.ref or not STATE_FILES.fullmatch(name))
        size = sum(entry.size or 0 for entry in entries.values())
        _require(not foreign, reference, f"it holds {', '.join(map(repr, foreign[:3]))}")
        _require(size <= most_bytes, reference, f"it has {size:,} bytes, and at most {most_bytes:,} are taken")
        free = shutil.disk_usage(into).free
        _require(2 * size < free, reference, f"it has {size:,} bytes and {free:,} are free; twice as many are needed")
        raw = into / "raw"
        for name in entries:
            artifact.get_entry(name).download(root=str(raw), skip_cache=True)
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise TrackingError(
            f"{reference} cannot be fetched: {error}",
            "--resume wandb:ENTITY/PROJECT/RUN[:ALIAS] names a run whose training state is on the server",
            "Look at the run's artifacts for its id and aliases; WANDB_BASE_URL and WANDB_API_KEY say which server",
        ) from error
    return _as_run(raw, into / "run", reference)


def parse_reference(reference: str) -> tuple[str, str, str]:
    """(ENTITY/PROJECT, RUN, ALIAS) of wandb:ENTITY/PROJECT/RUN[:ALIAS]. Raises TrackingError."""
    found = re.fullmatch(r"wandb:([\w.-]+/[\w.-]+|[\w.-]+)/([\w-]+)(?::([\w.-]+))?", reference)
    if found is None:
        raise TrackingError(
            f"--resume is {reference!r}",
            "It has the form wandb:ENTITY/PROJECT/RUN[:ALIAS]; RUN is the id at the end of the run's address",
            "For example wandb:team/distcifar/first-3fa9c2:best",
        )
    return found[1], found[2], found[3] or "latest"


def _as_run(raw: Path, run: Path, reference: str) -> Path:
    """The files of a training state, laid out as the run directory that they came from."""
    try:
        (raw / RUN).rename(run)
        step = json.loads((raw / CHECKPOINT / "state.json").read_text())["progress"]["step"]
        (run / "checkpoints").mkdir()
        (raw / CHECKPOINT).rename(run / "checkpoints" / f"step-{int(step):08d}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrackingError(
            f"{reference} is not a training state: {error}", "It holds a checkpoint and its journal", "Use another one"
        ) from error
    return run


def _require(fits: bool, reference: str, found: str) -> None:  # noqa: FBT001 (an assertion)
    if not fits:
        raise TrackingError(
            f"{reference} is not taken: {found}", "Only what a training state consists of is downloaded", "Check it"
        )


def aliases_of(identity: Identity, kind: str, version: str) -> list[str] | None:
    """The aliases of that version of this run's artifacts of a kind; None if the server does not have it."""
    import wandb

    try:
        return list(wandb.Api().artifact(f"{_project(identity)}/{identity.artifact(kind)}:{version}").aliases)
    except (wandb.errors.CommError, ValueError):
        return None


@dataclass(frozen=True)
class Seen:
    """A run as the server has it: the numbers of its rows, in order."""

    state: str
    url: str
    steps: list[int]


def look_up(identity: Identity) -> Seen:
    """Asks the server for the run. Raises TrackingError where it does not answer or does not know it."""
    import wandb

    try:
        run = wandb.Api().run(identity.path)
        return Seen(run.state, run.url, [row["_step"] for row in run.scan_history(keys=["_step"])])
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise TrackingError(
            f"W&B cannot be asked about {identity.path}: {error}", "What was sent is looked at again", "Try it again"
        ) from error
