"""How many trials there is room for, and what is said where there is none."""

import pytest

from distcifar.cluster.sweeps.room import embedded_cpus, room_for
from distcifar.config import RunSpec
from distcifar.config.sweep import SweepSpec
from distcifar.errors import ResourceError

TWO, ONE_CARD, FOUR_CARDS = {"CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("spec", "have", "cpus", "gpus", "concurrent"),
    [
        ({}, TWO, 1, 0, 2),
        ({"concurrent": 1}, TWO, 1, 0, 1),
        ({"cpus_per_trial": 2}, TWO, 2, 0, 1),
        ({"workers_per_trial": 2}, TWO, 1, 0, 1),
        ({}, ONE_CARD, 8, 1, 1),
        ({"gpus_per_trial": 0.25}, ONE_CARD, 2, 0.25, 4),
        ({"gpus_per_trial": 0.25}, FOUR_CARDS, 4, 0.25, 16),
        ({"workers_per_trial": 2}, FOUR_CARDS, 16, 1, 2),
    ],
)
def test_trials_at_once(spec, have, cpus, gpus, concurrent):
    room = room_for(SweepSpec(**spec), RunSpec(), have)
    assert (room.cpus, room.gpus, room.concurrent) == (cpus, gpus, concurrent)
    workers = spec.get("workers_per_trial", 1)
    assert concurrent * workers * cpus <= have["CPU"]
    assert concurrent * room.claim <= have["CPU"] + 1e-6
    assert (concurrent + 1) * room.claim > have["CPU"] or gpus  # Ray itself starts no more of them


@pytest.mark.parametrize(
    ("spec", "run", "have", "said"),
    [
        ({"concurrent": 3}, {}, TWO, "3 CPUs.*has 2 CPUs.*--concurrent 2"),
        ({"cpus_per_trial": 3}, {}, TWO, "Lower --cpus-per-trial"),
        ({"gpus_per_trial": 2}, {}, ONE_CARD, "2 GPUs.*1 GPUs"),
        ({}, {"device": "cuda"}, TWO, "has no GPU"),
        ({"scheduler": "pbt", "concurrent": 1}, {"address": "a:1"}, TWO, "pauses trials"),
    ],
)
def test_what_does_not_fit_is_told_with_have_and_need(spec, run, have, said):
    with pytest.raises(ResourceError, match=said):
        room_for(SweepSpec(**spec), RunSpec(**run), have)


def test_a_trial_that_needs_more_cores_than_this_machine_has_is_told_before_ray_starts():
    with pytest.raises(ResourceError, match="1000 core"):
        embedded_cpus(SweepSpec(cpus_per_trial=1000))
