"""A recipe is what changes the numbers: checked when it is built, frozen, JSON and back, named by its digest."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distcifar.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    ScheduleConfig,
    Stage,
    from_dict,
    replace_at,
    to_dict,
)
from distcifar.errors import ConfigError


def shares(low=0.0, high=1.0, **options):
    return st.floats(low, high, **options)


def rates(high):
    return st.floats(0, high, exclude_min=True)


def sizes(high):
    return st.lists(st.integers(1, high), max_size=4).map(tuple)


models = st.builds(
    ModelConfig,
    name=st.sampled_from(["linear", "mlp", "cnn", "resnet", "resnet-d2l", "whitened", "torchvision-resnet18"]),
    layout=st.lists(st.sampled_from(["M", "32", "64"]), max_size=4).map(tuple),
    kernel=st.integers(1, 15),
    batchnorm=st.booleans(),
    widths=sizes(65536),
    hidden=sizes(65536),
    dropout=shares(high=0.95),
    init=st.sampled_from(["default", "xavier", "dirac"]),
    pretrained=st.booleans(),
    weights=st.text(max_size=5),
)
data = st.builds(
    DataConfig,
    dataset=st.text(min_size=1, max_size=9),
    validation=st.integers(1, 10**6),
    train_first=st.integers(0, 10**6),
    split_seed=st.integers(0, 2**63 - 1),
    normalize=st.sampled_from(["measured", "half", "imagenet", "cifar10", "none"]),
)
augments = st.builds(
    AugmentConfig,
    crop_padding=st.integers(0, 64),
    crop_fill=st.sampled_from(["zeros", "reflect"]),
    flip=st.sampled_from(["none", "random", "alternate"]),
    cutout=st.integers(0, 512),
    brightness=shares(),
    hue=shares(high=0.5),
    rotation=shares(high=180.0),
    mixup=shares(),
)
optims = st.builds(
    OptimConfig,
    name=st.sampled_from(["sgd", "adam", "adamw", "muon"]),
    lr=rates(100),
    momentum=shares(0.1, 0.9999),
    nesterov=st.booleans(),
    betas=st.tuples(shares(high=0.99999), shares(high=0.99999)),
    weight_decay=shares(high=10),
    clip_norm=st.floats(0, allow_infinity=False),
)
schedules = st.builds(
    ScheduleConfig,
    name=st.sampled_from(["constant", "step", "exponential", "cosine", "linear", "plateau"]),
    every=st.sampled_from(["step", "epoch"]),
    warmup_epochs=shares(high=100),
    gamma=rates(1),
    final=shares(),
)
recipes = st.builds(
    Recipe,
    name=st.text(max_size=9),
    description=st.text(max_size=9),
    reported_accuracy=st.none() | shares(),
    epochs=st.integers(1, 100_000),
    batch_size=st.integers(1, 10**6),
    seed=st.integers(0, 2**63 - 1),
    precision=st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
    label_smoothing=shares(high=0.99),
    tta=st.sampled_from(["none", "flip"]),
    select_metric=st.sampled_from(["accuracy", "loss"]),
    select_on=st.sampled_from(["validation", "test"]),
    drop_last=st.booleans(),
    model=models,
    data=data,
    augment=augments,
    optim=optims,
    schedule=schedules,
    then=st.lists(st.builds(Stage, epochs=st.integers(1, 9), lr=rates(1), schedule=schedules), max_size=2).map(tuple),
)

# Another valid value for every field that changes the numbers.
OTHER_VALUES = {
    "epochs": 11, "batch_size": 64, "seed": 1, "precision": "bf16", "label_smoothing": 0.1, "ema_decay": 0.9,
    "tta": "flip", "early_stop": 3, "select_metric": "loss", "select_on": "test", "drop_last": True,
    "hard_share": 0.5, "hard_from": 0.25,
    "on_divergence": "rollback", "spike_factor": 3.0, "sync_batchnorm": True,
    "eval_mode_after_first_epoch": True, "then": (Stage(epochs=1, lr=0.1),),
    "model.name": "cnn", "model.layout": ("32", "M"), "model.kernel": 5, "model.padding": 2, "model.batchnorm": False,
    "model.widths": (8,), "model.blocks": 3, "model.stem_pool": True, "model.hidden": (10,), "model.dropout": 0.5,
    "model.init": "dirac", "model.pretrained": True, "model.weights": "net.pth", "model.freeze": True,
    "model.freeze_bn_stats": True, "data.dataset": "mnist", "data.validation": 100, "data.train_first": 100,
    "data.size": 32, "data.split_seed": 1, "data.storage": "jpeg", "data.normalize": "half", "augment.crop_padding": 4,
    "augment.crop_fill": "reflect", "augment.flip": "random", "augment.cutout": 8, "augment.brightness": 0.1,
    "augment.contrast": 0.1, "augment.saturation": 0.1, "augment.hue": 0.1, "augment.rotation": 15.0,
    "augment.random_resized_crop": 28, "augment.center_crop": 28, "augment.resize": 64, "augment.mixup": 0.2,
    "augment.progressive": ("16@0.5",),
    "augment.cutmix": 0.2, "optim.name": "adam", "optim.lr": 0.2, "optim.momentum": 0.8, "optim.nesterov": True,
    "optim.betas": (0.8, 0.9), "optim.weight_decay": 0.1, "optim.decay_all": False, "optim.head_lr_factor": 2.0,
    "optim.bias_lr_factor": 2.0, "optim.muon_lr": 0.1, "optim.muon_momentum": 0.5, "optim.clip_norm": 1.0,
    "optim.accumulate": 2,
    "optim.freeze": ("body.0@0.5",), "schedule.name": "cosine", "schedule.every": "step", "schedule.warmup_epochs": 1.0,
    "schedule.step_epochs": 3, "schedule.gamma": 0.5, "schedule.patience": 1, "schedule.peak": 0.2,
    "schedule.start": 0.1, "schedule.final": 0.1,
}  # fmt: skip
TEXTS = {"name": "other", "description": "other", "reported_accuracy": 0.5}
# Fields whose other value needs company, so that the combination makes sense.
BASES = {
    "model.freeze": {"model.pretrained": True},
    "augment.center_crop": {"augment.random_resized_crop": 28},
}


def leaves(value, prefix=""):
    """The dotted path of every field of a tree of dataclasses that is not a dataclass itself."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def recipe_with(**changes):
    """Recipe(name="x") with fields at dotted paths (with __ for the dot) replaced."""
    recipe = Recipe(name="x")
    for path, value in changes.items():
        recipe = replace_at(recipe, path.replace("__", "."), value)
    return recipe


