"""Sends recorded runs to W&B afterwards, and looks through W&B's API at what has arrived."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import Timeout
from rich import box
from rich.style import Style
from rich.table import Table
from rich.text import Text

from distcifar.errors import RegistryError, StorageError, TrackingError
from distcifar.tracking.identity import Identity, new_identity, read_identity, write_identity
from distcifar.tracking.outcome import outcome
from distcifar.tracking.registry.registry import Registry
from distcifar.tracking.rows import iter_rows
from distcifar.tracking.shipping.content import shipped_rows
from distcifar.tracking.shipping.ship import Shipping, ship, shipping_lock
from distcifar.tracking.shipping.uploads import Outbox, best_checkpoint, read_sent
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
    folders: list[Path], announce: Announce, *, project: str = "distcifar", entity: str = "", named: bool = True
) -> list[SyncResult]:
    """Sends what W&B lacks of each run, one after another; a run that is going on is sent as far as it is.

    project, entity: of runs that were recorded before there was tracking. named: somebody has asked for these very
    runs; otherwise those are left out that were to stay here. Raises TrackingError without a key, and nothing for a
    run that cannot be sent: its result says why.
    """
    require_key()
    results = []
    for folder in folders:
        if not (named or wants_wandb(folder)):
            announce(f"{folder.name} is left out: it was started with --wandb disabled. By its name it is sent.")
            continue
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


def wants_wandb(folder: Path) -> bool:
    """Whether the run in `folder` was not started with --wandb disabled."""
    return bool(_spec(folder).get("wandb") != "disabled")


def sync_registries(runs: Path, *, project: str, entity: str = "", announce: Announce) -> list[str]:
    """Does in W&B what was promoted and rolled back in the registries of a runs folder; what W&B lacks then."""
    problems = []
    for log in sorted(runs.glob(".registry/*/log.jsonl")):
        try:
            registry.sync(Registry(runs, log.parent.name), project=project, entity=entity, announce=announce)
        except (TrackingError, RegistryError, StorageError) as error:  # of this one: the others go on
            problems.append(f"Registry {log.parent.name}: {error}")
    return problems


def sync_table(results: list[SyncResult]) -> Table:
    """What W&B has of each run, and what it lacks."""
    table = Table("run", "in W&B", "rows", "artifacts", "missing", box=box.SIMPLE)
    for result in results:
        lacks = "\n".join(result.missing) or "nothing"
        row = (result.folder.name, result.state, f"{result.rows:,}", str(result.artifacts), lacks)
        table.add_row(*map(Text, row))  # what a server says is no markup
        if result.url:
            table.add_row("", Text(result.url, style=Style(link=result.url)))
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


def _spec(folder: Path) -> dict[str, Any]:
    """What the run was started with; nothing where run.json cannot be read."""
    try:
        found = json.loads((folder / "run.json").read_text())["spec"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _how(folder: Path) -> Shipping:
    spec, default = _spec(folder), Shipping("online")
    return replace(
        default, policy=spec.get("upload", default.policy), keep_states=spec.get("keep_uploads", default.keep_states)
    )


def verified(folder: Path, identity: Identity, url: str) -> SyncResult:
    """What W&B says it has of the run in `folder`, compared with the run directory. Raises TrackingError.

    url: its address, if it has just been sent; otherwise another process sends it, and its state is not judged.
    """
    ended = outcome(folder)
    seen = look_up(identity)
    there = seen.steps
    artifacts, lost = _artifacts(folder, identity, over=ended.over)
    expected = {step for step, _ in shipped_rows(iter_rows(folder))}
    missing = list(lost)
    if absent := expected - set(there):
        missing.append(f"{len(absent)} of {len(expected)} rows, the first of step {min(absent)}")
    if len(there) != len(set(there)):
        missing.append(f"{len(there) - len(set(there))} rows are there twice")
    if url and ended.over and (seen.state == "running" or (seen.state == "finished") != (ended.kind == "finished")):
        missing.append(f"the end: it is {seen.state} there and {ended.kind} here")
    return SyncResult(folder, seen.state, url or seen.url, len(set(there)), artifacts, missing)


def _artifacts(folder: Path, identity: Identity, *, over: bool) -> tuple[int, list[str]]:
    """How many of the run's artifacts W&B has, and what is lost of those that it was sent or was to be sent."""
    count, lost = 0, []
    for (kind, version), expected in _expected(folder).items():
        aliases = aliases_of(identity, kind, version)
        lacks = sorted(expected - {*(aliases or ())})
        if lacks:
            lost.append(
                f"artifact {identity.artifact(kind)}:{version}" + f" (is not {lacks[0]})" * (aliases is not None)
            )
        else:
            count += 1
    due = Outbox(folder, _how(folder).policy).due(over=over)
    return count, lost + [f"artifact {identity.artifact('model')}" for key in due if key.startswith("model/")]


def _expected(folder: Path) -> dict[tuple[str, str], set[str]]:
    """The versions that are to have aliases: what was sent last of each kind, and the best state if it was sent."""
    sent, found = read_sent(folder), {}
    for kind, version in {key.partition("/")[0]: version for key, version in sent.items()}.items():
        found[kind, version] = {"latest"}
    best = [version for key, version in sent.items() if key.startswith(f"state/{best_checkpoint(folder)}/")]
    for version in best[-1:]:
        found.setdefault(("state", version), set()).add("best")
    return found
