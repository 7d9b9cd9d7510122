"""Contracts 6 and 7: a run goes on from any step to the same bits, and nothing damaged is ever loaded."""

import contextlib
import errno
import json
import os
import pickle
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from distcifar import sealed
from distcifar.config import AugmentConfig, ModelConfig, OptimConfig, Recipe, ScheduleConfig, Stage, from_dict
from distcifar.errors import CheckpointError
from distcifar.models import build_model
from distcifar.sealed import FILES, MODEL_FILES, seal, verify
from distcifar.training import checkpoint as module
from distcifar.training.checkpoint import (
    checkpoint_name,
    checkpoints,
    load_checkpoint,
    newest_good,
    prune_checkpoints,
    save_checkpoint,
    save_model,
)
from distcifar.training.evaluate import evaluate
from distcifar.training.reports import EpochReport, FitOptions, Pace, StepReport
from distcifar.training.state import TrainState
from tests.support import DROPOUT_MLP, NORM_CNN, ONE, differing_tensors, fresh, reports, rows_of, small_recipe, train

MOMENTUM = OptimConfig(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3, clip_norm=1.0)
COSINE = ScheduleConfig(name="cosine", every="step", warmup_epochs=0.5)
RECIPES = {
    "momentum, BatchNorm, dropout": small_recipe(model=NORM_CNN, optim=MOMENTUM, schedule=COSINE),
    "adam, dropout, parts": small_recipe(
        model=DROPOUT_MLP, optim=OptimConfig(name="adam", lr=0.01, accumulate=3), label_smoothing=0.1
    ),
    "muon, average, flips": small_recipe(
        model=NORM_CNN, optim=OptimConfig(name="muon", lr=0.05, muon_lr=0.02), ema_decay=0.8, tta="flip",
        augment=AugmentConfig(crop_padding=2, flip="alternate", cutout=3),
    ),
    "resnet, mixup, colours": small_recipe(
        model=ModelConfig(name="resnet", widths=(4, 6), blocks=1), optim=MOMENTUM,
        augment=AugmentConfig(mixup=0.4, brightness=0.2, rotation=10.0),
    ),
    "whitened, bf16": small_recipe(
        model=ModelConfig(name="whitened", widths=(6, 8), init="dirac"), optim=OptimConfig(name="muon", lr=0.05),
        precision="bf16",
    ),
    "fp16": small_recipe(optim=MOMENTUM, precision="fp16"),
    "plateau, early stop": small_recipe(
        epochs=6, early_stop=2, select_metric="loss", optim=OptimConfig(lr=0.7, momentum=0.9),
        schedule=ScheduleConfig(name="plateau", gamma=0.5, patience=0),
    ),
    "stages": small_recipe(
        epochs=1, model=NORM_CNN, optim=MOMENTUM, ema_decay=0.7,
        schedule=ScheduleConfig(name="plateau", patience=0),
        then=(Stage(epochs=1, lr=0.3), Stage(epochs=1, lr=0.01, schedule=COSINE)),
    ),
    "eval-mode bug": small_recipe(model=NORM_CNN, eval_mode_after_first_epoch=True),
    "frozen body": small_recipe(model=NORM_CNN, optim=OptimConfig(lr=0.1, head_lr_factor=10)),
}  # fmt: skip


def begun(name: str) -> tuple[TrainState, Any]:
    state, data = fresh(RECIPES[name])
    if name == "frozen body":
        state.model.body.requires_grad_(False)
        state = TrainState(state.model, state.recipe, state.data_digest, ONE.device)
    return state, data


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_goes_on_from_every_step_and_epoch_to_the_same_bits(tmp_path: Path, name: str):
    """Saved at each report of a whole run, through files, into a fresh state: weights, best weights, optimizer,
    progress and every row that follows are those of the run that was not stopped."""
    whole, data = begun(name)
    rows, saved = [], []
    for number, report in enumerate(reports(whole, data)):
        rows += rows_of(report)
        saved.append(save_checkpoint(tmp_path / str(number), whole, {}))
    for number, folder in enumerate(saved, 1):
        state, data = begun(name)
        torch.manual_seed(number)  # whatever a new process has drawn before
        load_checkpoint(folder).restore(state)
        assert train(state, data) == rows[number:], folder
        assert differing_tensors(state.tensors(), whole.tensors()) == [], folder
        assert differing_tensors(state.chosen_weights(), whole.chosen_weights()) == [], folder
        assert settled(state) == settled(whole), folder


