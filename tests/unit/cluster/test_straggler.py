"""A rank that holds the others up is named once, with its numbers; who waits is not, nor who is alone."""

import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from distcifar.cluster import rank
from distcifar.cluster.job import Job
from distcifar.cluster.recorder import silence
from distcifar.cluster.straggler import KEEPS_UP, SLOW, Straggler, Stragglers
from distcifar.data.pixels import PixelPipeline
from distcifar.tracking.journal import read_events
from distcifar.training import step
from distcifar.training.reports import OwnTime
from distcifar.training.step import sample_losses
from distcifar.world import World
from tests.support import run_ranks, small_data, small_recipe
from tests.unit.cluster.runs import DATA, spec_of

EPOCH = 25  # steps
USUAL, SLOWED = 0.03, 0.09  # seconds of a step


def times(*milliseconds: float, data: float = 0.0) -> list[OwnTime]:
    return [OwnTime(each / 1000, data * each / 1000) for each in milliseconds]


def named(stragglers: Stragglers, *milliseconds: float) -> list[int]:
    return [found.rank for found in stragglers.new(times(*milliseconds))]


def test_who_takes_half_as_long_again_as_the_median_is_named_once():
    stragglers = Stragglers()
    assert named(stragglers, 31, 31, 30, 32) == []
    assert named(stragglers, 31, 31, 31, 31 * SLOW) == []
    assert named(stragglers, 31, 31, 31, 84) == [3]
    assert named(stragglers, 31, 31, 31, 90) == []


def test_it_is_named_again_only_after_it_has_kept_up():
    stragglers = Stragglers()
    assert named(stragglers, 100, 100, 160) == [2]
    assert named(stragglers, 100, 100, 100 * KEEPS_UP + 1) == []
    assert named(stragglers, 100, 100, 160) == []
    assert named(stragglers, 100, 100, 100 * KEEPS_UP) == []
    assert named(stragglers, 100, 100, 160) == [2]


def test_of_two_ranks_the_slower_one_and_of_several_the_slowest_first():
    assert named(Stragglers(), 100, 40) == [0]
    assert named(Stragglers(), 160, 100, 100, 100, 300) == [4, 0]
    assert named(Stragglers(), 100, 100, 40, 40) == [0, 1], "two kinds of cards: the faster ones wait"


def test_nobody_is_named_alone_or_for_milliseconds_or_before_enough_is_known():
    assert named(Stragglers(), 500) == []
    assert named(Stragglers(), 1, 5) == []
    assert Stragglers().new(()) == []


def test_the_words_have_the_host_the_numbers_and_what_to_do():
    found = Straggler(3, OwnTime(0.0841, 0.012), 0.031)
    sample = {"host": "b", "node_cpu_percent": 97.2}
    text = found.words(sample, balanced=False)
    assert "rank 3 on b takes 84 ms a step of its own, the median is 31 ms: the others wait for it." in text
    assert "97 % busy" in text
    assert "--balance on" in text
    assert "balance.json" in found.words(sample, balanced=True)
    assert found.words({}, balanced=False).startswith("rank 3 takes 84 ms")
    waiting = Straggler(1, OwnTime(0.080, 0.060), 0.02).words(sample, balanced=False)
    assert "75%" in waiting
    assert "disk" in waiting
    assert "--balance" not in waiting


def trained(world: World, folder: Path, slow: int, place: str, onset: int) -> dict[str, Any]:
    """A run whose rank `slow` takes longer in `place` from step `onset` on."""
    steps, pixels = 0, PixelPipeline.train

    def waits(at: str) -> float:
        late = world.rank == slow and steps > onset and at == place
        return (USUAL if at == "net" else 0.0) + (SLOWED - USUAL if late else 0.0)

    def losses(*args: Any) -> Any:
        time.sleep(waits("net"))
        return sample_losses(*args)

    def batch(self: PixelPipeline, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        time.sleep(waits("data"))
        return pixels(self, *args)

    recipe = small_recipe(epochs=1 + onset // EPOCH)
    spec = spec_of(folder.parent, folder.name, workers=world.size)
    if world.is_primary:
        folder.mkdir()
    job = Job(recipe, spec, folder, folder, DATA, "launch", measure=False)
    with (
        patch.object(step, "sample_losses", losses),
        patch.object(PixelPipeline, "train", batch),
        patch.object(rank, "open_data", lambda *_, **__: small_data(recipe, world, train=16 * EPOCH)),
    ):
        world.barrier()
        return rank.train_rank(job, world, listen=silence, after_epoch=lambda _: None)


@pytest.mark.parametrize(
    ("place", "onset", "slow"), [("net", 0, 2), pytest.param("data", EPOCH, 1, marks=pytest.mark.slow)]
)
def test_a_slow_rank_of_three_is_named_within_twenty_steps_and_the_others_are_not(
    tmp_path: Path, place: str, onset: int, slow: int
):
    folder = tmp_path / "run"
    run_ranks(trained, 3, tmp_path, folder, slow, place, onset)
    (event,) = [event for event in read_events(folder) if event["kind"] == "straggler"]
    assert event["rank"] == slow
    assert onset < event["step"] <= onset + 20
    assert event["seconds"] == pytest.approx(SLOWED, rel=0.4)
    assert event["median"] == pytest.approx(USUAL, rel=0.6)
    assert (event["data"] > event["seconds"] / 2) == (place == "data")