# ---- JSON and digest


@settings(max_examples=30, deadline=None)
@given(recipes)
def test_json_and_back_is_the_same_recipe_with_the_same_digest(recipe):
    text = json.dumps(to_dict(recipe), allow_nan=False)
    again = from_dict(Recipe, json.loads(text))
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert hash(again) == hash(recipe)


def test_the_list_of_other_values_is_complete():
    assert set(leaves(Recipe(name="x"))) == OTHER_VALUES.keys() | TEXTS.keys()


@pytest.mark.parametrize("path", OTHER_VALUES)
def test_the_digest_changes_with_every_field_that_changes_the_numbers(path):
    base = Recipe(name="x")
    for company, value in BASES.get(path, {}).items():
        base = replace_at(base, company, value)
    changed = replace_at(base, path, OTHER_VALUES[path])
    assert changed != base
    assert changed.digest() != base.digest()


@pytest.mark.parametrize("path", TEXTS)
def test_the_digest_does_not_change_with_texts(path):
    base = Recipe(name="x")
    changed = replace_at(base, path, TEXTS[path])
    assert changed != base
    assert changed.digest() == base.digest()
    assert path not in changed.numbers()


def test_equal_numbers_have_equal_digests_however_they_are_written():
    """lr=1 in a recipe file is 1.0 when its run is resumed from JSON."""
    written = Recipe(name="x", optim=OptimConfig(lr=1, weight_decay=0), schedule=ScheduleConfig(warmup_epochs=2))
    read = from_dict(Recipe, json.loads(json.dumps(to_dict(written))))
    assert read == written
    assert read.digest() == written.digest()


