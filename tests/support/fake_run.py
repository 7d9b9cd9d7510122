"""A run directory as a training writes it, without a training: hundreds of steps a second.

As a program it is a whole `launch`, with all that belongs to one but the workers:
`python -m tests.support.fake_run RUN OPTIONS`, where OPTIONS is a Plan as JSON.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from distcifar.cluster import launch as launching
from distcifar.cluster.job import Announce, Job, Listener
from distcifar.cluster.launch import launch
from distcifar.cluster.stopping import StopRequest, stop_on_signals
from distcifar.config import RunSpec, to_dict
from distcifar.errors import RunError
from distcifar.files import write_json
from distcifar.recipes import RECIPES
from distcifar.tracking.identity import Identity, write_identity
from distcifar.tracking.journal import Journal
from distcifar.tracking.rows import PART_BYTES
from distcifar.training.checkpoint import capture, prune_checkpoints, save_model, write_checkpoint
from tests.support import fresh, small_recipe

DEBUG = RECIPES["debug"]
DATA = "d" * 64
CLASSES = [f"class {i}" for i in range(10)]


def step_row(step: int, per_epoch: int, salt: int = 0) -> dict[str, Any]:
    """The row of `step` in a run of `per_epoch` steps an epoch; another `salt`, other values."""
    return {
        "kind": "step",
        "step": step,
        "epoch": (step - 1) // per_epoch + ((step - 1) % per_epoch + 1) / per_epoch,
        "train/loss": 2.5 / (1 + 0.01 * step) + 0.01 * ((step * 37 + salt) % 11),
        "train/lr": 0.1 / step,
        "train/grad_norm": 1 / 3 + salt,
        "perf/images_per_s": 1000.25,
        "perf/data_wait": 0.0,
        "perf/memory_bytes": 2**40,
    }


def accuracy(epoch: int) -> float:
    """Goes up and down, so that the best epoch is not always the last."""
    return 0.5 + 0.03 * epoch + 0.1 * ((epoch * 7) % 5 - 2)


def epoch_row(epoch: int, per_epoch: int, best: int) -> dict[str, Any]:
    return {
        "kind": "epoch",
        "step": epoch * per_epoch,
        "epoch": epoch,
        "train/loss": 2.0 / epoch,
        "train/accuracy": accuracy(epoch) - 0.01,
        "train/lr": 0.1 / (epoch * per_epoch),
        "validation/loss": 2.1 / epoch,
        "validation/accuracy": accuracy(epoch),
        "best_epoch": best,
        "seconds": 1.5 * epoch,
    }


class FakeRun:
    """One run directory: begun, taken on step by step, saved, cut back, ended. Epochs of `per_epoch` steps."""

    def __init__(self, folder: Path, *, per_epoch: int = 8, part_bytes: int = PART_BYTES) -> None:
        self.folder, self.per_epoch, self.step, self.salt = folder, per_epoch, 0, 0
        self.best = 0  # epoch
        self.journal = Journal(folder, part_bytes=part_bytes)
        state, _ = fresh(small_recipe())
        card = {"recipe_digest": DEBUG.digest(), "data_digest": DATA, "class_names": CLASSES}
        self._state, self._card = state, card
        self._snapshot = capture(state, card)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.journal.rows()

    def describe(self, identity: Identity | None = None) -> None:
        """The files of a run that was claimed: recipe, facts, and which W&B run it is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "recipe.json", to_dict(DEBUG))
        facts = {"data_folder": "/data/synthetic", "data_digest": DATA, "git_commit": "c" * 40, "python": "3.11"}
        write_json(self.folder / "run.json", facts)
        if identity is not None:
            write_identity(self.folder, identity)

    def begin(self, launch: str = "") -> None:
        """What the primary worker of that launch does first."""
        at = f"at step {self.step} with 1 worker(s)"
        self.journal.event("continue" if self.step else "start", at, step=self.step, launch=launch)
        if not self.step:
            self.save()

    def go(self, steps: int, listen: Callable[[dict[str, Any]], None] | None = None) -> None:
        """That many steps, with the rows of the epochs that they end; a checkpoint after each epoch."""
        for _ in range(steps):
            self.step += 1
            rows = [step_row(self.step, self.per_epoch, self.salt)]
            if self.step % self.per_epoch == 0:
                epoch = self.step // self.per_epoch
                self.best = max(self.best, epoch, key=lambda e: accuracy(e) if e else -1.0)
                rows.append(epoch_row(epoch, self.per_epoch, self.best))
            self.journal.append(rows)
            if len(rows) > 1:
                self.save()
            if listen:
                for row in rows:
                    listen(row)

    def save(self, *, keep: int = 2) -> Path:
        """Seals a checkpoint of where the run is, and prunes as a training does."""
        epoch, rest = divmod(self.step, self.per_epoch)
        best_step = self.best * self.per_epoch
        progress = self._snapshot.scalars["progress"] | {
            "step": self.step,
            "epoch": epoch,
            "epoch_step": rest,
            "best_epoch": self.best,
            "best_step": best_step,
            "best_metric": accuracy(self.best) if self.best else None,
        }
        # Other weights at each step, as they are: W&B calls equal content one version.
        chosen = {name: tensor + self.best for name, tensor in self._snapshot.chosen.items()}
        tensors = {
            name: tensor + self.step if tensor.is_floating_point() else tensor
            for name, tensor in self._snapshot.tensors.items()
        }
        scalars = self._snapshot.scalars | {"progress": progress}
        card = self._card | {"step": self.step, "best_epoch": self.best}
        root = self.folder / "checkpoints"
        self.journal.sync()
        found = write_checkpoint(
            root, replace(self._snapshot, scalars=scalars, chosen=chosen, tensors=tensors, card=card)
        )
        prune_checkpoints(root, best_steps=(best_step,), keep=keep)
        return found

    def back_to(self, step: int, *, salt: int = 0, launch: str = "") -> None:
        """Goes on from an older checkpoint, as after a damage or a rollback: with the same values, or others."""
        self.step, self.salt, epoch = step, salt, step // self.per_epoch
        self.best = max(range(1, epoch + 1), key=accuracy, default=0)
        self.journal.cut(step=step, epoch=epoch)
        for folder in (self.folder / "checkpoints").glob("step-*"):
            if int(folder.name.removeprefix("step-")) > step:
                shutil.rmtree(folder)
        self.begin(launch)

    def finish(self) -> dict[str, Any]:
        """The model, the samples and the summary: the run is over."""
        digest = save_model(self.folder / "model", self._state, self._card, {"README.md": "# a model\n"})
        rng = np.random.default_rng(0)
        np.savez(
            self.folder / "samples.npz",
            images=rng.integers(0, 255, (4, 8, 8, 3)).astype(np.uint8),
            labels=np.arange(4),
            predictions=np.arange(4)[::-1].copy(),
            confidence=np.full(4, 0.5, np.float32),
        )
        summary = summary_of(self) | {"model_sha256": digest}
        self.journal.write("summary", summary)
        self.journal.event("finished", "test accuracy 0.7500")
        return summary


