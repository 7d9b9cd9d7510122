"""What a rank does with the engine's reports: the primary writes them down and saves, the others do not."""

import time
from typing import Any, Protocol

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from distcifar.cluster.job import Job, Listener
from distcifar.cluster.restarts import last_step, require_progress
from distcifar.data.build import OpenData
from distcifar.errors import CheckpointError, DivergenceError, RunError
from distcifar.tracking.journal import Journal
from distcifar.training.checkpoint import capture, save_model
from distcifar.training.reports import EpochReport, Report, Row
from distcifar.training.saving import CheckpointWriter, storage_error
from distcifar.training.selection import best_steps
from distcifar.training.state import TrainState

WRITER_SECONDS = 60.0  # for the primary of a driver that was killed: it is gone within a few seconds


def silence(row: Row) -> None:
    """A listener for workers that nobody watches: their driver follows the journal."""


class Recorder(Protocol):
    """Takes reports and, at the end, the summary. `problem`: what keeps it from recording, if anything does."""

    @property
    def problem(self) -> Exception | None: ...

    def begin(
        self, state: TrainState, before: int, damaged: list[CheckpointError], cause: DivergenceError | None
    ) -> None:
        """Called before the first step and after each rollback; `before`: workers when the checkpoint was saved.

        Raises StorageError where nothing can be written.
        """

    def record(self, report: Report) -> None:
        """Called with each report, in order."""

    def drain(self) -> None:
        """Returns once what was handed over is on the disk."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Called once, when training is over."""

    def close(self) -> None:
        """Called last, whatever happened."""


class NoRecorder:
    """Of every rank but the primary."""

    problem = None

    def begin(
        self, state: TrainState, before: int, damaged: list[CheckpointError], cause: DivergenceError | None
    ) -> None:
        """Nothing."""

    def record(self, report: Report) -> None:
        """Nothing."""

    def drain(self) -> None:
        """Nothing."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class RunRecorder:
    """Journal, checkpoints and the final model in the job's run directory, of which it is the only writer.

    What goes wrong is kept in `problem` instead of raised: all ranks are to stop at the same step.
    """

    def __init__(self, job: Job, data: OpenData, workers: int, listen: Listener) -> None:
        self._folder, self._spec, self._launch = job.folder, job.spec, job.launch
        self._data, self._workers, self._listen = data, workers, listen
        self._lock = FileLock(job.folder.with_name(f".{job.folder.name}.writer.lock"))
        try:
            self._lock.acquire(timeout=WRITER_SECONDS, poll_interval=0.1)
            self.journal = Journal(job.folder)
            require_progress(self.journal, job.launch)
        except Timeout:
            raise RunError(
                f"Another process writes into {job.folder}",
                "A run has one primary worker",
                "Wait for the other one to end, or choose another --name",
            ) from None
        except OSError as error:
            self._lock.release()
            raise storage_error(job.folder, 0, error) from error
        except RunError:
            self._lock.release()
            raise
        self._failed: Exception | None = None
        self._writer = CheckpointWriter(job.folder / "checkpoints", keep=job.spec.keep_last, before=self.journal.sync)
        self._saved = time.monotonic()

    @property
    def problem(self) -> Exception | None:
        return self._failed or self._writer.problem

    def begin(
        self, state: TrainState, before: int, damaged: list[CheckpointError], cause: DivergenceError | None
    ) -> None:
        self._state = state
        step = state.progress.step
        try:
            reached = last_step(self.journal)
            self.journal.cut(step=step, epoch=state.progress.epoch)
        except OSError as error:
            raise storage_error(self._folder, step, error) from error
        self._epochs = [row for row in self.journal.rows() if row["kind"] == "epoch"]
        for problem in damaged:
            self._tell("damaged checkpoint", str(problem))
        if cause is not None:
            rate = f"with {2.0**-state.progress.rollbacks:g} of the recipe's learning rate"
            self._tell("rollback", f"{cause.found}. Going back to step {step}, {rate}", step=step)
            return
        words = f"at step {step} with {self._workers} worker(s)"
        if before != self._workers:
            words += f" instead of {before}: the same global batches, shared out anew"
        self._tell("continue" if step else "start", words, step=step, reached=reached, launch=self._launch)
        if not step:
            self._save()  # from here on there is always one to go back to

    def record(self, report: Report) -> None:
        if self.problem is not None:
            return
        if isinstance(report, EpochReport):
            rows = [report.row]
            self._epochs += rows
        else:
            rows = report.rows
        try:
            self.journal.append(rows)
        except OSError as error:
            self._failed = storage_error(self._folder, self._state.progress.step, error)
            return
        if self._due(report):
            self._save()
        for row in rows:  # last, so that what is shown is also on the disk
            self._listen(row)

    def drain(self) -> None:
        self._writer.drain()

    def finish(self, summary: dict[str, Any]) -> None:
        try:
            save_model(self._folder / "model", self._state, self._card())
            self.journal.write("summary", summary)
            self.journal.event(summary["outcome"], f"test accuracy {summary['test_accuracy']:.4f}")
        except (OSError, SafetensorError) as error:
            self._failed = storage_error(self._folder, self._state.progress.step, error)

    def close(self) -> None:
        self._writer.close()
        self._lock.release()

    def _tell(self, kind: str, text: str, **facts: Any) -> None:
        """An event for the journal and the screen."""
        try:
            self._listen(self.journal.event(kind, text, **facts))
        except OSError as error:
            self._failed = storage_error(self._folder, self._state.progress.step, error)

    def _due(self, report: Report) -> bool:
        minutes = self._spec.checkpoint_minutes
        if minutes and time.monotonic() - self._saved >= 60 * minutes:
            return True
        if not isinstance(report, EpochReport):
            return report.save
        progress = self._state.progress
        return bool(progress.outcome) or report.improved or progress.epoch % self._spec.checkpoint_epochs == 0

    def _save(self) -> None:
        """Hands a copy of the state to the writer, which seals it after the rows that belong to it."""
        snapshot = capture(self._state, self._card(), workers=self._workers)
        best = best_steps(self._state.recipe, self._epochs, self._spec.keep_best)
        self._writer.submit(snapshot, (self._state.progress.best_step, *best))
        self._saved = time.monotonic()

    def _card(self) -> dict[str, Any]:
        """What model.safetensors is: enough to feed the network without the data set."""
        pixels, manifest = self._data.loaders.train.pixels, self._data.manifest
        return {
            "recipe_digest": self._state.recipe.digest(),
            "data_digest": self._state.data_digest,
            "class_names": list(manifest.class_names),
            "input": {"channels": manifest.channels, "size": pixels.output_size()},
            "mean": list(pixels.mean),
            "std": list(pixels.std),
            "best_epoch": self._state.progress.best_epoch,
            "step": self._state.progress.step,
        }
