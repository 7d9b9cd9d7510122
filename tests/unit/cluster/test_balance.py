"""Parts by speed in a run: measured once, kept, told; the gradient and its end are those of one process."""

import json
import shutil
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from distcifar.cluster.balance import known_parts, wants_balance, words
from distcifar.cluster.job import Job
from distcifar.config import OptimConfig
from distcifar.tracking.journal import read_events
from distcifar.training import step
from distcifar.training.step import sample_losses
from distcifar.world import World
from tests.support import ONE, differing_tensors, run_ranks, small_recipe
from tests.unit.cluster.runs import DATA, on_rank, saved, spec_of, stopped_at

BATCH, STOP = 32, 7
SPEEDS = (0.003, 0.001)  # seconds of an image on each rank
# Last batches of 22 images: no multiple of anything.
RECIPE = small_recipe(batch_size=BATCH, epochs=2, optim=OptimConfig(lr=0.1, momentum=0.9, accumulate=2))
IMAGES = 4 * BATCH + 22


def trained(world: World, folder: Path, stop: int | None = None) -> dict[str, Any]:
    """A run on a device that takes time for each image, as a card does while its host waits."""

    def losses(logits: torch.Tensor, *rest: Any) -> Any:
        time.sleep(SPEEDS[world.rank] * len(logits) if world.size > 1 else 0.0)
        return sample_losses(logits, *rest)

    folder.mkdir(parents=True, exist_ok=True)
    world.barrier()
    spec = spec_of(folder.parent, folder.name, workers=world.size, balance="on")
    job = Job(RECIPE, spec, folder, folder, DATA, "launch", measure=False)
    listen = stopped_at(folder, stop) if stop else lambda row: None
    with (
        patch.object(step, "sample_losses", losses),
        patch("distcifar.cluster.stopping.POLL_SECONDS", 0.0),
        patch("distcifar.training.balance.LEAST_SECONDS", 0.3),
    ):
        return on_rank(world, job, listen, train=IMAGES)


def two_runs(world: World, place: Path) -> None:
    """One that measures, and one that has its parts already, is stopped and goes on."""
    trained(world, place / "by-speed")
    if world.is_primary:
        (place / "in-two").mkdir(exist_ok=True)
        shutil.copy(place / "by-speed/balance.json", place / "in-two")
    assert "stopped" in trained(world, place / "in-two", stop=STOP)
    world.barrier()
    if world.is_primary:
        (place / "in-two/stop").unlink()
    trained(world, place / "in-two")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("balance")
    run_ranks(two_runs, 2, place, place)
    return place


def told(folder: Path) -> list[str]:
    return [event["text"] for event in read_events(folder) if event["kind"] == "balance"]


def test_a_rank_of_three_times_the_speed_has_three_times_the_images(place: Path):
    note = json.loads((place / "by-speed/balance.json").read_text())
    assert note["parts"] == pytest.approx([8, 24], abs=3)
    assert sum(note["parts"]) == BATCH
    (text,) = told(place / "by-speed")
    assert f"of the {BATCH} images of a step: rank 0 (cpu on " in text
    assert "; the slowest computes for " in text


def test_the_weights_are_those_of_one_process(place: Path, tmp_path: Path):
    trained(ONE, tmp_path / "alone")
    alone, together = saved(tmp_path / "alone"), saved(place / "by-speed")
    for name, value in alone.chosen.items():
        torch.testing.assert_close(together.chosen[name], value, rtol=1e-4, atol=1e-5)


def test_a_run_that_goes_on_takes_the_parts_that_were_measured_and_ends_with_the_same_bits(place: Path):
    assert (place / "in-two/balance.json").read_bytes() == (place / "by-speed/balance.json").read_bytes()
    assert len(told(place / "in-two")) == 2
    assert not any("computes for" in text for text in told(place / "in-two")), "measured again"
    whole, parts = saved(place / "by-speed"), saved(place / "in-two")
    assert set(differing_tensors(whole.tensors, parts.tensors)) <= {"tally"}


@pytest.mark.parametrize(
    ("asked", "names", "expected"),
    [
        ("auto", ["RTX 4060", "RTX 5070 Ti"], True),
        ("auto", ["cpu", "cpu"], False),
        ("on", ["cpu", "cpu"], True),
        ("off", ["RTX 4060", "RTX 5070 Ti"], False),
        ("on", ["cpu"], False),
    ],
)
def test_parts_by_speed_are_for_several_ranks_that_differ_or_are_to_be_measured(asked, names, expected):
    assert wants_balance(asked, names) == expected


@pytest.mark.parametrize(
    "note",
    [
        None,
        "{half a",
        "[]",
        '{"devices": ["a", "b"]}',
        '{"devices": ["b", "a"], "parts": [8, 24]}',  # the ranks have changed places
        '{"devices": ["a", "b", "c"], "parts": [8, 12, 12]}',
        '{"devices": ["a", "b"], "parts": [8, 8]}',  # of another batch
    ],
)
def test_parts_of_other_devices_are_not_taken(tmp_path: Path, note: str | None):
    if note is not None:
        (tmp_path / "balance.json").write_text(note)
    assert known_parts(tmp_path, ["a", "b"], 32) is None


def test_a_large_world_is_told_in_short():
    text = words(["RTX 4060 on a"] * 20, [10] * 20)
    assert text.startswith("of the 200 images of a step: rank 0 (RTX 4060 on a) 10, ")
    assert text.endswith(", 12 more")
