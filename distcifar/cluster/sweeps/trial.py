"""A trial as Ray Tune drives it: one epoch a step, answered from the sweep's folder where it was trained before.

A process is used for one trial after another: torch is imported and the images are read once. Between two steps
nothing is computed, so a scheduler's decision always comes before the next epoch.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from ray import tune

from distcifar.cluster.rank import Epochs
from distcifar.cluster.stopping import StopRequest
from distcifar.cluster.sweeps.training import KeptImages, Start, epochs_of
from distcifar.config import Recipe, from_dict
from distcifar.config.space import apply
from distcifar.errors import ConfigError, DivergenceError, StorageError
from distcifar.sweep.folder import Result, read_results, read_sweep, trial_of
from distcifar.tracking.rows import epoch_rows
from distcifar.training.checkpoint import checkpoint_name

ORIGIN = "origin.json"  # in Tune's checkpoint: where ours is


@dataclass(frozen=True)
class Origin:
    """The state after epoch `epoch` of a run of this sweep."""

    run: str
    epoch: int
    step: int


class TrialProcess(tune.Trainable):
    """config: {"sweep": folder, "results": file, "seed": int, "measure": bool, "cpus": int, PATH: value, ...}.

    The trial's name is that of its run directory: 007, or c007-2 of a confirmation. With pbt the searched fields change
    under way: that makes another run directory, begun from a checkpoint of the run whose state was taken over.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Called once in a new process."""
        self._images = KeptImages()
        self._epochs: Epochs | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The same process for another trial."""
        self._close()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._sweep = read_sweep(Path(config["sweep"]))
        self._run: str = self.trial_name
        self._origin: Origin | None = None  # of a run that was begun from another
        self._trial = trial_of(self._run)
        self._recipe = _recipe(self._sweep.recipe, config)
        known = read_results(self._sweep.folder, config["results"])
        self._known = {(result.run, result.epoch): result for result in known}
        self._last = Result(self._run, self._trial, 0, 0.0, 0.0, 0.0, 0.0)

    def step(self) -> dict[str, Any]:
        """Trains an epoch, or finds what it has come to before. With "measure": all, and the test images."""
        if isinstance(self._recipe, ConfigError):
            return self._failed(self._recipe)
        if self.config["measure"]:
            return self._measured()
        epoch = self._last.epoch + 1
        found = self._known.get((self._run, epoch)) or self._saved(epoch)
        return self._told(found) if found else self._trained(epoch)

    def save_checkpoint(self, checkpoint_dir: str) -> str:
        """Tells Tune where the state of this epoch is; the state itself is in the run directory already.

        Tune asks for it when it pauses the trial: another process may go on with it, so this one lets it go.
        """
        self._close()
        origin = Origin(self._run, self._last.epoch, self._last.step)
        (Path(checkpoint_dir) / ORIGIN).write_text(json.dumps(asdict(origin)))
        return checkpoint_dir

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Goes on with this trial, after a pause or a crash; or (pbt) with another's state and changed fields."""
        origin = Origin(**json.loads((Path(checkpoint) / ORIGIN).read_text()))
        assert isinstance(self._recipe, Recipe)  # one that is none has not come to a checkpoint
        mine = self._sweep.trials / origin.run / "recipe.json"
        own = trial_of(origin.run) == self._trial and from_dict(Recipe, json.loads(mine.read_text())) == self._recipe
        if own:
            self._run = origin.run
        else:
            key = hashlib.sha256(f"{origin} {self._recipe.digest()}".encode()).hexdigest()[:4]
            self._run, self._origin = f"{self._trial:03d}-e{origin.epoch:03d}-{key}", origin
        before = self._known.get((origin.run, origin.epoch))
        score = before.score if before else 0.0
        self._last = Result(self._run, self._trial, origin.epoch, 0.0, score, 0.0, 0.0, step=origin.step)

    def cleanup(self) -> None:
        """The process ends."""
        self._close()

    def _trained(self, epoch: int) -> dict[str, Any]:
        """Epoch `epoch`, trained. A training that ends before it says why."""
        if self._epochs is None:
            self._epochs = self._training()
        try:
            row = next(self._epochs)
            while row["epoch"] < epoch:  # after the loss of a checkpoint: once more what is known
                row = next(self._epochs)
        except StopIteration as end:
            return self._ended(end.value)
        return self._told(self._result(row))

    def _training(self) -> Epochs:
        parent = None
        if self._origin is not None:
            parent = self._sweep.trials / self._origin.run / "checkpoints" / checkpoint_name(self._origin.step)
        assert isinstance(self._recipe, Recipe)
        start = Start(self._sweep, self._run, self._recipe, self.config["cpus"], self.config["measure"], parent)
        return epochs_of(start, self._images)

    def _saved(self, epoch: int) -> Result | None:
        """Epoch `epoch`, if a checkpoint has it: trained, and cut off before anybody was told."""
        if self._epochs is not None:
            return None
        folder = self._sweep.trials / self._run
        newest = max((path.name for path in (folder / "checkpoints").glob("step-*")), default="")
        rows = [row for row in epoch_rows(folder) if checkpoint_name(row["step"]) <= newest]
        return next((self._result(row) for row in rows if row["epoch"] == epoch), None)

    def _result(self, row: dict[str, Any]) -> Result:
        split = "test" if self._sweep.recipe.select_on == "test" else "validation"
        accuracy = float(row[f"{split}/accuracy"])
        score = max(accuracy, self._last.score)
        seconds, loss = float(row["seconds"]), float(row[f"{split}/loss"])
        return Result(self._run, self._trial, int(row["epoch"]), accuracy, score, loss, seconds, step=int(row["step"]))

    def _told(self, found: Result) -> dict[str, Any]:
        self._last = found
        return {**asdict(found), "done": bool(found.problem) or found.epoch >= self._sweep.recipe.total_epochs}

    def _ended(self, value: dict[str, Any]) -> dict[str, Any]:
        """After {"stopped"} or {"error"}: what to tell Tune. Raises what may go away when it is tried again."""
        self._epochs = None
        error = value.get("error")
        if isinstance(error, DivergenceError | ConfigError):
            return self._failed(error)
        if isinstance(error, StorageError):  # nothing can be written for any trial: the search stops here
            return {**asdict(self._last), "interrupted": True, "unwritable": str(error), "done": False}
        if error is not None:
            raise RuntimeError(str(error))
        interrupted = StopRequest(self._sweep.trials / self._run).made()
        return {**asdict(self._last), "interrupted": interrupted, "done": not interrupted}  # else early stopping

    def _failed(self, error: DivergenceError | ConfigError) -> dict[str, Any]:
        last = self._last
        return self._told(
            Result(self._run, self._trial, last.epoch + 1, 0.0, last.score, 0.0, last.seconds, problem=error.found)
        )

    def _measured(self) -> dict[str, Any]:
        summary = self._sweep.trials / self._run / "summary.json"
        if summary.exists():  # before an interruption
            found = json.loads(summary.read_text())["test_accuracy"]
            return {**asdict(self._last), "test_accuracy": found, "done": True}
        epochs = self._training()
        try:
            while True:
                next(epochs)
        except StopIteration as end:
            value = end.value
        if "summary" not in value:
            raise RuntimeError(str(value.get("error", "stopped")))
        return {**asdict(self._last), "test_accuracy": value["summary"]["test_accuracy"], "done": True}

    def _close(self) -> None:
        if self._epochs is not None:
            self._epochs.close()
        self._epochs = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # others may be on the same card


def _recipe(base: Recipe, config: dict[str, Any]) -> Recipe | ConfigError:
    """The recipe of a trial's config, or why it is none."""
    names = {field.name for field in fields(base)}
    point = {path: value for path, value in config.items() if path.partition(".")[0] in names}
    try:
        return apply(base, point)
    except ConfigError as error:
        return error
