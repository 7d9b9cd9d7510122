"""A trial on the synthetic images: what it finds, and that it leaves nothing."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from distcifar.cluster.estimates import steps as trial_steps
from distcifar.cluster.estimates.counts import activation_bytes, bytes_an_image, forward_flops
from distcifar.cluster.estimates.estimate import checkpoint_bytes, estimate
from distcifar.cluster.estimates.steps import EPOCHS, Trial, endless, measured_here
from distcifar.config import AugmentConfig, ModelConfig, OptimConfig, RunSpec
from distcifar.data.build import open_data
from distcifar.data.prepare import PreparedData, prepare
from distcifar.recipes import RECIPES
from distcifar.tracking.startup import Marks
from distcifar.training.build import build_state
from distcifar.training.checkpoint import save_checkpoint
from distcifar.training.engine import fit
from distcifar.training.reports import EpochReport
from distcifar.world import World

DEBUG = replace(RECIPES["debug"], epochs=1)
SPEC = RunSpec(device="cpu", wandb="disabled")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare(DEBUG.data, tmp_path_factory.mktemp("data"), announce=lambda text: None)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_steps, "LEAST_SECONDS", 0.05)


def trial(prepared: PreparedData, recipe=DEBUG, *, ranks: int = 1, together: int = 1) -> Trial:
    return Trial(recipe, SPEC, prepared, ranks, together, 1, Marks.of_this_process())


def test_a_trial_counts_what_a_run_saves_and_leaves_nothing(prepared: PreparedData, tmp_path: Path):
    files = sorted(prepared.folder.iterdir())
    work, figures = measured_here(trial(prepared))
    assert sorted(prepared.folder.iterdir()) == files
    assert (work.images, work.validation, work.test) == (1792, 256, 512)
    assert work.file_bytes == sum(path.stat().st_size for path in files)
    assert (figures.network, figures.precision, figures.paces) == (True, "fp32", (1.0,))
    assert figures.start > 0
    assert figures.evaluation > 0
    # A whole training, whose speed nobody but the clock knows, and what it saves.
    data = open_data(DEBUG, prepared.folder, World(), mode="auto", threads=1)
    state = build_state(DEBUG, data, "d", World())
    (epoch,) = [report for report in fit(DEBUG, state, data.loaders, World()) if isinstance(report, EpochReport)]
    assert sum(p.numel() for p in state.model.parameters()) == work.parameters
    saved = save_checkpoint(tmp_path, state, {})
    on_disk = sum(path.stat().st_size for path in saved.iterdir())
    assert on_disk == pytest.approx(checkpoint_bytes(DEBUG, work), rel=0.15)
    found = estimate(DEBUG, SPEC, work, figures, 1, on_gpu=False)
    assert found.steps == state.progress.step
    assert found.training == pytest.approx(epoch.row["seconds"], rel=4), "of the same order, whatever the machine does"


def test_each_phase_of_a_recipe_is_timed_with_its_own_work(prepared: PreparedData, monkeypatch: pytest.MonkeyPatch):
    growing = replace(
        DEBUG, model=ModelConfig(name="whitened", widths=(4, 4, 4)), batch_size=16,
        augment=AugmentConfig(progressive=("12@0.5",)), optim=OptimConfig(lr=0.1, freeze=("head@0.9",)),
    )  # fmt: skip
    seen = []

    def watched(recipe, state, loaders, world, options):
        (batch, *_), share = loaders.train.batches(state.progress.epoch), state.progress.epoch / EPOCHS
        seen.append((share, tuple(batch.images.shape[::2]), state.model.head.weight.requires_grad))
        yield from fit(recipe, state, loaders, world, options)
        pytest.fail("the trial has come to its end")

    monkeypatch.setattr(trial_steps, "fit", watched)
    _, figures = measured_here(trial(prepared, growing))
    size = prepared.manifest.size
    whole, half, small = (16, size), (8, 12), (16, 12)
    assert [each[:2] for each in seen] == [(0.0, small), (0.0, half), (0.5, whole), (0.9, whole)]
    assert [each[2] for each in seen] == [True] * 4, "what is frozen is so from the phase's first step on"
    assert figures.paces[0] == 1.0
    assert len(figures.paces) == 3
    assert min(figures.paces) > 0


def test_a_share_alone_is_what_one_of_several_ranks_computes(prepared: PreparedData):
    alone = trial(prepared, ranks=8)
    assert alone.batch == 4
    _, figures = measured_here(alone)
    assert not figures.network
    assert figures.start is None


def test_steps_without_end_compute_the_same_and_change_nothing_else():
    recipe = replace(RECIPES["quick"], optim=replace(RECIPES["quick"].optim, accumulate=4))
    found = endless(recipe, 2)
    changed = {field.name for field in fields(recipe) if getattr(found, field.name) != getattr(recipe, field.name)}
    assert changed <= {
        "epochs",
        "early_stop",
        "spike_factor",
        "select_on",
        "drop_last",
        "batch_size",
        "schedule",
        "optim",
    }
    assert (found.epochs, found.batch_size, found.optim.accumulate) == (EPOCHS, 2, 2)
    assert found.model == recipe.model


# Counts


def test_arithmetic_is_two_operations_for_each_weight_and_place():
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 10, 3, groups=5), nn.Flatten(), nn.Linear(360, 7))
    conv, grouped, linear = 2 * 5 * 64 * 3 * 9, 2 * 10 * 36 * 1 * 9, 2 * 360 * 7
    assert forward_flops(net, torch.zeros(2, 3, 8, 8)) == 2 * (conv + grouped + linear)
    assert not any(layer._forward_hooks for layer in net.modules())


def test_what_is_kept_for_the_backward_pass_grows_with_images_and_not_with_weights():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 1000), nn.ReLU(), nn.Linear(1000, 10))
    few, many = (activation_bytes(net, torch.zeros(count, 3, 8, 8), "fp32") for count in (4, 8))
    assert many == pytest.approx(2 * few, rel=0.01)
    pictures, hidden = 4 * 192 * 4, 4 * 1000 * 4
    assert pictures + hidden <= few < pictures + hidden + 4 * 200


@pytest.mark.parametrize("count", [1, 3, 16])
def test_the_weights_copies_of_half_precision_are_no_images(count: int):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 1000), nn.ReLU(), nn.Linear(1000, 10))
    pictures, halves, losses = 192 * 4, (192 + 1000) * 2, 200
    found = bytes_an_image(net, torch.zeros(count, 3, 8, 8), "bf16")
    assert pictures + halves <= found < pictures + halves + losses, "the second layer's copy has 20000 bytes"


@pytest.mark.slow
def test_two_ranks_together_measure_their_all_reduce_too(prepared: PreparedData):
    _, figures = measured_here(trial(prepared, ranks=2, together=2))
    assert figures.network
    assert figures.step.seconds(ranks=2, images=16, gradient_bytes=2e5) > 0
