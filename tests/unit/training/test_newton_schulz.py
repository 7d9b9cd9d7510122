"""Newton-Schulz makes matrices nearly orthogonal, and those that share a stack as if each were alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distcifar.training import newton_schulz
from distcifar.training.newton_schulz import orthogonalise, orthogonalise_all, stacks

BF16 = 0.05  # relative: three steep steps raise bf16's 0.4 % to about this
SHAPES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 90)), min_size=1, max_size=7)
WIDE = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 2000)).map(lambda s: (s[0], s[0] + s[1])), max_size=9)


def alone(matrix: torch.Tensor, steps: int = 3) -> torch.Tensor:
    return orthogonalise(matrix[None], steps=steps)[0]


def in_double(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """The iteration as its paper writes it, without rounding."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.double() / matrix.double().norm()
    for _ in range(steps):
        x = a * x + b * (x @ x.mT) @ x + c * (x @ x.mT) @ (x @ x.mT) @ x
    return x


@pytest.mark.parametrize("shape", [(16, 16), (8, 72), (64, 20)])
@pytest.mark.parametrize(("steps", "low"), [(3, 0.1), (5, 0.5)])
def test_a_result_is_nearly_orthogonal(shape: tuple[int, int], steps: int, low: float):
    """Newton-Schulz lifts small singular values (3.4 times a step) and holds large ones at about 1: with the
    three steps that are used the smallest of a square matrix may lag behind."""
    torch.manual_seed(3)
    matrix = torch.randn(shape)
    found = alone(matrix, steps)
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.3
    assert values.median() > 0.6
    if shape[0] != shape[1]:
        assert values.min() > low
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.9
    assert (found - in_double(matrix, steps)).norm() < BF16 * found.norm()


def test_a_result_does_not_depend_on_the_matrix_length():
    torch.manual_seed(4)
    matrix = torch.randn(12, 20)
    for factor in (1e-3, 1e4):
        torch.testing.assert_close(alone(matrix * factor), alone(matrix), rtol=0, atol=0.02)


@pytest.mark.parametrize("padding", [0.0, 1.0, 1e9])
@settings(deadline=None, max_examples=25)
@given(shapes=SHAPES, seed=st.integers(0, 99))
def test_each_matrix_of_many_comes_out_as_it_does_alone(padding: float, shapes: list[tuple[int, int]], seed: int):
    """Tall and wide ones, of one shape or another, filled up with zeros or not."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(newton_schulz.PADDING, "cpu", padding)
        found = orthogonalise_all(matrices, steps=3)
    for matrix, result in zip(matrices, found, strict=True):
        expected = in_double(matrix, 3)
        assert result.shape == matrix.shape
        assert (result - expected).norm() < BF16 * expected.norm()


def test_zeros_around_a_matrix_stay_zero():
    matrix = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    wider = torch.zeros(1, 9, 15)
    wider[0, :6, :10] = matrix
    found = orthogonalise(wider, steps=3)[0]
    torch.testing.assert_close(found[:6, :10], alone(matrix), rtol=0, atol=0.01)
    assert not found[6:].any()
    assert not found[:, 10:].any()


@given(WIDE, st.sampled_from([0.0, 0.3, 1.0]))
def test_each_matrix_is_in_one_stack_and_no_stack_is_mostly_zeros(shapes: list[tuple[int, int]], padding: float):
    found = stacks(shapes, padding)
    assert sorted(i for members in found for i in members) == list(range(len(shapes)))
    for members in found:
        rows, columns = (max(shapes[i][side] for i in members) for side in (0, 1))
        work = sum(2 * shapes[i][0] ** 2 * shapes[i][1] + shapes[i][0] ** 3 for i in members)
        assert len(members) * (2 * rows**2 * columns + rows**3) <= (1 + padding) * work * (1 + 1e-9)
    if padding == 0:
        assert len(found) == len(set(shapes)), "equal shapes share a stack"


@pytest.mark.gpu
def test_a_gpu_comes_to_the_results_of_a_cpu():
    shapes = [(64, 27), (64, 576), (64, 576), (128, 576), (256, 2304), (512, 64)]
    matrices = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    torch.cuda.synchronize()
    on_gpu = [matrix.cuda() for matrix in matrices]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = orthogonalise_all(on_gpu, steps=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for mine, theirs in zip(found, orthogonalise_all(matrices, steps=3), strict=True):
        assert (mine.cpu() - theirs).norm() < BF16 * theirs.norm()