def settled(state: TrainState) -> dict[str, Any]:
    """The scalars without the clock."""
    scalars = state.scalars()
    del scalars["progress"]["seconds"]
    return scalars


def test_the_runs_above_do_what_they_are_named_for():
    """Otherwise their resuming would prove nothing: the rate falls, the run stops early, stages begin anew."""
    state, data = begun("plateau, early stop")
    train(state, data)
    assert state.progress.outcome == "early stop"
    assert state.progress.plateau.factor < 1
    state, data = begun("stages")
    epochs = [row for row in train(state, data) if row["kind"] == "epoch"]
    assert [row["train/lr"] for row in epochs[:2]] == [0.1, 0.3]
    state, data = begun("fp16")
    train(state, data)
    assert state.scaler.is_enabled()


@pytest.mark.parametrize("stop", [1, 3, 4])  # in an epoch, at its last step before it is measured, in the next
def test_a_run_that_was_told_to_stop_goes_on_to_the_same_bits(tmp_path: Path, stop: int):
    recipe = RECIPES["stages"]
    whole, data = fresh(recipe)
    rows = train(whole, data)
    first, data = fresh(recipe)
    before = train(first, data, options=FitOptions(should_stop=lambda: first.progress.step == stop))
    folder = save_checkpoint(tmp_path, first, {})
    second, data = fresh(recipe)
    load_checkpoint(folder).restore(second)
    after = train(second, data, options=FitOptions(pace=Pace(steps=2)))
    assert before + after == rows
    assert differing_tensors(second.tensors(), whole.tensors()) == []


def test_a_finished_run_stays_finished(tmp_path: Path):
    state, data = begun("plateau, early stop")
    train(state, data)
    folder = save_checkpoint(tmp_path, state, {})
    again, data = begun("plateau, early stop")
    load_checkpoint(folder).restore(again)
    assert train(again, data) == []
    assert again.progress.outcome == "early stop"


def test_seconds_go_on_from_where_they_were(tmp_path: Path):
    state, data = begun("fp16")
    next(iter(reports(state, data)))
    state.progress.seconds = 1000.0
    folder = save_checkpoint(tmp_path, state, {})
    again, data = begun("fp16")
    load_checkpoint(folder).restore(again)
    train(again, data)
    assert 1000 < again.progress.seconds < 1100


