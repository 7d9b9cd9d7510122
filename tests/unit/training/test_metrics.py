"""Sums over samples, not means of means."""

import pytest
import torch

from distcifar.training.metrics import Evaluation, Tally
from distcifar.world import World


def test_a_tally_of_uneven_batches_is_the_mean_over_samples():
    torch.manual_seed(0)
    losses, correct = torch.rand(23), torch.rand(23) < 0.3
    tally = Tally(torch.device("cpu"))
    for part in (slice(0, 16), slice(16, 22), slice(22, 23)):
        tally.add(losses[part], correct[part])
    loss, accuracy, count = tally.over_ranks(World())
    assert loss == pytest.approx(losses.double().mean().item(), rel=1e-6)
    assert accuracy == correct.sum().item() / 23
    assert count == 23


def test_reading_a_tally_does_not_change_it():
    class Doubling(World):
        def sum(self, values):
            return values.mul_(2)  # in place, as an all-reduce is

    tally = Tally(torch.device("cpu"))
    tally.add(torch.ones(4), torch.tensor([True, True, False, False]))
    assert tally.over_ranks(Doubling()) == tally.over_ranks(Doubling()) == (1.0, 0.5, 8)


def test_a_million_samples_are_counted_exactly():
    """float32 sums would stand still at 16.7 million and be wrong well before."""
    tally = Tally(torch.device("cpu"))
    tally.sums += torch.tensor([2.0**24, 2.0**24, 2.0**24], dtype=torch.float64)
    tally.add(torch.ones(1), torch.ones(1, dtype=torch.bool))
    assert tally.sums.tolist() == [2.0**24 + 1] * 3


def test_an_empty_tally_divides_by_nothing():
    assert Tally(torch.device("cpu")).over_ranks(World()) == (0.0, 0.0, 0)


def test_class_accuracies_are_rows_of_the_confusion_and_none_where_there_is_no_sample():
    evaluation = Evaluation(0.5, 0.6, torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 4]]))
    assert evaluation.count == 10
    assert evaluation.per_class == [0.75, None, 2 / 3]
