"""Arrays that travel in one piece arrive as they were, and a tree of them keeps its shape."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distcifar.config import AugmentConfig
from distcifar.data.draws import Draws, Mixture, draw_moves
from distcifar.data.transfer import arrays_of, each_array, pack, packed_bytes, part_of, to_device, unpack

ARRAYS = hnp.arrays(
    dtype=st.sampled_from([np.bool_, np.uint8, np.int64, np.float32, np.float64]),
    shape=hnp.array_shapes(min_dims=1, max_dims=2, min_side=1, max_side=5),
)


@given(st.lists(ARRAYS, max_size=6))
def test_packed_arrays_come_out_with_their_types_shapes_and_bits(arrays):
    packed = np.full(packed_bytes(arrays), 0xAA, np.uint8)
    pack(arrays, packed)
    found = unpack(torch.from_numpy(packed), arrays)
    assert len(found) == len(arrays)
    for tensor, array in zip(found, arrays, strict=True):
        assert tensor.numpy().dtype == array.dtype
        assert tensor.shape == array.shape
        assert tensor.numpy().tobytes() == array.tobytes()


def test_a_part_of_an_array_may_be_packed():
    """Its memory is not in one piece."""
    whole = np.arange(12).reshape(3, 4)
    packed = np.empty(packed_bytes([whole[:, 1]]), np.uint8)
    pack([whole[:, 1]], packed)
    assert unpack(torch.from_numpy(packed), [whole[:, 1]])[0].tolist() == [1, 5, 9]


@dataclass(frozen=True)
class Tree:
    left: np.ndarray
    right: "Tree | None"


def test_a_tree_keeps_its_shape_and_its_order():
    tree = (Tree(np.array([1]), Tree(np.array([2]), None)), None, np.array([3]))
    assert [int(array[0]) for array in arrays_of(tree)] == [1, 2, 3]
    numbers = iter("abc")
    assert each_array(tree, lambda _: next(numbers)) == (Tree("a", Tree("b", None)), None, "c")


def test_the_draws_of_a_batch_are_its_part_of_the_draws_of_many():
    config, ids = AugmentConfig(crop_padding=4, flip="random", cutout=3), np.arange(50)
    many = Draws(draw_moves(config, 1, 2, ids, 32), None, None)
    mine = draw_moves(config, 1, 2, ids[10:20], 32)
    for ours, theirs in zip(arrays_of(part_of(many, slice(10, 20))), arrays_of(mine), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_on_a_cpu_nothing_is_copied():
    mixture = Mixture(np.ones(3), None)
    assert to_device(mixture, torch.device("cpu")) is mixture


@pytest.mark.gpu
def test_a_gpu_is_given_the_same_numbers_in_one_copy_that_nobody_waits_for():
    cuda = torch.device("cuda", 0)
    mixture = Mixture(np.random.default_rng(0).random(1000), np.arange(4000).reshape(1000, 4))
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = to_device((mixture, np.array([True, False])), cuda)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_array_equal(there[0].own_share.cpu(), mixture.own_share)
    np.testing.assert_array_equal(there[0].boxes.cpu(), mixture.boxes)
    assert there[1].tolist() == [True, False]
