"""Sends recorded runs to W&B afterwards, and looks through W&B's API at what has arrived."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout

from distcifar.errors import TrackingError
from distcifar.tracking.identity import Identity, new_identity, read_identity, write_identity
from distcifar.tracking.outcome import outcome
from distcifar.tracking.rows import iter_rows
from distcifar.tracking.ship import Shipping, ship, shipping_lock
from distcifar.tracking.shipping import shipped_rows
from distcifar.tracking.uploads import Policy, read_sent
from distcifar.tracking.wandb_artifacts import aliases_of, look_up

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
    folders: list[Path], announce: Announce, *, project: str = "distcifar", entity: str = "", policy: Policy = "state"
) -> list[SyncResult]:
    """Sends what W&B lacks of each run, one after another; a run that is going on is sent as far as it is.

    project, entity: of runs that were recorded before there was tracking. Raises nothing for a run that cannot be
    sent: its result says why.
    """
    results = []
    for folder in folders:
        announce(f"Sending {folder.name} ...")
        try:
            identity = read_identity(folder)
            if identity is None:
                identity = new_identity(folder.name, project, entity)
                write_identity(folder, identity)
            url = _send(folder, identity, policy, announce)
            results.append(verified(folder, identity, url))
        except TrackingError as error:
            results.append(SyncResult(folder, outcome(folder).kind, missing=[str(error)]))
    return results


def _send(folder: Path, identity: Identity, policy: Policy, announce: Announce) -> str:
    """Ships the run unless another process does; its address."""
    lock = shipping_lock(folder, "online")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        announce(f"{folder.name} is being sent by the program that trains it.")
        return ""
    with lock:
        return ship(folder, identity, "online", Shipping("online", policy), lambda: True)


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