# What is in the directory


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A checkpoint at step 3, at the end of its first epoch."""
    state, data = fresh(small_recipe(model=NORM_CNN, ema_decay=0.9))
    for report in reports(state, data):
        if isinstance(report, EpochReport):
            break
    return save_checkpoint(tmp_path_factory.mktemp("good"), state, {"unicode": "猫"})


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / good.name))


def test_the_directory_holds_the_sealed_files_and_nothing_else(good: Path):
    assert good.name == "step-00000003"
    assert {path.name for path in good.iterdir()} == {*FILES, "manifest.json"}
    assert [path.name for path in good.parent.iterdir()] == [good.name], "nothing is left aside"
    assert load_checkpoint(good).card["unicode"] == "猫"


def test_the_model_file_is_used_with_plain_safetensors_and_gives_the_measured_accuracy(tmp_path: Path):
    state, data = fresh(small_recipe(epochs=4, model=NORM_CNN, ema_decay=0.8, optim=OptimConfig(lr=0.1)))
    train(state, data)
    folder = save_checkpoint(tmp_path, state, {})

    from safetensors.torch import load_file

    recipe = from_dict(Recipe, json.loads((folder / "recipe.json").read_text()))
    net = build_model(recipe.model, channels=3, size=8, num_classes=4)
    net.load_state_dict(load_file(folder / "model.safetensors"))

    measured = evaluate(net, data.loaders.validation, ONE, num_classes=4, precision="fp32", views="none")
    assert measured.accuracy == state.progress.best_metric


def test_a_model_alone_is_sealed_the_same_way(tmp_path: Path):
    state, _ = fresh(small_recipe())
    save_model(tmp_path / "model", state, {"a": 1})
    verify(tmp_path / "model", MODEL_FILES)
    (tmp_path / "model" / "model.json").write_text('{"a": 2}')
    with pytest.raises(CheckpointError, match=r"model\.json"):
        verify(tmp_path / "model", ("model.safetensors", "model.json"))


# Damage


def content_of(folder: Path) -> dict[str, Any]:
    """Manifest and state as they are understood: equal for a damage that is none (a space become a tab)."""
    card = load_checkpoint(folder).card
    return {"manifest": json.loads((folder / "manifest.json").read_text()), "card": card}


@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
def test_any_damaged_byte_is_refused(copy: Path, file: str):
    """60 bytes of each file, drawn anew from a fixed seed, each by flipping bits or by another byte."""
    path, draw = copy / file, random.Random(f"damage {file}")
    whole, before = path.read_bytes(), content_of(copy)
    for place in draw.sample(range(len(whole)), min(60, len(whole))):
        damaged = bytearray(whole)
        damaged[place] = draw.choice([whole[place] ^ 1 << draw.randrange(8), draw.randrange(256)])
        path.write_bytes(damaged)
        if (file == "manifest.json" and chr(whole[place]).isspace()) or damaged == whole:
            accepted_unharmed(copy, before)
            continue
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(copy)
        assert copy.name in caught.value.found
    path.write_bytes(whole)
    assert content_of(copy) == before


def accepted_unharmed(folder: Path, before: dict[str, Any]) -> None:
    """A byte of white space in the manifest may be refused, or accepted with nothing changed."""
    with contextlib.suppress(CheckpointError):
        assert content_of(folder) == before


@pytest.mark.parametrize("key", ["bytes", "sha256", "files", "format_version"])
def test_a_manifest_with_a_damaged_key_is_refused_in_words(copy: Path, key: str):
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace(f'"{key}"', f'"{key[:-1]}~"', 1))
    with pytest.raises(CheckpointError):
        load_checkpoint(copy)


OTHER_FORMS = [
    "", "null", "[]", "3", '"files"', "\0" * 64, "\ud800", '{"format_version": 1}',
    '{"format_version": 1, "files": null}', '{"format_version": 1, "files": {"state.safetensors": 7}}',
    json.dumps({"format_version": 1, "files": list(FILES)}),
]  # fmt: skip


@pytest.mark.parametrize("text", OTHER_FORMS)
def test_a_manifest_of_another_form_is_refused_in_words(copy: Path, text: str):
    (copy / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(CheckpointError):
        load_checkpoint(copy)


@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
def test_a_truncated_lengthened_or_missing_file_is_refused(copy: Path, file: str):
    path = copy / file
    whole = path.read_bytes()
    for length in {0, 1, 8, len(whole) // 2, len(whole) - 2}:  # a manifest without its line break is a whole one
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=file):
            load_checkpoint(copy)
    path.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(copy)
    path.unlink()
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(copy)
    path.mkdir()
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(copy)


def test_swapped_files_are_refused(copy: Path):
    state, model = copy / "state.safetensors", copy / "model.safetensors"
    aside = state.rename(copy / "aside")
    model.rename(state)
    aside.rename(model)
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        load_checkpoint(copy)


def test_a_file_of_another_checkpoint_is_refused(copy: Path, tmp_path: Path):
    state, data = fresh(small_recipe(model=NORM_CNN, ema_decay=0.9))
    next(iter(reports(state, data)))
    other = save_checkpoint(tmp_path / "other", state, {})
    shutil.copy(other / "state.json", copy / "state.json")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        load_checkpoint(copy)


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_format_version_is_named(copy: Path, version: Any):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "format_version": version}))
    with pytest.raises(CheckpointError, match="version"):
        load_checkpoint(copy)


def test_an_empty_directory_and_a_plain_file_are_refused(tmp_path: Path):
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000002").write_text("not a directory")
    for folder in tmp_path.iterdir():
        with pytest.raises(CheckpointError, match=folder.name):
            load_checkpoint(folder)


def test_a_disk_that_cannot_read_a_file_back_is_a_damage_like_any_other(copy: Path, monkeypatch):
    """EIO of a bad block: the previous checkpoint must be taken, not the program ended."""

    def unreadable(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(sealed, "sha256_of", unreadable)
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        load_checkpoint(copy)


def test_a_sealed_file_that_is_no_safetensors_is_refused(copy: Path):
    (copy / "model.safetensors").write_bytes(b"\xff" * 100)
    (copy / "manifest.json").unlink()
    seal(copy)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(copy)


# Pickle


class Bomb:
    """What runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


