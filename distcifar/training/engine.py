"""fit(): the visible loop. A generator: the caller logs, saves, reports, or breaks out."""

import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel

from distcifar.config import Recipe
from distcifar.data.loader import Batch, Loaders
from distcifar.data.plan import step_seed
from distcifar.errors import ConfigError, DivergenceError
from distcifar.models import frozen_norms
from distcifar.training import metrics
from distcifar.training.compiled import Compiled
from distcifar.training.divergence import LR_CUT
from distcifar.training.evaluate import evaluate
from distcifar.training.freezing import freeze_layers
from distcifar.training.lean import building_ddp
from distcifar.training.optim import set_learning_rate
from distcifar.training.reports import EpochReport, FitOptions, Report, StepLog, StepReport
from distcifar.training.schedule import multiplier
from distcifar.training.selection import choose, stage_at
from distcifar.training.state import TrainState
from distcifar.training.step import Losses, train_step
from distcifar.world import World


def fit(
    recipe: Recipe, state: TrainState, loaders: Loaders, world: World, options: FitOptions | None = None
) -> Iterator[Report]:
    """Trains `state` to the recipe's end from wherever it stands, yielding at steps and epochs.

    Every rank must consume it alike: the reports are reduced over all ranks. Raises DivergenceError on all
    ranks at the same step when the loss or the gradient is not finite.
    """
    options = options or FitOptions()
    _require_steps(recipe, loaders)
    state.tally.sums = world.only_primary(state.tally.sums)  # what was saved are the sums of all ranks
    # CUDA graphs would overwrite the gradients of one part by those of the next.
    graphs = world.device.type == "cuda" and recipe.optim.accumulate == 1 and not options.microbatch
    net = wrap(state.model, world, compiled=options.compile, graphs=graphs)
    while not state.progress.outcome:
        if world.any(options.should_stop()):
            yield StepReport([], save=True, stopping=True)
            return
        for report in _train_epoch(net, recipe, state, loaders, world, options):
            yield report
            if report.stopping:
                return
        closed = _close_epoch(recipe, state, loaders, world, options)
        yield closed
        if isinstance(closed, StepReport):
            return


def _require_steps(recipe: Recipe, loaders: Loaders) -> None:
    """Raises ConfigError where an epoch has no step."""
    if not loaders.train.steps_per_epoch:
        raise ConfigError(
            f"batch_size is {recipe.batch_size} with drop_last, and there are {loaders.train.store.num_samples} "
            "training images",
            "An epoch has at least one whole batch",
            "Lower --batch-size, or use --no-drop-last",
        )


def wrap(model: nn.Module, world: World, *, compiled: bool = False, graphs: bool = False) -> nn.Module:
    """`model` and its loss as training calls them: optionally compiled, over several ranks in DDP."""
    losses = Losses(model)
    net = Compiled(losses, graphs=graphs) if compiled else losses
    if world.size == 1:
        return net
    # Looking for unused parameters keeps DDP from moving gradients to other buckets after its first step: on
    # three ranks or more that changes the order of additions, and a continued run would not end alike.
    with building_ddp():
        ranks = DistributedDataParallel(
            net,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            find_unused_parameters=True,
        )
    # No step reads BatchNorm's running statistics, and what is measured and saved has rank 0's: they need not travel
    # at each step. (As an argument it warns from torch 2.15 on.)
    ranks.broadcast_buffers = False
    return ranks


def learning_rate(recipe: Recipe, state: TrainState, steps_per_epoch: int) -> float:
    """The rate of the next step, for the groups without a factor of their own. Schedules count epochs of any length."""
    progress = state.progress
    stage, epoch = stage_at(recipe, progress.epoch)
    return (
        LR_CUT**progress.rollbacks
        * stage.lr
        * multiplier(
            stage.schedule,
            step=epoch * steps_per_epoch + progress.epoch_step,
            steps_per_epoch=steps_per_epoch,
            epochs=stage.epochs,
            plateau=progress.plateau,
        )
    )


