"""A sweep's trials in W&B: one group, a run each, sent from the driver's machine, where the account's key is.

Offline there is nothing to do: jobs/report.py sync sends run directories later.
"""

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from distcifar.cluster.job import Announce
from distcifar.errors import TrackingError
from distcifar.sweep.folder import Result, Sweep, read_results
from distcifar.tracking.journal import note_event
from distcifar.tracking.outcome import told_outcome
from distcifar.tracking.shipping.ship import Shipping
from distcifar.tracking.shipping.tracker import Tracker

SHIPPING_SECONDS = 90.0  # at most, that the program waits for each trial's rest
ENDED = ("stop", "failed")


class Trials:
    """Hears each result: says in a trial's run directory how it has ended, and ships it if that is wanted."""

    def __init__(self, sweep: Sweep, environment: Mapping[str, str], announce: Announce) -> None:
        self._sweep, self._environment, self._announce = sweep, environment, announce
        self._online = _is_online(sweep.run.wandb, environment, announce)
        self._trackers: dict[str, Tracker] = {}
        self._closing = ThreadPoolExecutor(max_workers=4, thread_name_prefix="shipping")

    def heard(self, result: Result) -> None:
        """A result, new or from before an interruption."""
        folder = self._sweep.trials / result.run
        if not (folder / "tracking.json").exists() or told_outcome(folder) is not None:
            return  # it has not begun, or all that follows was done before
        if self._online:
            self._tracker(folder).listen({"kind": "epoch"})
        if result.decision in ENDED:
            self._end(result)

    def over(self) -> None:
        """The search is: those that a scheduler has left waiting will not go on."""
        last = {result.trial: result for result in read_results(self._sweep.folder)}
        for result in last.values():
            if result.decision == "pause":
                self._end(result)

    def stopped(self) -> None:
        """The user has stopped the search: so are the trials that have begun and not ended."""
        for path in self._sweep.trials.glob("*/tracking.json"):
            if told_outcome(path.parent) is None:
                note_event(path.parent, "stopped", "with the search, by its user")

    def measured(self) -> None:
        """The models of the confirmed winner have been, on the test images."""
        if self._online:
            for path in self._sweep.trials.glob("c*/summary.json"):
                self._tracker(path.parent).listen({"kind": "epoch"})

    def _end(self, result: Result) -> None:
        folder = self._sweep.trials / result.run
        _note_end(self._sweep, result)
        if result.epoch < self._sweep.recipe.total_epochs:  # nobody goes on with it, and there are many
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        if result.run in self._trackers:
            self._closing.submit(self._trackers.pop(result.run).close, SHIPPING_SECONDS)

    def close(self) -> None:
        """Waits for what is still to be sent."""
        for tracker in self._trackers.values():
            self._closing.submit(tracker.close, SHIPPING_SECONDS)
        self._closing.shutdown(wait=True)

    def _tracker(self, folder: Path) -> Tracker:
        if folder.name not in self._trackers:
            how = Shipping("online", "none", watched_pid=os.getpid())
            self._trackers[folder.name] = Tracker(folder, how, self._environment, _only_problems(self._announce))
        return self._trackers[folder.name]


def _note_end(sweep: Sweep, result: Result) -> None:
    if result.problem:
        kind, text = "failed", result.problem
    else:
        whole = "at its end" if result.epoch >= sweep.recipe.total_epochs else "early, by the search,"
        kind, text = "ended", f"{whole} after epoch {result.epoch}; best validation accuracy {result.score:.2%}"
    note_event(sweep.trials / result.run, kind, text)


def _is_online(wanted: str, environment: Mapping[str, str], announce: Announce) -> bool:
    if wanted != "auto" or environment.get("WANDB_API_KEY"):
        return wanted in ("auto", "online")
    from distcifar.tracking.wandb.run import has_key  # a second of imports

    try:
        return has_key()
    except TrackingError as error:
        announce(f"W&B: {error}")
        return False


def _only_problems(announce: Announce) -> Announce:
    """Not the address of each of many runs."""
    return lambda text: None if text.startswith("W&B: http") else announce(text)
