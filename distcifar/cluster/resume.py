"""Starting from another run's checkpoint, and what may change on the way."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distcifar.config import Recipe, differences, from_dict, to_dict
from distcifar.errors import CheckpointError, StorageError
from distcifar.files import folder_aside, sha256_of, write_json
from distcifar.tracking.identity import Identity, read_identity
from distcifar.tracking.rows import copy_rows
from distcifar.tracking.shipping.fetch import SCHEME, fetched

OPEN_ENDED = ("constant", "step", "exponential", "plateau")  # schedules whose rates do not depend on the last epoch
FIXED = ("model", "data", "optim.name")  # what a branch may not change: tensors and images would not fit
FIXED_IN_EPOCH = ("batch_size", "seed", "drop_last")  # the order and number of the steps of an epoch


@dataclass(frozen=True)
class Origin:
    """A verified checkpoint of another run."""

    folder: Path
    recipe: Recipe
    state: dict[str, Any]  # state.json
    name: str  # its path, or where in W&B it was

    @property
    def identity(self) -> Identity | None:
        """Which W&B run its run is."""
        return read_identity(self.folder.parents[1])

    @property
    def lineage(self) -> dict[str, Any]:
        """For run.json: where a run comes from."""
        return {
            "checkpoint": self.name,
            "wandb": self.identity.path if self.identity else None,
            "manifest_sha256": sha256_of(self.folder / "manifest.json"),
            "recipe_digest": self.recipe.digest(),
            "step": self.state["progress"]["step"],
        }


@contextmanager
def opened_origin(resume: str, folder: Path, environment: Mapping[str, str]) -> Iterator[Origin | None]:
    """The checkpoint that --resume names, for a run in `folder`, while open; None for auto and never.

    environment: of the process that fetches it from W&B. Raises CheckpointError, or TrackingError.
    """
    if resume in ("auto", "never"):
        yield None
    elif resume.startswith(SCHEME):
        with fetched(resume, folder, environment) as run:
            yield replace(find_origin(run), name=resume)
    else:
        yield find_origin(Path(resume))


def find_origin(path: Path) -> Origin:
    """The checkpoint that `path` is, or the newest good one of the run directory that it is.

    Raises CheckpointError for a damaged one, or where there is none.
    """
    from distcifar.training.checkpoint import load_checkpoint, newest_good  # imports torch: seconds

    folder = path.absolute()
    if (folder / "manifest.json").exists():
        checkpoint = load_checkpoint(folder)
    else:
        newest, _ = newest_good(folder / "checkpoints")
        if newest is None:
            raise CheckpointError(
                f"{path} holds no checkpoint",
                "--resume takes auto, never, wandb:..., a run directory or one of its checkpoints/step-*",
                "Correct --resume",
            )
        checkpoint = newest
    recipe = from_dict(Recipe, checkpoint.recipe)
    return Origin(checkpoint.folder, recipe, checkpoint.scalars, str(checkpoint.folder))


def extends(before: Recipe, now: Recipe) -> bool:
    """Whether `now` is `before` with more epochs, and would have trained the first ones alike."""
    changed = differences(before.numbers(), now.numbers())
    only_epochs = len(changed) == 1 and changed[0].startswith("epochs:")
    return only_epochs and now.epochs > before.epochs and not now.then and now.schedule.name in OPEN_ENDED


def why_not(before: Recipe, now: Recipe) -> str:
    """What keeps a run of `before` from going on as `now`, in words."""
    changed = differences(before.numbers(), now.numbers())
    words = "; ".join(changed)
    if any(change.startswith("epochs:") for change in changed) and now.schedule.name not in OPEN_ENDED:
        words += f"; the {now.schedule.name} schedule spreads its rates over all epochs"
    return words


def adopt(origin: Origin, recipe: Recipe, data_digest: str, folder: Path, *, branch: bool) -> None:
    """Puts a copy of `origin` and its metrics into the new run directory `folder`, for `recipe` to go on with.

    Raises StorageError for a recipe or data that do not fit; a changed recipe needs `branch`.
    """
    if origin.state["data_digest"] != data_digest:
        raise StorageError(
            f"{origin.folder} was trained on other data ({origin.state['data_digest'][:9]}, now {data_digest[:9]})",
            "A run goes on with the images that it has begun with",
            "Give the same --source, or start a run without --resume",
        )
    state = origin.state
    if recipe.numbers() != origin.recipe.numbers() and not extends(origin.recipe, recipe):
        if not branch:
            raise StorageError(
                f"{origin.folder} has another recipe ({why_not(origin.recipe, recipe)})",
                "A run goes on with the recipe that it was started with",
                "Add --branch to start a new run from there with the changed recipe",
            )
        state = branched(state, origin.recipe, recipe)
    root = folder / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    _copy(origin, state, recipe, root)
    copy_rows(origin.folder.parents[1], folder)  # cut back to the step when the run begins


def branched(state: dict[str, Any], before: Recipe, now: Recipe) -> dict[str, Any]:
    """state.json for a run that goes on with another recipe. Raises StorageError for what cannot be changed."""
    progress = dict(state["progress"])
    fixed = FIXED + (FIXED_IN_EPOCH if progress["epoch_step"] else ())
    starts = tuple(f"{name}{end}" for name in fixed for end in ".:")
    refused = [change for change in differences(before.numbers(), now.numbers()) if change.startswith(starts)]
    if refused:
        raise StorageError(
            f"A branch cannot change {'; '.join(refused)}",
            "It goes on with the tensors and images of its checkpoint"
            + (", which lies inside an epoch" if progress["epoch_step"] else ""),
            "Leave that as it was, or start a run without --resume",
        )
    if progress["epoch"] >= now.total_epochs:
        raise StorageError(
            f"The checkpoint has {progress['epoch']} epochs behind it, and the recipe {now.total_epochs}",
            "A branch trains at least one more epoch",
            f"Give --epochs {progress['epoch'] + 1} or more",
        )
    chosen = (before.select_on, before.select_metric) == (now.select_on, now.select_metric)
    if not chosen:  # what was the best by one measure is not by another
        progress |= {"best_metric": None, "best_epoch": 0, "best_step": 0}
    if now.precision != "auto":
        progress["precision"] = now.precision
    progress |= {"outcome": "", "wait": 0, "rollbacks": 0, "recent_loss": None, "skipped": 0}
    return state | {"progress": progress, "has_best": state["has_best"] and chosen}


def _copy(origin: Origin, state: dict[str, Any], recipe: Recipe, root: Path) -> None:
    from distcifar.training.checkpoint import checkpoint_name, seal

    # Its own name may be one that somebody has given to it.
    with folder_aside(root / checkpoint_name(state["progress"]["step"])) as folder:
        for name in ("state.safetensors", "model.safetensors", "model.json"):
            shutil.copyfile(origin.folder / name, folder / name)
        write_json(folder / "state.json", state)
        write_json(folder / "recipe.json", to_dict(recipe))
        seal(folder)
