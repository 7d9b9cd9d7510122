"""A device that is too small: the batch goes through the network in parts, and the numbers stay."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from distcifar.cluster.job import Job
from distcifar.cluster.memory import halved_microbatch, known_microbatch
from distcifar.config import OptimConfig, Recipe
from distcifar.errors import ResourceError
from distcifar.tracking.journal import read_events
from distcifar.training import engine
from distcifar.training.step import StepResult, train_step
from distcifar.world import World
from tests.support import rank_worlds, small_recipe
from tests.unit.cluster.runs import DATA, kinds, rows_in, saved, spec_of, typed

RECIPE = small_recipe(epochs=3, optim=OptimConfig(lr=0.1, momentum=0.9))


def fits(images: int, from_step: int = 0) -> Callable[..., StepResult]:
    """train_step on a device that holds `images` images at once (from `from_step` on; before, all)."""

    def step(net: Any, state: Any, recipe: Recipe, batch: Any, world: World, *, microbatch: int = 0) -> StepResult:
        n = len(batch.labels)
        count = max(recipe.optim.accumulate, -(-n // microbatch) if microbatch else 1)
        if state.progress.step >= from_step and -(-n // count) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return train_step(net, state, recipe, batch, world, microbatch=microbatch)

    return step


def trained(runs: Path, name: str, step: Callable[..., StepResult], recipe: Recipe = RECIPE, **words: Any) -> Path:
    with patch.object(engine, "train_step", step):
        typed(recipe, runs, name, **words)
    return runs / name


def assert_close(folder: Path, other: Path) -> None:
    mine, theirs = saved(folder), saved(other)
    for name, value in theirs.chosen.items():
        torch.testing.assert_close(mine.chosen[name], value, rtol=0, atol=1e-6)
    for row, expected in zip(rows_in(folder), rows_in(other), strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("images", "halvings"), [(8, 1), (4, 2), (2, 3)])
def test_a_step_that_does_not_fit_is_done_in_parts_with_the_same_numbers(tmp_path: Path, images: int, halvings: int):
    typed(RECIPE, tmp_path, "whole")
    folder = trained(tmp_path, "small", fits(images))
    assert kinds(folder).count("memory") == halvings
    assert_close(folder, tmp_path / "whole")


def test_in_mid_run_it_goes_on_from_the_last_checkpoint_without_a_row_lost_or_doubled(tmp_path: Path):
    typed(RECIPE, tmp_path, "whole")
    folder = trained(tmp_path, "small", fits(8, from_step=4))
    (told,) = [event["text"] for event in read_events(folder) if event["kind"] == "memory"]
    assert told == "rank 0 ran out of memory with 16 images at once: now 8"
    assert_close(folder, tmp_path / "whole")


def test_what_was_learnt_holds_for_the_next_start_of_the_run(tmp_path: Path):
    folder = trained(tmp_path, "small", fits(4), small_recipe(epochs=1))
    trained(tmp_path, "small", fits(4), small_recipe(epochs=2))
    assert kinds(folder).count("memory") == 2, "both of the first start"


def test_parts_that_the_recipe_asks_for_are_what_is_halved(tmp_path: Path):
    """With accumulate the network has seen four images at once, not sixteen: the first halving must help."""
    recipe = small_recipe(epochs=1, optim=OptimConfig(lr=0.1, accumulate=4))
    folder = trained(tmp_path, "small", fits(2), recipe)
    assert kinds(folder).count("memory") == 1


def test_a_device_that_is_too_small_for_two_images_is_named(tmp_path: Path):
    with pytest.raises(ResourceError, match="2 images at once are too many for the memory of rank 0"):
        trained(tmp_path, "small", fits(1))


# The figures


def job(folder: Path, recipe: Recipe = RECIPE, **words: Any) -> Job:
    folder.mkdir(exist_ok=True)
    return Job(recipe, spec_of(folder.parent, folder.name, **words), folder, folder, DATA, "launch")


def test_the_share_of_a_rank_is_halved_and_not_the_batch(tmp_path: Path):
    mine = job(tmp_path / "run", small_recipe(batch_size=100))
    halved_microbatch(mine, rank_worlds(3)[2], images=34)
    assert known_microbatch(mine) == 17  # of 34
    halved_microbatch(mine, rank_worlds(3)[0], images=34)
    assert known_microbatch(mine) == 8


@pytest.mark.parametrize(("asked", "learnt", "expected"), [(0, 0, 0), (8, 0, 8), (0, 4, 4), (8, 4, 4), (2, 4, 2)])
def test_the_smaller_of_what_is_asked_for_and_what_was_learnt_counts(
    asked: int, learnt: int, expected: int, tmp_path: Path
):
    mine = job(tmp_path / "run", microbatch=asked)
    if learnt:
        (mine.folder / "microbatch.json").write_text(json.dumps({"images": learnt}))
    assert known_microbatch(mine) == expected
