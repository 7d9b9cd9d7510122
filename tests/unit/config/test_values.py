"""Frozen dataclasses as values: messages name value, rule and remedy; JSON is read strictly; paths name fields."""

import json
import math
import re
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distcifar.config import (
    AugmentConfig,
    OptimConfig,
    Recipe,
    RunSpec,
    Stage,
    did_you_mean,
    differences,
    from_dict,
    replace_at,
    to_dict,
)
from distcifar.config.values import Range, require, require_choice, require_range, require_ranges
from distcifar.errors import ConfigError

RECIPE = Recipe(name="example", then=(Stage(epochs=2, lr=0.01),))


# ---- checks


def test_an_error_says_what_was_found_what_is_required_and_what_to_do():
    with pytest.raises(ConfigError) as caught:
        require(False, "x is 3", "x must be 4", "Set x to 4")
    assert str(caught.value) == "x is 3. x must be 4. Set x to 4."
    assert require(True, "", "", "") is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.1, 1.1])
def test_a_number_outside_its_range_is_told_with_the_range(value):
    with pytest.raises(ConfigError) as caught:
        require_range("optim.some_rate", value, 0.0, 1.0)
    assert repr(value) in str(caught.value)
    assert ">= 0 and <= 1" in str(caught.value)
    assert "--optim.some-rate" in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_in_no_range(value):
    with pytest.raises(ConfigError, match="finite"):
        require_range("x", value, -math.inf)


def test_the_ends_of_a_range_belong_to_it_unless_it_is_open():
    require_range("x", 0, 0, 1)
    require_range("x", 1, 0, 1)
    require_range("x", 1, 0, 1, open_low=True)
    with pytest.raises(ConfigError, match="x must be a finite number > 0 and <= 1"):
        require_range("x", 0, 0, 1, open_low=True)


def test_an_integer_too_large_for_a_float_is_out_of_range_like_any_other():
    with pytest.raises(ConfigError, match="seed"):
        require_range("seed", 10**400, 0, 2**63 - 1)


@dataclass
class Sizes:
    low: float = 1.0
    sizes: tuple[int, ...] = (1, 2)


SIZES = {"low": Range(0, open_low=True), "sizes": Range(1, 9)}


def test_the_ranges_of_a_table_hold_for_each_field_and_each_item_of_a_tuple():
    require_ranges(Sizes(), "some", SIZES)
    require_ranges(Sizes(sizes=()), "some", SIZES)
    for value, told in (
        (Sizes(low=0.0), "some.low is 0.0. some.low must be a finite number > 0."),
        (Sizes(sizes=(1, 10)), "some.sizes is 10. some.sizes must be a finite number >= 1 and <= 9."),
    ):
        with pytest.raises(ConfigError, match=re.escape(told)):
            require_ranges(value, "some", SIZES)


def test_a_misspelt_choice_is_answered_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        require_choice("optim.name", "adamm", ("sgd", "adam", "muon"))
    assert "'adamm'" in str(caught.value)
    assert "Did you mean 'adam'? Known: adam, muon, sgd" in str(caught.value)


def test_nothing_is_suggested_where_nothing_is_near():
    assert did_you_mean("zzz", ["lr", "momentum"]) == "Known: lr, momentum"
    assert did_you_mean("learning", iter(["weight_decay", "learning_rate"])).startswith("Did you mean 'learning_rate'")


# ---- strict reading


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"name": "x", "epoch": 3}, "Recipe has the key 'epoch'.*Did you mean 'epochs'"),
        ({"name": "x", "optim": {"learning_rate": 3}}, "optim has the key 'learning_rate'.*Known: .*lr"),
        ({"name": "x", "optim": {"mommentum": 0.9}}, "optim has the key 'mommentum'.*Did you mean 'momentum'"),
        ({"name": "x", "then": [{"epochs": 1, "lr": 0.1, "sched": {}}]}, "then has the key 'sched'"),
        ({"name": 3}, "name is 3.*of type str"),
        ({"name": None}, "name is None"),
        ({"name": "x", "epochs": 2.0}, "epochs is 2.0.*of type int"),
        ({"name": "x", "epochs": True}, "epochs is True.*of type int"),
        ({"name": "x", "epochs": "2"}, "epochs is '2'"),
        ({"name": "x", "drop_last": 1}, "drop_last is 1.*of type bool"),
        ({"name": "x", "reported_accuracy": "0.9"}, "reported_accuracy is '0.9'.*of type float"),
        ({"name": "x", "optim": {"lr": "0.1"}}, "optim.lr is '0.1'.*of type float"),
        ({"name": "x", "optim": {"lr": True}}, "optim.lr is True"),
        ({"name": "x", "optim": {"lr": None}}, "optim.lr is None"),
        ({"name": "x", "optim": [0.1]}, "optim is .*an object with the fields of OptimConfig"),
        ({"name": "x", "optim": {"betas": 0.9}}, "optim.betas is 0.9.*list"),
        ({"name": "x", "optim": {"betas": ["a", "b"]}}, "optim.betas is 'a'"),
        ({"name": "x", "model": {"widths": "64"}}, "model.widths is '64'.*list"),
        ({"name": "x", "model": {"layout": [32, "M"]}}, "model.layout is 32.*of type str"),
        ({"name": "x", "augment": {"flip": "randm"}}, "augment.flip is 'randm'.*Did you mean 'random'"),
        ([], r"Recipe is \[\]"),
    ],
)
def test_unknown_keys_and_wrong_types_are_named_by_their_path(data, named):
    with pytest.raises(ConfigError, match=named):
        from_dict(Recipe, data)


