"""Search spaces: their points are recipes, texts and JSON come back as they were, mistakes are told at once."""

import json
import math
import random
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distcifar.config import Recipe, to_dict
from distcifar.config.domain import Domain, value_text
from distcifar.config.space import (
    Space,
    all_points,
    apply,
    chosen,
    only_if,
    parse_dimension,
    ranged,
    space_from_dict,
    value_at,
)
from distcifar.errors import ConfigError
from distcifar.recipes import RECIPES, get_recipe
from distcifar.recipes.spaces import SPACES

RECIPE = get_recipe("cnn2")
NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)
DOMAINS = st.one_of(
    st.tuples(st.floats(1e-9, 1e6), st.floats(1.001, 1e6)).map(
        lambda found: Domain(kind="loguniform", low=found[0], high=found[0] * found[1])
    ),
    st.tuples(NUMBERS, st.floats(1e-3, 1e6)).map(
        lambda found: Domain(kind="uniform", low=found[0], high=found[0] + found[1])
    ),
    st.tuples(st.integers(-1000, 1000), st.integers(1, 1000)).map(
        lambda found: Domain(kind="int", low=float(found[0]), high=float(sum(found)))
    ),
    st.lists(st.integers(), min_size=1, unique=True).map(lambda found: Domain(kind="choice", values=tuple(found))),
)


# ---- the named spaces


def test_every_recipe_has_a_space_and_all_its_points_are_recipes():
    assert SPACES.keys() == RECIPES.keys()
    for name, space in SPACES.items():
        recipe = RECIPES[name]
        assert space.checked(recipe) is space
        assert len(set(space.paths)) == len(space.paths) >= 4
        for number in range(4):
            point = space.point(recipe, 0, number)
            searched = apply(recipe, point)
            assert {path: value_at(searched, path) for path in point} == point
        assert apply(searched, {path: value_at(recipe, path) for path in point}) == recipe, "it changed more"


def test_texts_and_json_give_the_named_spaces_back():
    for name, space in SPACES.items():
        assert space_from_dict(json.loads(json.dumps(to_dict(space)))) == space
        texts = [str(dimension) for dimension in space.dimensions]
        assert Space(()).changed(texts, RECIPES[name]) == space


# ---- domains


@given(domain=DOMAINS, seed=st.integers())
@example(domain=Domain(kind="loguniform", low=0.12344, high=0.12346), seed=0)  # rounding to four digits leaves it
@example(domain=Domain(kind="uniform", low=1.00006, high=1.00012), seed=0)
@example(domain=Domain(kind="int", low=-3.0, high=-2.0), seed=0)
def test_draws_and_levels_are_values_of_the_domain(domain, seed):
    values = [domain.draw(random.Random(seed)), *domain.levels(1), *domain.levels(4)]
    for value in values:
        if domain.kind == "choice":
            assert value in domain.values
        else:
            assert domain.low <= value <= domain.high
            assert (type(value) is int) == (domain.kind == "int")
            assert -1e-9 <= domain.place(value) <= 1 + 1e-9
    assert len(set(domain.levels(4))) == len(domain.levels(4))


@given(domain=DOMAINS)
def test_a_domain_is_its_text(domain):
    path = "batch_size" if domain.kind in ("int", "choice") else "optim.lr"
    assert parse_dimension(f"{path}={domain}", RECIPE).domain == domain


@pytest.mark.parametrize(
    ("domain", "middle"),
    [
        (Domain(kind="loguniform", low=1e-4, high=1.0), lambda x: (math.log10(x) + 4) / 4),
        (Domain(kind="uniform", low=-1.0, high=3.0), lambda x: (x + 1) / 4),
    ],
)
def test_draws_are_spread_evenly(domain, middle):
    places = sorted(middle(domain.draw(random.Random(str(number)))) for number in range(2000))
    assert max(abs(place - number / 2000) for number, place in enumerate(places)) < 0.05  # Kolmogorov: 0.03 at 5 %


def test_whole_numbers_and_lists_are_drawn_equally_often():
    for domain in (Domain(kind="int", low=-1.0, high=2.0), Domain(kind="choice", values=("a", "b", "c", "d"))):
        found = Counter(domain.draw(random.Random(str(number))) for number in range(4000))
        assert len(found) == 4
        assert all(abs(count - 1000) < 120 for count in found.values()), found  # four standard deviations


# ---- points