def test_a_digest_is_16_hex_digits():
    assert len(Recipe(name="x").digest()) == 16
    assert int(Recipe(name="x").digest(), 16) >= 0


# ---- frozen values


def test_recipes_are_frozen_and_hashable():
    recipe = Recipe(name="x")
    for value in (recipe, recipe.model, recipe.data, recipe.augment, recipe.optim, recipe.schedule):
        for field in dataclasses.fields(value):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, field.name, getattr(value, field.name))
    assert {recipe, Recipe(name="x")} == {recipe}


def test_positional_arguments_are_refused():
    """Fields may be reordered without changing what a recipe means."""
    for kind in (Recipe, ModelConfig, DataConfig, AugmentConfig, OptimConfig, ScheduleConfig, Stage):
        with pytest.raises(TypeError):
            kind("x")


def test_the_configuration_needs_neither_torch_nor_numpy():
    """A laptop that only submits jobs has neither."""
    found = "import sys, distcifar.config; print(sorted({'torch', 'numpy', 'ray', 'ffcv', 'wandb'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, timeout=60, check=True)
    assert process.stdout.strip() == "[]"


# ---- stages


def test_the_recipe_itself_is_the_first_stage():
    schedule = ScheduleConfig(name="cosine")
    further = Stage(epochs=5, lr=0.01)
    recipe = Recipe(name="x", epochs=3, optim=OptimConfig(lr=0.3), schedule=schedule, then=(further,))
    assert recipe.stages == (Stage(epochs=3, lr=0.3, schedule=schedule), further)
    assert recipe.total_epochs == 8
    assert Recipe(name="x", epochs=3).total_epochs == 3


# ---- checks


