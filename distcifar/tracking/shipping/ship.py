"""Ships a run directory to W&B, from the journal's rows and files: while it grows, or afterwards.

Nothing that matters is kept here: which rows W&B has W&B says (its last step), and the same artifact sent again is
the same version. So whoever ships may be killed at any moment, and the next one goes on.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from distcifar.errors import TrackingError
from distcifar.files import write_json
from distcifar.tracking.identity import Identity, write_identity
from distcifar.tracking.journal import read_events
from distcifar.tracking.outcome import outcome, run_lock
from distcifar.tracking.rows import RowFollower
from distcifar.tracking.samples import read_samples
from distcifar.tracking.shipping.content import RowMerger, run_config
from distcifar.tracking.shipping.hardware import HardwareSamples
from distcifar.tracking.shipping.uploader import Uploader
from distcifar.tracking.shipping.uploads import Outbox, Policy
from distcifar.tracking.wandb.artifacts import use_data
from distcifar.tracking.wandb.run import Mode, WandbRun, leave_behind

LOOK_SECONDS = 1.0  # between two looks at the journal
ROWS_AT_ONCE = 5000


@dataclass(frozen=True)
class Shipping:
    """How a run is shipped."""

    mode: Mode | Literal["auto"] = "auto"
    policy: Policy = "state"
    keep_states: int = 2
    minutes: float = 10.0  # at least, between two uploads of training state
    watched_pid: int = 0  # the process that W&B's own system metrics are about


def ship(folder: Path, identity: Identity, mode: Mode, how: Shipping, leave: Callable[[], bool]) -> str:
    """Sends the run in `folder` until `leave` says so, then the rest and how it stands; its address, empty offline.

    Raises TrackingError where not everything has been sent; then it may be tried again at once.
    """
    try:
        return _ship(folder, identity, mode, how, leave)
    except BaseException as error:
        leave_behind()
        if isinstance(error, TrackingError) or not isinstance(error, Exception):
            raise
        raise TrackingError(  # the client has many kinds of them, some of its own and some not
            f"{folder.name} could not be sent: {type(error).__name__}: {error}",
            "A run is recorded in its directory first",
            "It is tried again; later with `python jobs/report.py sync`",
        ) from error


def _ship(folder: Path, identity: Identity, mode: Mode, how: Shipping, leave: Callable[[], bool]) -> str:
    closes = how.watched_pid > 0 or outcome(folder).over  # a run that somebody else trains stays `running`
    facts = _read(folder / "run.json")
    recipe = _read(folder / "recipe.json")
    run = WandbRun(identity, folder, run_config(recipe, facts), mode, closes=closes, watched_pid=how.watched_pid)
    tell_status(folder, mode=mode, url=run.url)
    if mode == "online" and not identity.entity:  # from now on it is that one's, whoever sends the rest
        identity = replace(identity, entity=run.entity)
        write_identity(folder, identity)
    data = partial(use_data, run.handle, recipe["data"]["dataset"], facts["data_digest"], Path(facts["data_folder"]))
    uploads = Outbox(folder, how.policy if mode == "online" else "none")
    uploader = Uploader(run, identity, uploads, data, keep_states=how.keep_states, minutes=how.minutes)
    rows, merger = RowFollower(folder), RowMerger(HardwareSamples(folder).until)
    while True:
        leaving = leave()  # before the journal is read: what a program has written before it left is sent
        while found := rows.new_rows(ROWS_AT_ONCE):
            for row in found:
                for step, values in merger.add(row):
                    run.log(step, values)
        if leaving:
            break
        uploader.look()
        time.sleep(LOOK_SECONDS)
    ended = outcome(folder)
    if (folder / "summary.json").exists():
        run.tell_result(_read(folder / "summary.json"), read_samples(folder))
    run.tell_events(read_events(folder))
    refused = _uploaded(uploader, over=ended.over)
    run.finish(ended)
    if refused is not None:
        raise refused
    return run.url


def _uploaded(uploader: Uploader, *, over: bool) -> TrackingError | None:
    """Sends the rest of the artifacts; what has kept it from that is not to keep back how the run has ended."""
    try:
        uploader.finish(over=over)
        return None
    except TrackingError as error:
        return error


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def tell_status(folder: Path, **status: str) -> None:
    """Leaves a word for the program that trains: wandb/status.json."""
    write_json(folder / "wandb" / "status.json", status)


def read_status(folder: Path) -> dict[str, str]:
    """The last word of whoever ships the run in `folder`; empty if there is none."""
    path = folder / "wandb" / "status.json"
    return _read(path) if path.exists() else {}


def shipping_lock(folder: Path, mode: Mode) -> FileLock:
    """Held by whoever ships the run in `folder` in that mode."""
    return run_lock(folder, mode)
