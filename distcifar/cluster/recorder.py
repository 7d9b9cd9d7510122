"""What a rank does with the engine's reports: the primary writes them down and saves, the others do not."""

import shutil
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from distcifar.cluster.job import Listener
from distcifar.config import RunSpec, to_dict
from distcifar.data.build import OpenData
from distcifar.errors import CheckpointError, StorageError
from distcifar.tracking.journal import Journal
from distcifar.training.checkpoint import prune_checkpoints, save_checkpoint, save_model
from distcifar.training.reports import EpochReport, Report, Row
from distcifar.training.state import TrainState


def silence(row: Row) -> None:
    """A listener for workers that nobody watches: their driver follows the journal."""


class Recorder(Protocol):
    """Takes reports and, at the end, the summary."""

    def record(self, report: Report) -> None:
        """Called with each report, in order."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Called once, when training is over."""


class NoRecorder:
    """Of every rank but the primary."""

    def record(self, report: Report) -> None:
        """Nothing."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Nothing."""


class RunRecorder:
    """Journal, checkpoints and the final model in the run directory `folder`."""

    def __init__(self, folder: Path, spec: RunSpec, state: TrainState, data: OpenData, listen: Listener) -> None:
        self._folder, self._spec, self._state, self._data = folder, spec, state, data
        self._listen = listen
        self.journal = Journal(folder)
        self.journal.cut(step=state.progress.step, epoch=state.progress.epoch)

    def begin(self, workers: int, damaged: list[CheckpointError]) -> None:
        """Notes a start, and the damaged checkpoints that it passed over."""
        for problem in damaged:
            self.journal.event("damaged checkpoint", str(problem))
        self.journal.event("start", f"at step {self._state.progress.step} with {workers} worker(s)")

    def record(self, report: Report) -> None:
        rows = [report.row] if isinstance(report, EpochReport) else report.rows
        try:
            self.journal.append(rows)
            if self._due(report):
                self._save()
        except (OSError, SafetensorError) as error:
            free = shutil.disk_usage(self._folder).free
            raise StorageError(
                f"Step {self._state.progress.step} cannot be recorded in {self._folder}: {error} "
                f"({free / 1e6:,.0f} MB are free)",
                "A run goes on only if its state can be saved",
                "Make room, then type the same command: it goes on from the last good checkpoint",
            ) from error
        for row in rows:  # last, so that what is shown is also on the disk
            self._listen(row)

    def finish(self, summary: dict[str, Any]) -> None:
        save_model(self._folder / "model", self._state.chosen_weights(), self._card())
        self.journal.write("summary", summary)
        self.journal.event(summary["outcome"], f"test accuracy {summary['test_accuracy']:.4f}")

    def _due(self, report: Report) -> bool:
        if not isinstance(report, EpochReport):
            return report.save
        progress = self._state.progress
        return bool(progress.outcome) or report.improved or progress.epoch % self._spec.checkpoint_epochs == 0

    def _save(self) -> None:
        """Seals a checkpoint after the rows that belong to it."""
        root = self._folder / "checkpoints"
        self.journal.sync()
        save_checkpoint(root, self._state, self._card())
        prune_checkpoints(root, best_step=self._state.progress.best_step)

    def _card(self) -> dict[str, Any]:
        """What model.safetensors is: enough to rebuild and feed the network without the data set."""
        recipe, pixels, manifest = self._state.recipe, self._data.loaders.train.pixels, self._data.manifest
        return {
            "recipe": to_dict(recipe),
            "recipe_digest": recipe.digest(),
            "data_digest": self._state.data_digest,
            "class_names": list(manifest.class_names),
            "input": {"channels": manifest.channels, "size": pixels.output_size()},
            "mean": list(pixels.mean),
            "std": list(pixels.std),
            "best_epoch": self._state.progress.best_epoch,
            "step": self._state.progress.step,
        }
