"""One batch ahead: what is queued when, and that ends and errors leave nothing behind."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from distcifar.data.loader import EvalLoader, TrainLoader
from distcifar.data.prefetch import one_ahead, prepared_ahead
from distcifar.data.stores import ResidentStore, StreamedStore
from distcifar.world import World
from tests.unit.data.conftest import CPU, IMAGES, LABELS, N
from tests.unit.data.test_loader import COMPUTED, CUTMIX, MIXUP, MOVES, pipeline


class Queues:
    """Stands in for the side stream: writes down what a device would be given, in this order."""

    def __init__(self):
        self.told = []

    @contextmanager
    def preparing(self):
        self.told.append("side waits for the steps")
        yield

    def hand_over(self):
        self.told.append("steps wait for the side")

    def batches(self, count):
        try:
            for number in range(count):
                self.told.append(f"batch {number}")
                yield number
        finally:
            self.told.append("closed")


def test_a_batch_is_prepared_before_the_step_before_it_is_queued():
    queues = Queues()
    for number in one_ahead(queues.batches(3), queues):
        queues.told.append(f"step {number}")
    for number in range(3):
        step, ready = queues.told.index(f"step {number}"), queues.told.index(f"batch {number}")
        assert "steps wait for the side" in queues.told[ready:step]
        if number:
            before = queues.told.index(f"step {number - 1}")
            assert ready < before, "the next batch is queued while the step before it is still to come"
            assert queues.told[ready - 1] == "side waits for the steps"
    assert queues.told.count("closed") == 1


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_batch_arrives_once_and_in_order(count):
    queues = Queues()
    assert list(one_ahead(queues.batches(count), queues)) == list(range(count))


def test_an_early_end_closes_what_prepares_and_asks_for_no_more():
    queues = Queues()
    for _ in one_ahead(queues.batches(9), queues):
        break
    assert queues.told[-1] == "closed"
    assert "batch 2" not in queues.told


def test_an_error_in_the_preparation_arrives():
    def failing():
        yield 0
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(one_ahead(failing(), Queues()))


def test_on_a_cpu_batches_are_made_when_they_are_asked_for():
    batches = iter([1, 2])
    assert prepared_ahead(batches, CPU) is batches


# ---- GPU


def seen(batches):
    return [
        [None if t is None else t.cpu() for t in (batch.images, batch.labels, batch.partner_labels, batch.own_share)]
        for batch in batches
    ]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("config", "tolerance"),
    [(MOVES, 0.0), (MIXUP, 1e-5), (CUTMIX, 0.0), (COMPUTED, 1e-4)],
    ids=["moves", "mixup", "cutmix", "computed"],
)
@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_a_gpu_sees_the_cpus_batches_and_its_host_never_waits(beton, config, tolerance, kind):
    cuda = torch.device("cuda", 0)
    stores = {}
    for device in (CPU, cuda):
        resident = ResidentStore(IMAGES, LABELS, device)
        stores[device] = resident if kind == "resident" else StreamedStore(beton, N, device, threads=1)

    def loaders(device):
        pixels, world = pipeline(config, device=device), World(device=device)
        return TrainLoader(stores[device], pixels, 8, 5, world), EvalLoader(stores[device], pixels, 8, world)

    train, evaluation = loaders(cuda)
    list(train.batches(0))  # constants and pinned memory are there from now on
    list(evaluation.batches())
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(train.batches(1)), list(evaluation.batches())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = loaders(CPU)[0].batches(1), loaders(CPU)[1].batches()
    for ours, theirs in zip(found, expected, strict=True):
        for mine, other in zip(seen(ours), seen(theirs), strict=True):
            for a, b in zip(mine, other, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.gpu
def test_memory_stays_that_of_three_batches_while_the_host_runs_ahead():
    cuda = torch.device("cuda", 0)
    images = np.zeros((4096, 32, 32, 3), np.uint8)
    store = ResidentStore(images, np.zeros(len(images), np.int64), cuda)
    pixels = pipeline(MOVES, len(images), device=cuda, size=32)
    batch_bytes = 256 * 32 * 32 * 3 * 4
    torch.cuda.reset_peak_memory_stats(cuda)
    before = torch.cuda.memory_allocated(cuda)
    for _batch in TrainLoader(store, pixels, 256, 0, World(device=cuda)).batches(0):
        torch.cuda._sleep(20_000_000)  # a step of about ten milliseconds
    assert torch.cuda.max_memory_allocated(cuda) - before < 12 * batch_bytes
