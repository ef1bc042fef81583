"""Arnoldi mode of the launchers of csrc/gmres.h, on arrays that start as NaN: the CPU kernels, and every variant of the
CUDA kernels, thread by thread under three schedules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from soae_ext import _native
from tests import kernel_harness as kh
from tests.cpu_harness import CpuSolve
from tests.kernel_harness import CAPACITY, LOADING, PIECE, SCHEDULES, SPLIT, KernelSolve, Problem


@pytest.fixture(params=["cpu", *(f"block{i}" for i in LOADING[:-1]), "split"])
def solve_of(request):
    """Makes the solve of a kernel, and names an n that is ragged for it."""
    if request.param == "cpu":
        if _native.extension is None:
            pytest.skip(f"the compiled extension is missing: {_native.missing}")
        return (lambda b, **options: CpuSolve(b, threads=2, **options)), 20011 * 4
    simt = request.getfixturevalue("simt_alone")
    variant = SPLIT if request.param == "split" else int(request.param[-1])
    simt.cuda.force_variant(variant)
    chunks = 2 * PIECE + 9 if variant == SPLIT else CAPACITY[variant]
    return (lambda b, **options: KernelSolve(simt, b, **options)), chunks * 16 - 4 * 8


def check(s: KernelSolve, operator: Problem, i: int) -> None:
    """A V = V H of one system, orthonormal rows, and zeros where nothing belongs."""
    eps = torch.finfo(s.dtype).eps
    steps = int(s.length[i])
    kept = steps + int(int(s.outcome[i]) != kh.BROKEN)
    v, h = s.basis[i, :kept, : s.n].double(), s.h[i].numpy()
    assert (s.basis[i, :kept, s.n :] == 0).all()
    gram = (v @ v.mT).numpy() - np.eye(kept)
    assert np.abs(gram).max() <= 20 * eps
    image = operator.exact(s.basis[i, :steps, : s.n], system=i)
    assert (image - torch.from_numpy(h[:kept, :steps].T.copy()) @ v).abs().max() <= 60 * eps * np.abs(h).max()
    assert (h[:, steps:] == 0).all()
    assert (np.tril(h, -2) == 0).all()


def test_a_decomposition(solve_of, dtype):
    make, bytes_of_a_row = solve_of
    n = bytes_of_a_row // dtype.itemsize
    problem = Problem(2, n, dtype)
    s = make(problem.b, restart=5, rtol=0.5, orthogonalization="cgs2", arnoldi=True)  # no tolerance ends it
    s.decompose(problem)
    assert s.length.tolist() == [5, 5]
    assert s.outcome.tolist() == [kh.ACTIVE] * 2
    for i in range(2):
        check(s, problem, i)


@pytest.mark.parametrize("variant", LOADING)
def test_schedules_agree_bitwise(simt_alone, dtype, variant):
    simt_alone.cuda.force_variant(variant)
    chunks = 2 * PIECE + 9 if variant == SPLIT else CAPACITY[variant]
    problem = Problem(2, chunks * 16 // dtype.itemsize - 5, dtype)
    found = []
    for schedule, seed in SCHEDULES:
        simt_alone.set_schedule(schedule, seed)
        s = KernelSolve(simt_alone, problem.b, restart=5, orthogonalization="cgs2", arnoldi=True)
        s.decompose(problem)
        found.append([s.basis.view(torch.uint8), s.h, s.systems, s.active])
    assert bool((found[0][1].abs().amax((1, 2)) > 0).all())
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_nothing_but_h_differs_from_a_solve(solve_of, dtype):
    """The vectors are those of gmres, bit for bit, and H agrees with what gmres keeps as R and rotations."""
    make, bytes_of_a_row = solve_of
    problem = Problem(1, bytes_of_a_row // dtype.itemsize, dtype)
    solve = make(problem.b, restart=4, rtol=0.0, orthogonalization="cgs2")
    solve.begin(problem)
    for j in range(4):
        solve.step(j, problem(solve.direction))
    s = make(problem.b, restart=4, orthogonalization="cgs2", arnoldi=True)
    s.decompose(problem)
    assert torch.equal(s.basis.view(torch.uint8), solve.basis.view(torch.uint8))
    np.testing.assert_allclose(s.h[0].numpy(), kh.hessenberg(solve, 0), rtol=0, atol=1e-14)


def test_endings(solve_of, dtype):
    """Low rank, zero b, a bad column, b not finite, and a system beside them that nothing touches."""
    make, bytes_of_a_row = solve_of
    n = bytes_of_a_row // dtype.itemsize
    problem = Problem(5, n, dtype)
    b = problem.b.clone()
    b[0] = 0.0
    b[0, :2] = 1.0
    b[1] = 0.0
    b[3, n - 1] = float("nan")
    calls = iter(range(100))

    def operator(v: torch.Tensor) -> torch.Tensor:
        w = problem(v)
        w[0] = 0.0
        w[0, 0], w[0, 1] = 2 * v[0, 0], 3 * v[0, 1]
        if next(calls) >= 2:
            w[2, n - 1] = float("inf")
        w[1], w[3] = float("nan"), float("nan")
        return w

    s = make(b, restart=5, orthogonalization="cgs2", arnoldi=True)
    s.decompose(operator)
    assert s.length.tolist() == [2, 0, 2, 0, 5]
    assert s.outcome.tolist() == [kh.BROKEN, kh.FROZEN, kh.BAD_COLUMN, kh.FROZEN, kh.ACTIVE]
    assert s.h[0, 2, 1] == 0
    torch.testing.assert_close(
        torch.linalg.eigvalsh(s.h[0, :2, :2]), torch.tensor([2.0, 3.0]).double(), rtol=1e-6, atol=0
    )
    assert (s.h[[1, 3]] == 0).all()
    assert (s.direction[:4] == 0).all()
    check(s, problem, 2)
    check(s, problem, 4)
    alone = make(problem.b[4:].clone(), restart=5, orthogonalization="cgs2", arnoldi=True)
    problem.diagonal = problem.diagonal[4:]
    alone.decompose(problem)
    assert torch.equal(alone.basis[0].view(torch.uint8), s.basis[4].view(torch.uint8))
    assert torch.equal(alone.h[0], s.h[4])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_n_columns_leave_no_further_vector(solve_of, dtype, n):
    make, _ = solve_of
    problem = Problem(2, n, dtype, seed=3)
    s = make(problem.b, restart=n, orthogonalization="cgs2", arnoldi=True)
    s.decompose(problem)
    assert s.length.tolist() == [n, n]
    assert s.outcome.tolist() == [kh.BROKEN] * 2
    assert (s.h[:, n] == 0).all()
    for i in range(2):
        check(s, problem, i)


def test_a_product_whose_norm_leaves_float64(solve_of):
    """Every entry is finite and the norm is not: the column is refused, like one that is not finite."""
    make, _ = solve_of
    s = make(torch.ones(1, 40, dtype=torch.float64), restart=3, orthogonalization="cgs2", arnoldi=True)
    s.decompose(lambda v: torch.full_like(v, 1.7e308))
    assert s.outcome.tolist() == [kh.BAD_COLUMN]
    assert s.length.tolist() == [0]
    assert (s.h == 0).all()
