"""What a rank does with the engine's reports: the primary writes them down and saves, the others do not."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from distcifar.cluster.hardware import samples_of
from distcifar.cluster.job import Job, Listener
from distcifar.cluster.restarts import last_step, require_progress
from distcifar.cluster.straggler import Stragglers
from distcifar.cluster.watchdog import remove_mark
from distcifar.cluster.writer import take_writer_lock
from distcifar.config import to_dict
from distcifar.data.build import OpenData
from distcifar.errors import CheckpointError, DivergenceError, StorageError
from distcifar.files import write_atomically, write_json
from distcifar.store import is_url
from distcifar.tracking.journal import Journal, append_event
from distcifar.tracking.model_card import model_card
from distcifar.tracking.rows import PART_BYTES
from distcifar.tracking.startup import FILE, Marks, describe, read_startup
from distcifar.tracking.system import SystemLog
from distcifar.training.checkpoint import capture, save_model
from distcifar.training.reports import EpochReport, OwnTime, Report, Row, StepReport
from distcifar.training.saving import CheckpointWriter, storage_error
from distcifar.training.selection import best_steps
from distcifar.training.state import TrainState
from distcifar.training.summary import Result

SYSTEM_SECONDS = 10.0  # between two lines of system.jsonl
STORED_PART_BYTES = 4 * 2**20  # of metrics at a URL, where each push sends the newest part whole


def silence(row: Row) -> None:
    """A listener for workers that nobody watches: their driver follows the journal."""


class Recorder:
    """Takes reports and, at the end, the result; this one does nothing with them: of every rank but the primary."""

    mark = ""  # that it has left in the run directory (watchdog.py)

    @property
    def problem(self) -> Exception | None:
        """What keeps it from recording, if anything does."""
        return None

    def begin(
        self, state: TrainState, before: int, damaged: list[CheckpointError], cause: DivergenceError | None
    ) -> None:
        """Called before the first step and after each rollback; `before`: workers when the checkpoint was saved.

        Raises StorageError where nothing can be written.
        """

    def tell(self, kind: str, text: str, **facts: Any) -> None:
        """An event for the journal and the screen."""

    def write(self, name: str, value: Any) -> None:
        """What is to be known in the run directory as NAME.json."""

    def started(self, startup: Marks) -> None:
        """Called once the first step is done."""

    def record(self, report: Report) -> None:
        """Called with each report, in order."""

    def drain(self) -> None:
        """Returns once what was handed over is on the disk."""

    def finish(self, result: Result) -> dict[str, Any]:
        """Called once, when training is over. The summary; where it is written, as it stands there."""
        return result.summary

    def close(self) -> None:
        """Called last, whatever happened."""


class RunRecorder(Recorder):
    """Journal, checkpoints and the final model in the job's run directory, of which it is the only writer.

    What goes wrong is kept in `problem` instead of raised: all ranks are to stop at the same step.
    """

    def __init__(self, job: Job, data: OpenData, workers: int, listen: Listener) -> None:
        self._folder, self._spec, self._launch = job.folder, job.spec, job.launch
        self._data, self._workers, self._listen = data, workers, listen
        with _storage_errors(job.folder, 0), ExitStack() as unless_begun:
            self._lock, self.mark = take_writer_lock(job.folder, self._tell_wait)
            unless_begun.callback(self._lock.release)
            self.journal = Journal(job.folder, part_bytes=STORED_PART_BYTES if is_url(job.spec.runs) else PART_BYTES)
            self._system = SystemLog(job.folder)
            require_progress(self.journal, job.launch)
            unless_begun.pop_all()  # `close` gives the lock back
        self._failed: Exception | None = None
        self._writer = CheckpointWriter(job.folder / "checkpoints", keep=job.spec.keep_last, before=self.journal.sync)
        self._saved = self._measure_at = time.monotonic()
        self._stragglers = Stragglers()

    @property
    def problem(self) -> Exception | None:
        return self._failed or self._writer.problem

    def begin(
        self, state: TrainState, before: int, damaged: list[CheckpointError], cause: DivergenceError | None
    ) -> None:
        self._state = state
        step = state.progress.step
        with _storage_errors(self._folder, step):
            reached = last_step(self.journal)
            self.journal.cut(step=step, epoch=state.progress.epoch)
            self._epochs = self.journal.epoch_rows()
        for problem in damaged:
            self.tell("damaged checkpoint", str(problem))
        if cause is not None:
            rate = f"with {2.0**-state.progress.rollbacks:g} of the recipe's learning rate"
            self.tell("rollback", f"{cause.found}. Going back to step {step}, {rate}", step=step)
            return
        words = f"at step {step} with {self._workers} worker(s)"
        if before != self._workers:
            words += f" instead of {before}: the same global batches, shared out anew"
        facts = {"step": step, "reached": reached, "launch": self._launch, "workers": self._workers}
        self.tell("continue" if step else "start", words, **facts)
        if not step:
            self._save()  # from here on there is always one to go back to

    def write(self, name: str, value: Any) -> None:
        with self._noting():
            self.journal.write(name, value)

    def started(self, startup: Marks) -> None:
        with self._noting():
            told = read_startup(self._folder)
            if told is None or told["launch"] != self._launch:  # workers that Ray starts again have waited for others
                write_json(self._folder / FILE, describe(startup, self._launch, self._workers))

    def record(self, report: Report) -> None:
        if self.problem is not None:
            return
        if isinstance(report, EpochReport):
            rows = [report.row]
            self._epochs += rows
        else:
            rows = report.rows
        with self._noting():
            self.journal.append(rows)
            self._measure()
        if self._failed is not None:
            return
        if self._due(report):
            self._save()
        for row in rows:  # last, so that what is shown is also on the disk
            self._listen(row)
        if isinstance(report, StepReport):
            self._name_stragglers(report.own)

    def drain(self) -> None:
        self._writer.drain()

    def finish(self, result: Result) -> dict[str, Any]:
        summary, card, recipe = result.summary, self._card(), to_dict(self._state.recipe)
        facts = self._facts()
        if "estimate" in facts and summary["outcome"] == "finished":  # all epochs were foretold
            summary = summary | {"estimated_seconds": facts["estimate"]["seconds"]}
        with self._noting():
            texts = {"README.md": model_card(recipe, facts, summary, card)}
            summary = summary | {"model_sha256": save_model(self._folder / "model", self._state, card, texts)}
            write_atomically(self._folder / "samples.npz", result.samples.npz())
            self.journal.write("summary", summary)  # the run is finished
            self.journal.event(summary["outcome"], f"test accuracy {summary['test_accuracy']:.4f}")
        return summary

    def close(self) -> None:
        self._writer.close()
        remove_mark(self._folder, self.mark)
        self._lock.release()

    def tell(self, kind: str, text: str, **facts: Any) -> None:
        with self._noting():
            self._listen(self.journal.event(kind, text, **facts))

    def _tell_wait(self, text: str) -> None:
        self._listen(append_event(self._folder, "waiting", text))

    def _name_stragglers(self, own: Sequence[OwnTime]) -> None:
        for found in self._stragglers.new(own):
            samples = {sample["rank"]: sample for sample in samples_of(self._folder, self._workers)}
            text = found.words(samples.get(found.rank, {}), balanced=(self._folder / "balance.json").exists())
            facts = {"rank": found.rank, "seconds": found.own.step, "data": found.own.data, "median": found.median}
            self.tell("straggler", text, step=self._state.progress.step, **facts)

    def _measure(self) -> None:
        """A line of system.jsonl now and then, from what the ranks have left (hardware.py)."""
        now = time.monotonic()
        if now >= self._measure_at:
            samples = samples_of(self._folder, self._workers)
            self._measure_at = now + (SYSTEM_SECONDS if samples else 1.0)
            if samples:
                self._system.append(self._state.progress.step, samples)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Within, what the disk refuses becomes the recorder's problem."""
        try:
            with _storage_errors(self._folder, self._state.progress.step):
                yield
        except StorageError as error:
            self._failed = error

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

    def _facts(self) -> dict[str, Any]:
        """run.json; nothing where another program than launch has begun the run, or it is damaged."""
        try:
            return dict(json.loads((self._folder / "run.json").read_text()))
        except (FileNotFoundError, ValueError):
            return {}


@contextmanager
def _storage_errors(folder: Path, step: int) -> Iterator[None]:
    """Within, what the disk refuses at `step` is told as StorageError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise storage_error(folder, step, error) from error