@given(seed=st.integers(0, 2**31), number=st.integers(0, 10**6))
def test_a_point_is_a_pure_function_of_seed_and_number(seed, number):
    space = SPACES["cnn2"]
    assert space.point(RECIPE, seed, number) == space.point(RECIPE, seed, number)
    assert space.point(RECIPE, seed, number) != space.point(RECIPE, seed, number + 1)
    shorter = Space(space.dimensions[:3]).point(RECIPE, seed, number)
    assert {path: space.point(RECIPE, seed, number)[path] for path in shorter} == shorter, "later fields change earlier"


@given(number=st.integers(0, 1000))
def test_a_field_is_searched_only_where_its_condition_holds(number):
    fill = only_if(chosen("augment.crop_fill", "zeros", "reflect"), "augment.crop_padding", 2, 4)
    point = Space((chosen("augment.crop_padding", 0, 2, 4), fill)).point(RECIPE, 0, number)
    assert ("augment.crop_fill" in point) == (point["augment.crop_padding"] in (2, 4))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_condition_may_name_a_field_of_the_recipe(name):
    recipe = apply(RECIPE, {"optim.name": name})
    space = Space((only_if(ranged("optim.momentum", 0.5, 0.9), "optim.name", "sgd"),)).checked(recipe)
    assert ("optim.momentum" in space.point(recipe, 0, 0)) == (name == "sgd")
    assert len(space.grid(recipe, 3)) == (3 if name == "sgd" else 1)


def test_a_grid_is_the_product_and_conditions_leave_no_two_alike():
    padding, flip = chosen("augment.crop_padding", 0, 2, 4), chosen("augment.flip", "none", "random")
    rate = ranged("optim.lr", 1e-4, 1e-2, log=True)
    points = Space((padding, flip, rate)).grid(RECIPE, 3)
    assert len(points) == 3 * 2 * 3
    assert {point["optim.lr"] for point in points} == {1e-4, 1e-3, 1e-2}
    fill = only_if(chosen("augment.crop_fill", "zeros", "reflect"), "augment.crop_padding", 2, 4)
    points = Space((padding, fill, flip)).grid(RECIPE, 3)
    assert len(points) == (1 + 2 * 2) * 2
    assert len({tuple(point.items()) for point in points}) == len(points)
    with pytest.raises(ConfigError, match=r"10 points, and --trials is 9.*--trials 10"):
        all_points(Space((padding, fill, flip)), RECIPE, search="grid", count=9, seed=0, levels=3)


def test_fields_are_added_replaced_and_taken_out():
    space = SPACES["cnn2"]
    changed = space.changed(["optim.lr=uniform:0.1:0.2", "batch_size=off", "ema_decay=choice:0|0.99"], RECIPE)
    assert changed.paths == (*(path for path in space.paths if path != "batch_size"), "ema_decay")
    assert changed.dimensions[0] == ranged("optim.lr", 0.1, 0.2)
    assert space.changed(["only", "optim.lr=choice:1"], RECIPE) == Space((chosen("optim.lr", 1.0),))


# ---- values as texts


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optim.nesterov=choice:true|False", (True, False)),
        ("optim.lr=choice:1|1e-3|1", (1.0, 0.001)),
        ("optim.lr=choice:0.12345678", (0.12345678,)),
        ("batch_size=choice:1|64", (1, 64)),
        ("model.hidden=choice:|96|512,256", ((), (96,), (512, 256))),
        ("model.layout=choice:32,M,64|16", (("32", "M", "64"), ("16",))),
        ("optim.betas=choice:0.9,0.99", ((0.9, 0.99),)),
        ("optim.freeze=choice:|body.0@0.4", ((), ("body.0@0.4",))),
        ("schedule.name=choice:cosine|linear", ("cosine", "linear")),
    ],
)
@pytest.mark.parametrize("name", ["cnn2", "resnet18"])  # whose tuples are empty in the one or the other
def test_values_are_read_as_the_field_needs_them(name, text, values):
    dimension = Space((parse_dimension(text, RECIPES[name]),)).checked(RECIPES[name]).dimensions[0]
    assert dimension.domain.values == values
    assert [type(value) for value in dimension.domain.values] == [type(value) for value in values]
    assert parse_dimension(str(dimension), RECIPES[name]) == dimension


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_its_text(number):
    assert float(value_text(number)) == number


