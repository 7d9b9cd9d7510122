"""World: a frozen value; alone its collectives are the identity, together every rank gets the same answer."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from distcifar.world import World

TOGETHER = """
import json, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from distcifar.world import World

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", f"file://{store}", timedelta(seconds=60), world_size=2, rank=rank)
world = World(rank, 2)
values = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (1 + 9 * rank)
summed = world.sum(values)
counts = world.sum(torch.tensor([2**40 + rank]))
flags = [world.any(bool(mine[rank])) for mine in ((0, 0), (0, 1), (1, 0), (1, 1))]
weights = world.broadcast(torch.full((3,), float(rank) + 5))
firsts = [world.first(mine[rank]) for mine in ((None, None), (None, "b"), ("a", "b"), (0, "b"))]
each = world.each(f"of {rank}")
world.barrier()
if rank == 1:
    time.sleep(0.5)
started = time.monotonic()
world.barrier()
print(json.dumps({
    "primary": world.is_primary, "summed": values.tolist(), "in place": summed is values, "counts": counts.tolist(),
    "flags": flags, "firsts": firsts, "each": each, "weights": weights.tolist(), "waited": time.monotonic() - started,
}))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What each of two ranks found; started once, since each imports torch."""
    store = tmp_path_factory.mktemp("world") / "rendezvous"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(rank), str(store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        answers = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, complaint) in zip(processes, answers, strict=True):
        assert process.returncode == 0, complaint
    return [json.loads(answer.splitlines()[-1]) for answer, _ in answers]


# ---- alone


def test_the_default_is_one_rank_on_the_cpu():
    world = World()
    assert (world.rank, world.size, world.device) == (0, 1, torch.device("cpu"))
    assert world.is_primary


def test_alone_the_collectives_are_the_identity_and_need_no_process_group():
    assert not dist.is_initialized()
    world = World()
    values = torch.tensor([1.5, -2.0])
    assert world.sum(values) is values
    assert world.broadcast(values) is values
    assert values.tolist() == [1.5, -2.0]
    assert world.first("mine") == "mine"
    assert world.first(None) is None
    assert world.each("mine") == ["mine"]
    assert world.any(True)
    assert not world.any(False)
    world.barrier()


def test_a_world_is_a_frozen_value():
    world = World(1, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        world.rank = 2
    assert world == World(1, 4, torch.device("cpu"))
    assert world != World(2, 4)
    assert {world, World(1, 4)} == {world}


def test_rank_0_alone_is_primary():
    assert [World(rank, 4).is_primary for rank in range(4)] == [True, False, False, False]


# ---- together


def test_sums_are_over_all_ranks_and_in_place(pair):
    for found in pair:
        assert found["summed"] == [[11.0, 22.0], [33.0, 44.0]]
        assert found["in place"]
        assert found["counts"] == [2**41 + 1]  # counts stay whole


def test_a_flag_on_one_rank_is_heard_by_all(pair):
    assert [found["flags"] for found in pair] == [[False, True, True, True]] * 2


def test_the_lowest_rank_that_has_a_value_tells_it_to_all(pair):
    assert [found["firsts"] for found in pair] == [[None, "b", "a", 0]] * 2


def test_every_ranks_value_is_told_to_all_in_their_order(pair):
    assert [found["each"] for found in pair] == [["of 0", "of 1"]] * 2


def test_rank_0s_values_reach_all(pair):
    assert [found["weights"] for found in pair] == [[5.0] * 3] * 2
    assert [found["primary"] for found in pair] == [True, False]


def test_nobody_passes_a_barrier_before_the_last_has_arrived(pair):
    assert pair[0]["waited"] > 0.4
