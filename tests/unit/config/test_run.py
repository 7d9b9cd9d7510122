"""A RunSpec is where and how: frozen, checked, and no part of a recipe's numbers."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distcifar.config import Recipe, RunSpec, from_dict, to_dict
from distcifar.config.run import RANGES, spelled_out
from distcifar.errors import ConfigError


def test_the_defaults_are_valid_and_leave_everything_to_the_machine():
    spec = RunSpec()
    assert (spec.workers, spec.device, spec.loader, spec.loader_threads) == (0, "auto", "auto", 0)


@pytest.mark.parametrize("name", ["", "first", "a", "_x", "2026-01-02_resnet.v2", "x" * 100, "训练1", "a.", "a-"])
def test_names_of_folders_are_accepted(name):
    assert RunSpec(name=name).name == name


@pytest.mark.parametrize(
    "name",
    [".", "..", ".hidden", "-x", "a/b", "/etc", "a\\b", "a b", "a\n", "a\0", "x" * 101, "~", "a:b", "a*", "$HOME"],
)
def test_names_that_are_no_plain_folder_are_refused(name):
    with pytest.raises(ConfigError, match="folder name"):
        RunSpec(name=name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workers", -1),
        ("workers", 4097),
        ("cpus_per_worker", -1),
        ("loader_threads", -1),
        ("checkpoint_epochs", 0),
        ("checkpoint_steps", -1),
        ("max_failures", -1),
        ("device", "gpu"),
        ("loader", "stream"),
    ],
)
def test_values_out_of_range_are_refused_and_named(field, value):
    with pytest.raises(ConfigError, match=f"{field} is {value!r}"):
        RunSpec(**{field: value})


def test_a_misspelt_choice_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'streamed'"):
        RunSpec(loader="stream")
    with pytest.raises(ConfigError, match="Did you mean 'workers'"):
        from_dict(RunSpec, {"worker": 2})


def test_run_specs_are_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunSpec().workers = 2
    assert {RunSpec(), RunSpec()} == {RunSpec()}


@settings(deadline=None)
@given(
    st.builds(
        RunSpec,
        name=st.from_regex(r"[a-zA-Z0-9_][\w.\-]{0,20}", fullmatch=True),
        runs=st.text(max_size=9),
        workers=st.integers(0, 4096),
        device=st.sampled_from(["auto", "cpu", "cuda"]),
        loader=st.sampled_from(["auto", "resident", "streamed"]),
        deterministic=st.booleans(),
        balance=st.sampled_from(["auto", "on", "off"]),
        compile=st.sampled_from(["auto", "on", "off"]),
        checkpoint_steps=st.integers(0, 10**9),
        max_failures=st.integers(0, 10),
    )
)
def test_json_and_back_is_the_same_spec(spec):
    assert from_dict(RunSpec, json.loads(json.dumps(to_dict(spec)))) == spec


def test_where_and_how_is_no_part_of_what_changes_the_numbers():
    """A field in both would be ambiguous on the command line, and one of them would lie."""
    spec = {field.name for field in dataclasses.fields(RunSpec)} - {"name"}
    assert not spec & {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize("field", RANGES)
def test_every_range_is_that_of_a_field_and_holds_its_default(field: str):
    assert getattr(RunSpec(), field) is not None
    low = -1 if RANGES[field].low <= 0 else 0
    with pytest.raises(ConfigError, match=field):
        RunSpec(**{field: low})


@pytest.mark.parametrize("field", ["checkpoint_minutes", "hang_seconds"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_time_is_a_number(field: str, value: float):
    with pytest.raises(ConfigError, match=field):
        RunSpec(**{field: value})


def test_fewer_workers_than_the_fewest_are_refused():
    assert RunSpec(workers=4, min_workers=4).min_workers == 4
    with pytest.raises(ConfigError, match="min_workers is 5"):
        RunSpec(workers=4, min_workers=5)
    with pytest.raises(ConfigError, match="min_workers is 1"):
        RunSpec(min_workers=1)


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_branch_needs_a_place_to_start_from(resume: str):
    with pytest.raises(ConfigError, match="--resume runs/NAME"):
        RunSpec(branch=True, resume=resume)
    assert RunSpec(branch=True, resume="runs/first").branch


@given(st.integers(0, 9999), st.integers(0, 9999), st.booleans())
def test_a_range_of_workers_is_short_for_two_flags(low: int, high: int, joined: bool):
    words = [f"--workers={low}..{high}"] if joined else ["--workers", f"{low}..{high}"]
    most = [f"--workers={high}"] if joined else ["--workers", str(high)]
    assert spelled_out(["quick", *words, "--seed", "1"]) == ["quick", *most, "--min-workers", str(low), "--seed", "1"]


@given(st.text(max_size=12).filter(lambda word: ".." not in word))
def test_other_words_stay_as_they_are(word: str):
    assert spelled_out(["--workers", word]) == ["--workers", word]


def test_a_range_behind_another_flag_is_its_value():
    assert spelled_out(["--name", "1..4"]) == ["--name", "1..4"]


@pytest.mark.parametrize("word", ["1..", "..4", "a..b", "1..4..8", "-1..4", "1...4", "--epochs=1..4", "v1..2"])
def test_what_is_no_range_stays_as_it_is(word: str):
    assert spelled_out(["--workers", word]) == ["--workers", word]