def _train_epoch(
    net: nn.Module, recipe: Recipe, state: TrainState, loaders: Loaders, world: World, options: FitOptions
) -> Iterator[StepReport]:
    """The rest of the current epoch."""
    progress, loader = state.progress, loaders.train
    if progress.epoch_step == 0:
        state.tally.sums.zero_()
        if progress.epoch > 0 and stage_at(recipe, progress.epoch)[1] == 0:
            state.start_stage()
        if state.hard is not None:
            state.hard.begin_epoch()
    images = recipe.images_of(progress.epoch, loader.store.num_samples)
    losses = state.hard.known() if state.hard is not None and images < loader.store.num_samples else None
    steps_per_epoch = loader.steps_over(images)
    training = not (recipe.eval_mode_after_first_epoch and progress.epoch > 0)
    _set_mode(net, recipe, state, training=training)
    modes = [(module, module.training) for module in state.model.modules()]
    random = any(isinstance(module, _DropoutNd) for module, _ in modes)
    steps = StepLog(steps_per_epoch, world.device)
    options.on_stage("data", progress.step)
    compiled: set[object] = set()
    for batch in steps.timed(loader.batches(progress.epoch, progress.epoch_step, images, losses)):
        if any(module.training != mode for module, mode in modes):
            raise RuntimeError("the model's train/eval mode was changed inside the epoch")
        if random:
            _seed_dropout(world.device, step_seed(recipe.seed, progress.step, world.rank))
        progress.lr = learning_rate(recipe, state, steps_per_epoch)
        set_learning_rate(state.optimizers, progress.lr / recipe.optim.lr)
        epochs_done = progress.epoch + progress.epoch_step / steps_per_epoch
        freeze_layers(state.model, recipe, epochs_done / recipe.total_epochs)
        options.on_stage(_stage(options, state.model, batch, compiled), progress.step)
        result = train_step(net, state, recipe, batch, world, microbatch=options.microbatch)
        if state.hard is not None:
            state.hard.note(batch, result.losses, world)
        progress.step += 1
        progress.epoch_step += 1
        steps.add(state, batch, result)
        save = bool(options.checkpoint_steps) and progress.step % options.checkpoint_steps == 0
        last = progress.epoch_step == steps_per_epoch
        if save or last or len(steps.done) >= options.pace.steps:
            options.on_stage("report", progress.step)
            yield steps.report(recipe, state, world, options, save=save)
            steps.since = time.monotonic()  # what the caller did meanwhile is not training
        options.on_stage("data", progress.step)


def _stage(options: FitOptions, model: nn.Module, batch: Batch, compiled: set[object]) -> str:
    """ "compile" for the first step of its kind in an epoch, which may take a minute where steps are compiled."""
    if not options.compile:
        return "step"
    kind = (batch.images.shape, sum(parameter.requires_grad for parameter in model.parameters()))
    new = kind not in compiled
    compiled.add(kind)
    return "compile" if new else "step"


def _set_mode(net: nn.Module, recipe: Recipe, state: TrainState, *, training: bool) -> None:
    """Training mode for all but frozen BatchNorm; evaluation mode where the recipe reproduces that bug."""
    net.train(training)
    for norm in frozen_norms(state.model, recipe.model):
        norm.eval()


def _seed_dropout(device: torch.device, seed: int) -> None:
    """Seeds the generator of `device`. torch.manual_seed seeds all devices': 0.6 ms a step without a GPU."""
    generator = torch.cuda if device.type == "cuda" else torch.default_generator
    generator.manual_seed(seed)


def _close_epoch(
    recipe: Recipe, state: TrainState, loaders: Loaders, world: World, options: FitOptions
) -> EpochReport | StepReport:
    """Measures the epoch, moves plateau, best and early stopping, and decides whether it was the last.

    A wish to stop in the middle of the evaluation leaves all of that to the next start.
    """
    start = time.monotonic()
    progress = state.progress
    for module in (state.model, state.evaluated):  # the same order on every rank
        for buffer in module.buffers():
            world.broadcast(buffer)
    train_loss, train_accuracy, _ = state.tally.over_ranks(world)
    loader = loaders.test if recipe.select_on == "test" else loaders.validation
    result = None
    if loader is not None:
        result = evaluate(
            state.evaluated,
            loader,
            world,
            num_classes=loaders.num_classes,
            precision=progress.precision,
            views=recipe.tta,
            interrupted=options.interrupted,
        )
        if result is None:
            progress.seconds += time.monotonic() - start
            return StepReport([], save=True, stopping=True)
    progress.epoch += 1
    progress.epoch_step = 0
    improved = choose(recipe, state, result)
    finite = state.best is not None and all(bool(v.isfinite().all()) for v in state.best.values())
    if progress.outcome and not finite:
        raise DivergenceError(
            f"After {progress.epoch} epoch(s) no weights with a finite {recipe.select_on} loss were found",
            "The best model is one whose weights and loss are numbers",
            f"Try --optim.lr {recipe.optim.lr / 10:g}",
        )
    progress.seconds += time.monotonic() - start
    split = "test" if recipe.select_on == "test" else "validation"
    measured = {} if result is None else {f"{split}/loss": result.loss, f"{split}/accuracy": result.accuracy}
    row = {
        "kind": "epoch",
        "step": progress.step,
        "epoch": progress.epoch,
        metrics.TRAIN_LOSS: train_loss,
        metrics.TRAIN_ACCURACY: train_accuracy,
        metrics.LEARNING_RATE: progress.lr,
        **measured,
        "best_epoch": progress.best_epoch,
        "seconds": progress.seconds,
    }
    return EpochReport(row, result, improved)
