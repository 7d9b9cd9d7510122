"""Sends recorded runs to W&B afterwards, and looks through W&B's API at what has arrived."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import Timeout
from rich import box
from rich.table import Table

from distcifar.errors import TrackingError
from distcifar.tracking.identity import Identity, new_identity, read_identity, write_identity
from distcifar.tracking.outcome import outcome
from distcifar.tracking.registry.registry import Registry
from distcifar.tracking.rows import iter_rows
from distcifar.tracking.shipping.content import shipped_rows
from distcifar.tracking.shipping.ship import Shipping, ship, shipping_lock
from distcifar.tracking.shipping.uploads import read_sent
from distcifar.tracking.wandb import registry
from distcifar.tracking.wandb.artifacts import aliases_of, look_up
from distcifar.tracking.wandb.run import require_key

Announce = Callable[[str], None]


@dataclass(frozen=True)
class SyncResult:
    """What W&B has of a run. missing: sentences; empty if it has everything."""

    folder: Path
    state: str
    url: str = ""
    rows: int = 0
    artifacts: int = 0
    missing: list[str] = field(default_factory=list)


def sync_runs(
    folders: list[Path], announce: Announce, *, project: str = "distcifar", entity: str = ""
) -> list[SyncResult]:
    """Sends what W&B lacks of each run, one after another; a run that is going on is sent as far as it is.

    project, entity: of runs that were recorded before there was tracking. Raises TrackingError without a key, and
    nothing for a run that cannot be sent: its result says why.
    """
    require_key()
    results = []
    for folder in folders:
        announce(f"Sending {folder.name} ...")
        try:
            identity = read_identity(folder)
            if identity is None:
                identity = new_identity(folder.name, project, entity)
                write_identity(folder, identity)
            url = _send(folder, identity, announce)
            results.append(verified(folder, identity, url))
        except TrackingError as error:
            results.append(SyncResult(folder, outcome(folder).kind, missing=[str(error)]))
    return results


def sync_registries(runs: Path, *, project: str, entity: str = "", announce: Announce) -> None:
    """Does in W&B what was promoted and rolled back in the registries of a runs folder. Raises TrackingError."""
    for log in sorted(runs.glob(".registry/*/log.jsonl")):
        registry.sync(Registry(runs, log.parent.name), project=project, entity=entity, announce=announce)


def sync_table(results: list[SyncResult]) -> Table:
    """What W&B has of each run, and what it lacks."""
    table = Table("run", "in W&B", "rows", "artifacts", "missing", box=box.SIMPLE)
    for result in results:
        lacks = "\n".join(result.missing) or "nothing"
        table.add_row(result.folder.name, result.state, f"{result.rows:,}", str(result.artifacts), lacks)
        if result.url:
            table.add_row("", f"[link={result.url}]{result.url}[/link]")
    return table


def _send(folder: Path, identity: Identity, announce: Announce) -> str:
    """Ships the run, with the artifacts that it was started with, unless another process does; its address."""
    lock = shipping_lock(folder, "online")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        announce(f"{folder.name} is being sent by the program that trains it.")
        return ""
    with lock:
        return ship(folder, identity, "online", _how(folder), lambda: True)


def _how(folder: Path) -> Shipping:
    spec = json.loads((folder / "run.json").read_text()).get("spec", {})
    default = Shipping("online")
    return replace(
        default, policy=spec.get("upload", default.policy), keep_states=spec.get("keep_uploads", default.keep_states)
    )


def verified(folder: Path, identity: Identity, url: str) -> SyncResult:
    """What W&B says it has of the run in `folder`, compared with the run directory. Raises TrackingError."""
    seen = look_up(identity)
    there = seen.steps
    artifacts, lost = _artifacts(folder, identity)
    expected = {step for step, _ in shipped_rows(iter_rows(folder))}
    missing = list(lost)
    if absent := expected - set(there):
        missing.append(f"{len(absent)} of {len(expected)} rows, the first of step {min(absent)}")
    if len(there) != len(set(there)):
        missing.append(f"{len(there) - len(set(there))} rows are there twice")
    return SyncResult(folder, seen.state, url or seen.url, len(set(there)), artifacts, missing)


def _artifacts(folder: Path, identity: Identity) -> tuple[int, list[str]]:
    """How many of the run's artifacts W&B has, and what is lost of those that were sent."""
    newest = {key.partition("/")[0]: version for key, version in read_sent(folder).items()}  # that was sent last
    count, lost = 0, []
    for kind, version in newest.items():
        aliases = aliases_of(identity, kind, version)
        if aliases is None or "latest" not in aliases:
            lost.append(f"artifact {identity.artifact(kind)}:{version}" + (" (is not latest)" if aliases else ""))
        else:
            count += 1
    return count, lost