@pytest.mark.parametrize("rate", [0.0, -0.1, math.nan, math.inf, -math.inf, 101.0])
def test_learning_rates_are_positive_and_finite(rate):
    for build in (
        lambda: OptimConfig(lr=rate),
        lambda: OptimConfig(muon_lr=rate),
        lambda: Stage(epochs=1, lr=rate),
    ):
        with pytest.raises(ConfigError, match="lr is"):
            build()


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("epochs", [0, -1, 100_001]),
        ("batch_size", [0, -8, 1_000_001]),
        ("seed", [-1, 2**63]),
        ("label_smoothing", [-0.1, 1.0, math.nan]),
        ("ema_decay", [-0.1, 1.0, math.inf]),
        ("early_stop", [-1]),
        ("on_divergence", ["continue"]),
        ("spike_factor", [-1.0, 1.0, math.nan, math.inf]),
        ("reported_accuracy", [-0.1, 93.5, math.nan]),
        ("precision", ["fp8", ""]),
        ("tta", ["mirror", ""]),
        ("select_metric", ["f1", ""]),
        ("select_on", ["train"]),
        ("model.name", ["resnet18"]),
        ("model.init", ["kaiming"]),
        ("model.dropout", [-0.1, 1.0, math.nan]),
        ("model.kernel", [0, 16]),
        ("model.blocks", [0]),
        ("model.widths", [(0,), (64, -1)]),
        ("model.hidden", [(0,)]),
        ("model.layout", [("32", "m"), ("0",), ("-3",), ("3.5",), ("",), ("²",)]),
        ("data.dataset", [""]),
        ("data.validation", [-1]),
        ("data.normalize", ["imgnet"]),
        ("data.split_seed", [-1]),
        ("augment.crop_padding", [-1, 65]),
        ("augment.crop_fill", ["edge"]),
        ("augment.flip", ["vertical"]),
        ("augment.cutout", [-1]),
        ("augment.brightness", [-0.1, 1.1, math.nan]),
        ("augment.hue", [0.6]),
        ("augment.rotation", [-1.0, 181.0]),
        ("augment.mixup", [-0.1, 1.5, math.nan]),
        ("augment.cutmix", [1.5]),
        ("optim.name", ["SGD", "lion"]),
        ("optim.momentum", [1.0, -0.1]),
        ("optim.betas", [(0.9, 1.0), (-0.1, 0.9), (math.nan, 0.9)]),
        ("optim.weight_decay", [-1e-9, math.inf]),
        ("optim.clip_norm", [-1.0, math.inf, math.nan]),
        ("optim.accumulate", [0]),
        ("optim.freeze", [("body.0",), ("@0.5",), ("body.0@2",)]),
        ("augment.progressive", [("24",), ("24@2",), ("x@0.5",), ("0@0.5",), ("-4@0.5",)]),
        ("hard_share", [0.0, 1.5]),
        ("hard_from", [-0.1, 1.1]),
        ("schedule.name", ["cosin"]),
        ("schedule.every", ["batch"]),
        ("schedule.warmup_epochs", [-1.0, math.nan, math.inf]),
        ("schedule.gamma", [0.0, 1.5]),
        ("schedule.peak", [1.5]),
    ],
)
def test_values_out_of_range_are_refused_and_named(path, values):
    for value in values:
        with pytest.raises(ConfigError) as caught:
            replace_at(Recipe(name="x"), path, value)
        assert path.rpartition(".")[2] in str(caught.value)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: ModelConfig(freeze=True), "freeze.*pretrained"),
        (lambda: AugmentConfig(mixup=0.2, cutmix=0.2), "mixup.*cutmix"),
        (lambda: AugmentConfig(crop_padding=4, random_resized_crop=28), "crop_padding.*random_resized_crop"),
        (lambda: OptimConfig(nesterov=True, momentum=0.0), "nesterov.*momentum"),
        (lambda: ScheduleConfig(name="onecycle", warmup_epochs=1), "warmup.*onecycle"),
        (lambda: recipe_with(data__validation=0), "validation is 0.*select-on last"),
        (lambda: Recipe(name="x", select_on="last", schedule=ScheduleConfig(name="plateau")), "last.*plateau"),
        (lambda: Recipe(name="x", select_on="last", early_stop=3), "last.*early stopping"),
        (lambda: Recipe(name="x", batch_size=2, optim=OptimConfig(accumulate=4)), "accumulate is 4.*batch_size 2"),
        (
            lambda: Recipe(
                name="x", select_on="last", then=(Stage(epochs=1, lr=0.1, schedule=ScheduleConfig(name="plateau")),)
            ),
            "last.*plateau",
        ),
    ],
)
def test_impossible_combinations_are_refused_with_a_way_out(build, told):
    with pytest.raises(ConfigError, match=told):
        build()


def test_possible_combinations_are_not_refused():
    assert Recipe(name="x", data=DataConfig(validation=0), select_on="last")
    assert Recipe(name="x", data=DataConfig(validation=0), select_on="test", early_stop=2)
    assert ModelConfig(freeze=True, pretrained=True)
    assert OptimConfig(momentum=0.0)
    assert AugmentConfig(mixup=1.0)
    assert AugmentConfig(crop_padding=4, resize=224)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Recipe(name="x", epochs=2.5),
        lambda: Recipe(name="x", batch_size="64"),
        lambda: DataConfig(validation=10.5),
        lambda: OptimConfig(lr="0.1"),
        lambda: OptimConfig(betas=(0.9,)),
        lambda: ModelConfig(layout="32M"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_when_the_recipe_is_built(build):
    """Recipes are Python: what JSON may not hold, a notebook may not either."""
    with pytest.raises(ConfigError):
        build()