# ---- mistakes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("optim.lrr=loguniform:1e-3:1", ("'lrr'", "Did you mean 'lr'")),
        ("optim.freeze_after=choice:1", ("'freeze_after'", "no field")),
        ("total_epochs=choice:1", ("'total_epochs'", "no field")),
        ("optim.lr.x=choice:1", ("'x'", "no field")),
        ("=choice:1", ("''", "no field")),
        ("optim.lr", ("'optim.lr'", "PATH=DOMAIN", "--space optim.lr=loguniform:1e-3:1")),
        ("optim.lr=log:1:2", ("log:1:2", "loguniform:LOW:HIGH")),
        ("optim.lr=choice:", ("choice:", "loguniform:LOW:HIGH")),
        ("optim.lr=loguniform:1:1", ("loguniform:1:1", "LOW is below HIGH")),
        ("optim.lr=loguniform:0:1", ("loguniform:0:1", "above 0")),
        ("optim.lr=uniform:1:1e999", ("1e999", "finite")),
        ("optim.lr=uniform:-1e999:1", ("1e999", "finite")),
        ("optim.lr=int:1:2", ("int:1:2", "a field of numbers", "choice:A|B|C")),
        ("optim.lr=choice:1|fast", ("'fast'", "one of numbers")),
        ("optim.lr=uniform:0:1", ("optim.lr is 0", "> 0")),
        ("optim.lr=choice:nan", ("optim.lr is nan", "finite")),
        ("batch_size=uniform:1:64", ("uniform:1:64", "int:LOW:HIGH", "choice:A|B|C")),
        ("batch_size=int:1.5:64", ("int:1.5:64", "whole bounds")),
        ("batch_size=choice:1.5", ("'1.5'", "whole numbers")),
        ("schedule.name=choice:cosine|liner", ("'liner'", "Did you mean 'linear'")),
        ("schedule.name=uniform:1:2", ("uniform:1:2", "texts", "choice:A|B|C")),
        ("optim.nesterov=choice:yes", ("'yes'", "true or false")),
        ("model.hidden=choice:64,x", ("'64,x'", "whole numbers, with commas")),
        ("optim.betas=choice:0.9", ("(0.9,)", "2 items")),
        ("optim=choice:sgd", ("optim is 'sgd'",)),
        ("then=choice:1", ("'1'", "then=choice:1")),
        ("seed=choice:1|2", ("seed=choice:1|2", "gives them their seeds", "Take seed out")),
        ("epochs=int:1:9", ("epochs=int:1:9", "length")),
        ("data.validation=choice:1|2", ("data.validation", "same images")),
        ("optim.momentum=uniform:0.8:0.9 if optim.name", ("optim.name", "OTHER=A|B")),
        ("optim.momentum=uniform:0.8:0.9 if optim.name=", ("optim.name=", "OTHER=A|B")),
        ("optim.momentum=uniform:0.8:0.9 if optim.name=sdg", ("'sdg'", "Did you mean 'sgd'")),
        ("optim.momentum=uniform:0.8:0.9 if optim.nam=sgd", ("'nam'", "Did you mean 'name'")),
        ("dropout=off", ("'dropout=off'", "taken out", "optim.lr")),
    ],
)
def test_a_wrong_text_is_told_once_with_value_rule_and_remedy(text, told):
    with pytest.raises(ConfigError) as caught:
        SPACES["cnn2"].changed([text], RECIPE).checked(RECIPE)
    assert caught.value.found
    assert caught.value.rule
    assert caught.value.remedy
    for part in told:
        assert part in str(caught.value), str(caught.value)


@given(st.text(alphabet="optim.lr=choice:uniform|,1e-9 f", max_size=40))
@example("optim.lr=choice:a|b")
@example("reported_accuracy=choice:0.5")
def test_any_text_is_a_dimension_or_a_config_error(text):
    try:
        space = Space((parse_dimension(text, RECIPE),)).checked(RECIPE)
    except ConfigError:
        return
    assert space.changed([str(space.dimensions[0])], RECIPE) == space


def test_conditions_of_named_spaces_are_checked_too():
    momentum = ranged("optim.momentum", 0.8, 0.98)
    with pytest.raises(ConfigError, match="sdg"):
        Space((only_if(momentum, "optim.name", "sdg"),)).checked(RECIPE)
    with pytest.raises(ConfigError, match=r"optim\.name"):
        Space((only_if(momentum, "optim.name", "sgd"), chosen("optim.name", "sgd", "adam"))).checked(RECIPE)
    with pytest.raises(ConfigError, match="empty"):
        Space(()).checked(RECIPE)


def test_fields_that_are_only_valid_together_are_set_together():
    recipe = Recipe(name="a", augment=RECIPE.augment)
    both = {"augment.random_resized_crop": 24, "augment.crop_padding": 0}
    padded = apply(recipe, {"augment.crop_padding": 4})
    assert apply(padded, both).augment.random_resized_crop == 24
    with pytest.raises(ConfigError):
        apply(padded, {"augment.random_resized_crop": 24})