def summary_of(run: FakeRun) -> dict[str, Any]:
    return {
        "recipe": "debug",
        "test_accuracy": 0.75,
        "test_loss": 0.8,
        "selected_on": "validation",
        "select_metric": "validation/accuracy",
        "best_metric": accuracy(run.best) if run.best else None,
        "best_epoch": run.best,
        "epochs": run.step // run.per_epoch,
        "steps": run.step,
        "outcome": "finished",
        "per_class_accuracy": {name: 0.5 + 0.05 * i for i, name in enumerate(CLASSES)},
        "confusion": [[10 if i == j else 1 for j in range(10)] for i in range(10)],
        "recipe_digest": DEBUG.digest(),
        "data_digest": DATA,
    }


@dataclass(frozen=True)
class Plan:
    """What a launch of a fake run is to do."""

    steps: int = 40  # of the whole run
    per_epoch: int = 8
    rate: float = 100.0  # steps a second
    end: str = "finish"  # or "fail" at the last step
    wandb: str = "online"
    upload: str = "state"
    upload_minutes: float = 0.0
    keep_uploads: int = 2


def launched(folder: Path, plan: Plan, environment: Mapping[str, str]) -> None:
    """What `jobs/train.py --name RUN` does, with a fake training."""
    spec = RunSpec(
        runs=str(folder.parent),
        name=folder.name,
        device="cpu",
        project="lab",
        **{name: getattr(plan, name) for name in ("wandb", "upload", "upload_minutes", "keep_uploads")},
    )

    def fit(job: Job, listen: Listener, announce: Announce) -> dict[str, Any]:
        with stop_on_signals(StopRequest(job.folder), announce):
            return _fit(job, plan, listen)

    prepared = SimpleNamespace(folder=folder.parent / "data", digest=DATA)
    facts = {"data_folder": "/data/synthetic", "data_digest": DATA}
    with (
        patch.object(launching, "shared_data", lambda *_, **__: prepared),
        patch.object(launching, "collect_facts", lambda *_: facts),
        patch.object(launching, "_fitting", lambda spec: fit),
    ):
        launch(DEBUG, spec, listen=lambda row: None, announce=print, environment=environment)


def _fit(job: Job, plan: Plan, listen: Listener) -> dict[str, Any]:
    run = FakeRun(job.folder, per_epoch=plan.per_epoch)
    found = sorted((job.folder / "checkpoints").glob("step-*"))
    if found:
        run.back_to(int(found[-1].name.removeprefix("step-")), launch=job.launch)
    else:
        run.begin(job.launch)
    request = StopRequest(job.folder)
    while run.step < plan.steps:
        run.go(1, listen)
        print("step", run.step, flush=True)
        time.sleep(1 / plan.rate)
        if request.made():
            run.save()
            return {"stopped": run.step}
    if plan.end == "fail":
        raise RunError(f"Nothing works at step {run.step}", "It must", "Do something")
    return {"summary": run.finish()}


def words_of(folder: Path, plan: Plan) -> list[str]:
    """The command line of a launch."""
    return [sys.executable, "-m", "tests.support.fake_run", str(folder), json.dumps(asdict(plan))]


if __name__ == "__main__":
    try:
        launched(Path(sys.argv[1]), Plan(**json.loads(sys.argv[2])), dict(os.environ))
    except RunError as error:
        print("error:", error)
        sys.exit(error.exit_code)
