"""Orthogonalising matrices by Newton-Schulz iterations (Jordan et al. 2024, "Muon"), many in one go."""

from collections.abc import Sequence

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic of Jordan et al. 2024: steep at 0, 0.7..1.2 at the end
# Multiplications with padding that a stack may add, as a part of what its matrices need. On a GPU small products cost
# their launch and not their size (not measured); on a CPU each zero takes its time.
PADDING = {"cuda": 1.0, "cpu": 0.0}
Shape = tuple[int, int]


def orthogonalise(stack: Tensor, *, steps: int, eps: float = 1e-7) -> Tensor:
    """Approximately U V^T of each matrix's singular value decomposition: [n, rows, columns], in bf16.

    Rows and columns of zeros stay zero and leave the others as they are without them.
    """
    a, b, c = COEFFICIENTS
    x = stack.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + eps)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    for _ in range(steps):  # x <- a x + (b G + c G G) x with G = x x^T, in three kernels
        gram = torch.bmm(x, x.mT)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return (x if wide else x.mT).to(stack.dtype)


def orthogonalise_all(matrices: Sequence[Tensor], *, steps: int) -> list[Tensor]:
    """`orthogonalise` of each matrix [rows, columns], all on one device: those of like shape in one stack.

    Equal to one by one within bf16's rounding: a batched product may add in another order.
    """
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT for matrix in matrices]
    padding = PADDING[matrices[0].device.type] if matrices else 0.0
    found: dict[int, Tensor] = {}
    for members in stacks([(len(matrix), matrix.shape[1]) for matrix in wide], padding):
        results = orthogonalise(_stacked([wide[i] for i in members]), steps=steps)
        for i, result in zip(members, results, strict=True):
            found[i] = result[: wide[i].shape[0], : wide[i].shape[1]]
    return [found[i] if matrix is wide[i] else found[i].mT for i, matrix in enumerate(matrices)]


def _stacked(matrices: Sequence[Tensor]) -> Tensor:
    """The matrices in one tensor [n, rows, columns], filled up with zeros."""
    if len(matrices) == 1:
        return matrices[0][None]
    rows, columns = (max(matrix.shape[side] for matrix in matrices) for side in (0, 1))
    stack = matrices[0].new_zeros(len(matrices), rows, columns)
    for place, matrix in zip(stack, matrices, strict=True):
        place[: matrix.shape[0], : matrix.shape[1]] = matrix
    return stack


def stacks(shapes: Sequence[Shape], padding: float) -> list[list[int]]:
    """Which matrices go together, by index: each once, and none where zeros cost more than `padding` of the work.

    Greedy from the largest down; every shape has at most as many rows as columns.
    """
    found: list[list[int]] = []
    for i in sorted(range(len(shapes)), key=lambda i: (shapes[i], -i), reverse=True):
        if found and _padding([shapes[j] for j in (*found[-1], i)]) <= padding:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def _padding(shapes: Sequence[Shape]) -> float:
    """The multiplications added by zeros where all are filled up to one shape, relative to those needed."""
    needed = sum(_multiplications(*shape) for shape in shapes)
    whole = _multiplications(max(rows for rows, _ in shapes), max(columns for _, columns in shapes))
    return len(shapes) * whole / needed - 1


def _multiplications(rows: int, columns: int) -> int:
    """Of one iteration: two products with the matrix, one of its Gram matrix with itself."""
    return 2 * rows**2 * columns + rows**3