PICKLE_NAMES = [*FILES, "manifest.json", "state.pt", "optimizer.pkl", "model.pth", "data.pkl", "checkpoint.ckpt"]


@pytest.mark.parametrize("resealed", [False, True])
@pytest.mark.parametrize("name", PICKLE_NAMES)
def test_a_pickle_is_never_opened_under_any_name(copy: Path, tmp_path: Path, name: str, resealed: bool):
    mark = tmp_path / "exploded"
    bomb = pickle.dumps({"model": Bomb(mark)})
    (copy / name).write_bytes(bomb)
    if resealed and name != "manifest.json":
        (copy / "manifest.json").unlink()
        seal(copy)
    if name in (*FILES, "manifest.json"):
        with pytest.raises(CheckpointError):
            load_checkpoint(copy)
    else:
        load_checkpoint(copy)
    assert newest_good(tmp_path)[0] is not None if name not in (*FILES, "manifest.json") else True
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists(), "the bomb of this test is none"


# Choosing among several


def saved_at(root: Path, *steps: int) -> None:
    state, _ = fresh(small_recipe())
    for step in steps:
        state.progress.step = step
        save_checkpoint(root, state, {"step": step})


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_newest_good_one_is_taken_and_the_damaged_ones_are_named(tmp_path: Path):
    saved_at(tmp_path, 2, 5, 9, 12)
    (tmp_path / checkpoint_name(12) / "state.json").write_text("{}")
    (tmp_path / checkpoint_name(9) / "manifest.json").unlink()
    found, problems = newest_good(tmp_path)
    assert found.card == {"step": 5}
    assert found.folder == tmp_path / checkpoint_name(5)
    for step, problem in zip((12, 9), problems, strict=True):
        assert checkpoint_name(step) in str(problem)


def test_without_checkpoints_there_is_none_and_nothing_is_wrong(tmp_path: Path):
    assert newest_good(tmp_path) == (None, [])
    assert newest_good(tmp_path / "missing") == (None, [])


def test_if_none_is_good_the_run_does_not_start_afresh_in_silence(tmp_path: Path):
    saved_at(tmp_path, 2, 5)
    for folder in tmp_path.iterdir():
        (folder / "model.json").write_text("damaged")
    with pytest.raises(CheckpointError, match="step-00000005"):
        newest_good(tmp_path)


def test_what_a_killed_process_left_half_written_is_no_checkpoint(tmp_path: Path):
    saved_at(tmp_path, 2)
    shutil.copytree(tmp_path / checkpoint_name(2), tmp_path / ".aside-1234-step-00000009")
    (tmp_path / "step-00000009.tmp").mkdir()
    (tmp_path / "step-9").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]


def test_checkpoints_are_sorted_by_step_newest_first(tmp_path: Path):
    steps = [7, 99_999_999, 100_000_000, 12_345, 1_000_000_000]  # eight digits, and more
    for step in steps:
        (tmp_path / checkpoint_name(step)).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == [checkpoint_name(s) for s in sorted(steps, reverse=True)]


@pytest.mark.parametrize(("best", "kept"), [(2, [2, 9, 12]), (12, [9, 12]), (9, [9, 12]), (0, [9, 12]), (77, [9, 12])])
def test_pruning_keeps_the_newest_two_and_the_best(tmp_path: Path, best: int, kept: list[int]):
    saved_at(tmp_path, 2, 5, 9, 12)
    prune_checkpoints(tmp_path, best_steps=[best])
    assert names(tmp_path) == [checkpoint_name(step) for step in kept]