@pytest.mark.parametrize("betas", [[], [0.9], [0.9, 0.99, 0.999]])
def test_a_pair_is_a_pair(betas):
    with pytest.raises(ConfigError, match="betas"):
        from_dict(OptimConfig, {"betas": betas})


def test_a_missing_field_is_a_config_error_that_names_it():
    with pytest.raises(ConfigError, match=r"Recipe.*name"):
        from_dict(Recipe, {})
    with pytest.raises(ConfigError, match=r"then.*lr"):
        from_dict(Recipe, {"name": "x", "then": [{"epochs": 3}]})


def test_reading_converts_lists_to_tuples_and_integers_to_floats_and_nothing_else():
    data = {"name": "x", "optim": {"lr": 1, "betas": [0, 0.5]}, "model": {"widths": [8, 16]}, "reported_accuracy": None}
    recipe = from_dict(Recipe, data)
    assert recipe.optim.betas == (0.0, 0.5)
    assert type(recipe.optim.lr) is type(recipe.optim.betas[0]) is float
    assert recipe.model.widths == (8, 16)
    assert hash(recipe)


def test_fields_that_are_left_out_take_their_defaults():
    assert from_dict(Recipe, {"name": "x"}) == Recipe(name="x")


def paths(tree, prefix=()):
    """Every place in a tree of dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from paths(value, (*prefix, key))


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(paths(to_dict(RECIPE)), key=str)), ANY_JSON)
@example(("seed",), 10**400)
@example(("optim", "lr"), 10**400)
@example(("optim", "betas"), [0.9])
@example(("optim", "betas"), [0.9, 0.9, 0.9])
@example(("then", 0), {"epochs": 1})
@example(("optim", "lr"), math.nan)
def test_whatever_a_file_holds_it_is_a_recipe_or_a_config_error(path, value):
    data = to_dict(RECIPE)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    try:
        recipe = from_dict(Recipe, data)
    except ConfigError:
        return
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe
    assert hash(recipe)


# ---- writing


@dataclass(frozen=True)
class Inner:
    pair: tuple[int, float] = (1, 2.0)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...] = ()
    perhaps: float | None = None


def test_to_dict_knows_dicts_lists_and_scalars_only():
    value = Outer(Inner(), (Inner((3, 4.0)),), None)
    tree = {"inner": {"pair": [1, 2.0]}, "many": [{"pair": [3, 4.0]}], "perhaps": None}
    assert to_dict(value) == tree
    assert from_dict(Outer, json.loads(json.dumps(tree))) == value


# ---- dotted paths


def test_replace_at_changes_one_field_at_any_depth_and_nothing_else():
    changed = replace_at(RECIPE, "optim.lr", 0.5)
    assert differences(to_dict(RECIPE), to_dict(changed)) == ["optim.lr: 0.1 -> 0.5"]
    assert RECIPE.optim.lr == 0.1
    assert replace_at(RECIPE, "epochs", 3).epochs == 3
    assert replace_at(RECIPE, "augment", AugmentConfig(cutout=8)).augment.cutout == 8
    assert replace_at(RunSpec(), "workers", 2) == RunSpec(workers=2)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("optim.learning_rate", "no field 'learning_rate' in OptimConfig"),
        ("optm.lr", "no field 'optm' in Recipe.*Did you mean 'optim'"),
        ("optim.momentun", "Did you mean 'momentum'"),
        ("", "no field ''"),
        (".lr", "no field ''"),
        ("optim.", "no field ''"),
        ("optim..lr", "no field ''"),
        ("optim.lr.x", "no field 'x'"),
        ("epochs.x", "no field 'x'"),
        ("then.0.lr", "no field '0'"),
    ],
)
def test_a_path_to_nowhere_is_answered_with_the_nearest_field(path, named):
    with pytest.raises(ConfigError, match=named):
        replace_at(RECIPE, path, 0.5)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optim.lr", -1.0),
        ("optim.lr", math.nan),
        ("optim.name", "adamm"),
        ("data.validation", 0),  # the recipe chooses its best epoch on validation
        ("optim.momentum", 1.5),
    ],
)
def test_every_level_is_checked_again_after_a_replacement(path, value):
    with pytest.raises(ConfigError):
        replace_at(RECIPE, path, value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("epochs", 2.5),
        ("optim.lr", "0.1"),
        ("optim", 3),
        ("batch_size", None),
        ("drop_last", "no"),
        ("model.widths", 8),
    ],
)
def test_a_replacement_of_the_wrong_type_is_a_config_error(path, value):
    """What a sweep draws reaches a recipe this way: 2.5 epochs must not be found out by range()."""
    with pytest.raises(ConfigError):
        replace_at(RECIPE, path, value)


def test_a_replacement_is_read_as_json_is():
    """Search spaces hold lists and whole numbers; a recipe stays hashable and its digest the same."""
    assert hash(replace_at(RECIPE, "model.widths", [8, 16])) == hash(replace_at(RECIPE, "model.widths", (8, 16)))
    assert type(replace_at(RECIPE, "optim.lr", 1).optim.lr) is float


def test_differences_name_each_place_once():
    a = {"same": 1, "lr": 0.1, "deep": {"x": [1, 2], "only": True}}
    b = {"same": 1, "lr": 0.2, "deep": {"x": [1, 3]}}
    assert differences(a, b) == ["deep.only: True -> None", "deep.x: [1, 2] -> [1, 3]", "lr: 0.1 -> 0.2"]
    assert differences(a, a) == []