def test_a_damaged_newer_one_does_not_outlive_the_good_ones_that_are_written_after_it(tmp_path: Path):
    """A run that went back to step 5 past a damaged step 12 and saves steps 7 and 9: both are to be kept."""
    saved_at(tmp_path, 5, 12)
    (tmp_path / checkpoint_name(12) / "state.json").write_text("{}")
    assert newest_good(tmp_path)[0].card == {"step": 5}
    for step in (7, 9):
        saved_at(tmp_path, step)
        prune_checkpoints(tmp_path, best_steps=[])
    assert {checkpoint_name(7), checkpoint_name(9)} <= set(names(tmp_path))


# Errors while saving


class FailsAt:
    """Stands in for a function of `os`: its call number `at` raises ENOSPC, the others go through."""

    def __init__(self, function, at: int) -> None:
        self.function, self.at, self.calls = function, at, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("function", ["fsync", "replace", "rename"])
def test_a_full_disk_in_the_middle_of_saving_leaves_nothing_behind(tmp_path: Path, monkeypatch, function: str):
    """Each call to the disk fails once: before the rename nothing is there, after it all of it."""
    saved_at(tmp_path, 2)
    state, _ = fresh(small_recipe())
    state.progress.step = 5
    real, at, failed = getattr(os, function), 0, True
    while failed:
        at += 1
        monkeypatch.setattr(os, function, FailsAt(real, at))
        try:
            save_checkpoint(tmp_path, state, {})
            failed = False
        except OSError as error:
            assert error.errno == errno.ENOSPC
        monkeypatch.setattr(os, function, real)
        if (tmp_path / checkpoint_name(5)).exists():
            load_checkpoint(tmp_path / checkpoint_name(5))
            shutil.rmtree(tmp_path / checkpoint_name(5))
        assert names(tmp_path) == [checkpoint_name(2)], f"call {at} of os.{function}"
    assert at > 1


@pytest.mark.parametrize("function", ["fsync", "replace", "rename"])
def test_an_error_while_a_checkpoint_is_replaced_leaves_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch, function: str
):
    state, _ = fresh(small_recipe())
    state.progress.step = 5
    real = getattr(os, function)
    for at in range(1, 40):
        save_checkpoint(tmp_path, state, {"which": "old"})
        monkeypatch.setattr(os, function, FailsAt(real, at))
        try:
            save_checkpoint(tmp_path, state, {"which": "new"})
            return
        except OSError:
            pass
        finally:
            monkeypatch.setattr(os, function, real)
        assert names(tmp_path) == [checkpoint_name(5)], f"call {at} of os.{function}"
        assert load_checkpoint(tmp_path / checkpoint_name(5)).card["which"] in ("old", "new")


def test_a_tensor_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch):
    """safetensors writes by itself, in its own kind of error."""

    def half(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save_file(tensors, path)
        os.truncate(path, 10)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", half)
    with pytest.raises(OSError, match="No space"):
        saved_at(tmp_path, 5)
    assert names(tmp_path) == []


def test_checkpoints_are_asked_for_and_found_in_a_loop_as_a_worker_runs_it(tmp_path: Path):
    """Killed after any report, the newest checkpoint continues the run; two and the best are on the disk."""
    recipe = replace(RECIPES["stages"], name="loop")
    whole, data = fresh(recipe)
    train(whole, data)
    for _ in range(20):
        state, data = fresh(recipe)
        found, problems = newest_good(tmp_path)
        assert problems == []
        if found is not None:
            found.restore(state)
        for report in reports(state, data, options=FitOptions(checkpoint_steps=2)):
            if not isinstance(report, StepReport) or report.save:
                save_checkpoint(tmp_path, state, {})
                prune_checkpoints(tmp_path, best_steps=[state.progress.best_step])
                break  # "killed" after each checkpoint
        if state.progress.outcome:
            break
    assert len(names(tmp_path)) <= 3
    assert differing_tensors(state.tensors(), whole.tensors()) == []
    assert settled(state) == settled(whole)
