"""The CUDA kernels, every variant that loads its rows, against float64 NumPy: thread by thread, under three schedules.

Those that take them through a ring are in test_simt_rings.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import kernel_harness as kh
from tests.kernel_harness import (
    CAPACITY,
    LOADING,
    PIECE,
    SCHEDULES,
    SPLIT,
    KernelSolve,
    Problem,
    check_arnoldi,
    least_squares_oracle,
)

pytestmark = pytest.mark.usefixtures("simt_alone")


@pytest.fixture(params=LOADING, ids=lambda i: "split" if i == SPLIT else f"block{i}")
def variant(simt, request):
    simt.cuda.force_variant(request.param)
    return request.param


@pytest.fixture(params=[0, SPLIT], ids=["block", "split"])
def family(simt, request):
    simt.cuda.force_variant(request.param)
    return request.param


@pytest.fixture(params=["mgs", "cgs2"])
def orthogonalization(request):
    return request.param


def size(variant: int, dtype: torch.dtype, kind: str = "ragged") -> int:
    """An n for a variant: one unknown, a few, as many as fit, or a bit less with a last chunk that is not full."""
    chunks = PIECE * 3 if variant == SPLIT else CAPACITY[variant]
    full = chunks * 16 // dtype.itemsize
    return {"one": 1, "few": 5, "ragged": full - 37, "full": full}[kind]


def small(family: int, dtype: torch.dtype) -> int:
    """A ragged n that keeps many steps cheap: one piece per block, two per system in split-n."""
    return PIECE * 16 // dtype.itemsize + 35 if family == SPLIT else 61


# ---- one cycle against float64 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one", "few", "ragged", "full"])
def test_a_cycle_matches_float64(simt, variant, dtype, orthogonalization, kind):
    n = size(variant, dtype, kind)
    problem = Problem(2, n, dtype)
    restart = min(6, n)
    s = KernelSolve(simt, problem.b, restart=restart, rtol=0.0, orthogonalization=orthogonalization)
    s.begin(problem)
    torch.testing.assert_close(s.residual, problem.b.double().norm(dim=1), rtol=1e-6, atol=0)
    assert s.active[0] == 2

    for j in range(restart):
        s.step(j, problem(s.direction))
    check_arnoldi(s, problem)

    s.finish()
    assert torch.equal(s.candidate, s.direction)
    estimates, x = least_squares_oracle(problem, restart)
    eps = torch.finfo(dtype).eps
    beta = problem.b.double().norm(dim=1, keepdim=True).numpy()
    np.testing.assert_allclose(s.estimates.numpy() / beta, estimates / beta, rtol=0, atol=50 * eps)
    scale = np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(s.candidate.double().numpy() / scale, x / scale, rtol=0, atol=50 * eps)

    s.close(problem(s.candidate))
    residual = problem.residual(s.candidate)
    measured = torch.linalg.vector_norm(problem.b.double() - problem(s.candidate).double(), dim=1)
    torch.testing.assert_close(s.residual, measured, rtol=1e-4, atol=10 * eps * float(beta.max()))
    torch.testing.assert_close(s.residual, residual, rtol=1e-4, atol=10 * eps * float(beta.max()))
    assert torch.equal(s.x, s.candidate)
    if int(s.active[0]) == 2:  # n = 1 may be solved exactly
        assert torch.equal(s.direction, s.basis[:, 0, :n])
        torch.testing.assert_close(s.direction.double().norm(dim=1), torch.ones(2).double(), rtol=10 * eps, atol=0)


def test_no_size_below_a_variants_capacity_is_special(simt, dtype):
    for n in range(1, 41):
        problem = Problem(2, n, dtype, seed=n)
        for variant in (0, SPLIT):
            simt.cuda.force_variant(variant)
            s = KernelSolve(simt, problem.b, restart=min(n, 4), rtol=1e-4)
            result = s.run(problem)
            assert result.status == [kh.CONVERGED] * 2, n
            assert (problem.residual(result.x) <= 1.01e-4 * problem.b.double().norm(dim=1)).all(), n


def bits(s: KernelSolve) -> list[torch.Tensor]:
    """Everything that a solve leaves behind, as integers."""
    arrays = (s.x, s.candidate, s.direction, s.basis, s.r, s.rotations, s.g, s.estimates, s.systems, s.active)
    return [a.contiguous().view(torch.uint8).clone() for a in arrays]


def test_schedules_agree_bitwise(simt, variant, dtype, orthogonalization):
    problem = Problem(2, size(variant, dtype), dtype)
    outcomes = []
    for schedule, seed in SCHEDULES:
        simt.set_schedule(schedule, seed)
        s = KernelSolve(simt, problem.b, restart=5, rtol=1e-3, orthogonalization=orthogonalization)
        result = s.run(problem)
        assert result.status == [kh.CONVERGED] * 2
        outcomes.append(bits(s))
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


def test_many_rows_cross_the_groups_of_32(simt, family, dtype, orthogonalization):
    """Panels, groups of partial sums and both triangular solves beyond one warp's width."""
    n, restart = max(small(family, dtype), 117), 70
    problem = Problem(1, n, dtype, coupling=1.5)
    s = KernelSolve(simt, problem.b, restart=restart, rtol=0.0, orthogonalization=orthogonalization)
    s.begin(problem)
    for j in range(restart):
        s.step(j, problem(s.direction))
    check_arnoldi(s, problem)
    s.finish()
    _, x = least_squares_oracle(problem, restart)
    eps = torch.finfo(dtype).eps
    assert np.linalg.norm(s.candidate.double().numpy() - x) <= 1e3 * eps * np.linalg.norm(x)


def test_more_pieces_than_a_warp_has_lanes(simt, dtype, orthogonalization):
    """The last pieces are the largest by 2^20: a wrong exponent of theirs would spoil every sum."""
    simt.cuda.force_variant(SPLIT)
    n = 34 * PIECE * 16 // dtype.itemsize - 7
    problem = Problem(1, n, dtype)
    problem.b[:, : 32 * PIECE * 16 // dtype.itemsize] *= 2.0**-20
    for schedule, seed in SCHEDULES:
        simt.set_schedule(schedule, seed)
        s = KernelSolve(simt, problem.b, restart=2, rtol=0.0, orthogonalization=orthogonalization)
        s.begin(problem)
        for j in range(2):
            s.step(j, problem(s.direction))
        check_arnoldi(s, problem)


# ---- what the caller's memory may look like ----


def test_unaligned_vectors_give_the_same_bits(simt, family, dtype):
    n = PIECE * 16 // dtype.itemsize * 2 if family == SPLIT else 64
    problem = Problem(2, n, dtype)
    results = [KernelSolve(simt, problem.b, restart=5, rtol=1e-3, offset=k).run(problem) for k in (0, 1)]
    assert results[0].status == [kh.CONVERGED] * 2
    assert torch.equal(results[0].x, results[1].x)


def test_the_operator_may_overwrite_its_input(simt, family, dtype, orthogonalization):
    problem = Problem(3, small(family, dtype), dtype)
    results = []
    for in_place in (False, True):
        rtol = np.array([1e-1, 1e-3, 1e-4])  # the systems end at different steps
        s = KernelSolve(simt, problem.b, restart=5, rtol=rtol, orthogonalization=orthogonalization)
        results.append((s.run(problem, in_place), bits(s)))
    assert results[0][0].status == [kh.CONVERGED] * 3
    assert len(set(results[0][0].iterations)) == 3
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_frozen_systems_cost_nothing_and_are_fed_zeros(simt, family, dtype):
    problem = Problem(3, small(family, dtype), dtype)
    b = problem.b.clone()
    b[1] = 0.0
    s = KernelSolve(simt, b, restart=4, rtol=0.0)
    s.begin(problem)
    assert s.status.tolist() == [kh.RUNNING, kh.CONVERGED, kh.RUNNING]
    assert s.active[0] == 2

    def garbage(v: torch.Tensor) -> torch.Tensor:
        w = problem(v)
        w[1] = float("nan")
        return w

    for j in range(4):
        assert (s.direction[1] == 0).all()
        s.direction[1] = 7.0
        s.step(j, garbage(s.direction))
        assert s.active[j + 1] == 2
    s.finish()
    assert (s.direction[1] == 0).all()
    s.direction[1] = 7.0
    s.close(garbage(s.candidate))
    assert (s.direction[1] == 0).all()
    assert (s.x[1] == 0).all()
    assert s.basis[1].isnan().all() or (s.basis[1, 1:].isnan().all())
    assert s.iterations.tolist() == [4, 0, 4]


# ---- endings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False], ids=["happy", "singular"])
def test_breakdown_on_operators_of_low_rank(simt, family, dtype, orthogonalization, inside):
    """Rank k, as the Hessian of a ReLU network has: the Krylov space ends at k or k + 1 vectors."""
    n, ranks = small(family, dtype), [1, 3, 6]
    rng = np.random.default_rng(3)
    bases = [np.linalg.qr(rng.standard_normal((n, k)))[0] for k in ranks]
    spectra = [np.linspace(1.0, 2.0, k) for k in ranks]

    def apply(v: torch.Tensor) -> torch.Tensor:
        u = v.double().numpy()
        return torch.from_numpy(
            np.stack([q @ (e * (q.T @ row)) for q, e, row in zip(bases, spectra, u, strict=True)])
        ).to(dtype)

    b = np.stack([q @ rng.standard_normal(q.shape[1]) for q in bases])
    if not inside:
        b += 0.5 * rng.standard_normal(b.shape) / np.sqrt(n)
    rtol = 1e-4 if dtype == torch.float32 else 1e-12
    s = KernelSolve(simt, torch.from_numpy(b).to(dtype), restart=12, rtol=rtol, orthogonalization=orthogonalization)
    result = s.run(apply)

    x = result.x.double()
    assert x.isfinite().all()
    assert (x.norm(dim=1) <= 10 * np.linalg.norm(b, axis=1).max()).all()
    if inside:
        assert result.status == [kh.CONVERGED] * 3
        assert all(count <= k for count, k in zip(result.iterations, ranks, strict=True))
    else:
        assert all(status in (kh.BREAKDOWN, kh.STAGNATED) for status in result.status)
        best = [np.linalg.norm(row - q @ (q.T @ row)) for q, row in zip(bases, b, strict=True)]
        np.testing.assert_allclose(result.residual.numpy(), best, rtol=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bad_step", [0, 2])
def test_a_non_finite_column_ends_one_system_alone(simt, family, dtype, value, bad_step):
    n = small(family, dtype)
    problem = Problem(3, n, dtype)
    clean = KernelSolve(simt, problem.b, restart=5, rtol=1e-3)
    clean_result = clean.run(problem)

    calls = iter(range(1000))

    def faulty(v: torch.Tensor) -> torch.Tensor:
        w = problem(v)
        if next(calls) == bad_step:
            w[1, n - 1] = value
        return w

    s = KernelSolve(simt, problem.b, restart=5, rtol=1e-3)
    result = s.run(faulty)
    assert result.status == [kh.CONVERGED, kh.NON_FINITE, kh.CONVERGED]
    assert torch.equal(result.x[[0, 2]], clean_result.x[[0, 2]])
    assert torch.equal(result.residual[[0, 2]], clean_result.residual[[0, 2]])
    assert result.iterations[1] == bad_step
    if bad_step == 0:
        assert (result.x[1] == 0).all()
    else:
        _, x = least_squares_oracle(problem, bad_step)
        np.testing.assert_allclose(result.x[1].double().numpy(), x[1], atol=1e-5 * np.linalg.norm(x[1]))


def test_every_opening_verdict(simt, family, dtype):
    n = small(family, dtype)
    problem = Problem(7, n, dtype)
    b, x0 = problem.b.clone(), 0.1 * problem.b
    b[1] = 0.0
    x0[2] = problem.solve()[2]
    b[3, n - 1] = float("nan")
    x0[4, 0] = float("inf")
    b[5, 0] = float("inf")
    x0[5, 0] = float("nan")
    x0[6] = 0.0
    s = KernelSolve(simt, b, x0=x0, restart=3, rtol=1e-4)
    s.begin(problem)
    expected = [kh.RUNNING, kh.CONVERGED, kh.CONVERGED, kh.NON_FINITE, kh.NON_FINITE, kh.NON_FINITE, kh.RUNNING]
    assert s.status.tolist() == expected
    assert s.active[0] == 2
    assert (s.x[1] == 0).all()
    assert torch.equal(s.x[3], x0[3])
    assert (s.x[4] == 0).all()
    assert (s.x[5] == 0).all()
    assert s.residual[1] == 0
    assert s.residual[3:6].isnan().all()
    assert (s.direction[1:6] == 0).all()
    for i in (0, 6):
        r = b[i].double() - problem(x0)[i].double()
        torch.testing.assert_close(s.direction[i].double(), r / r.norm(), rtol=0, atol=10 * torch.finfo(dtype).eps)
    assert (s.basis[[0, 6], 0, n:] == 0).all()


def test_stop_keeps_the_steps_that_were_done(simt, family, dtype):
    problem = Problem(2, small(family, dtype), dtype)
    s = KernelSolve(simt, problem.b, restart=6, rtol=1e-7)
    s.begin(problem)
    for j in range(2):
        s.step(j, problem(s.direction))
    s.finish()
    s.close(problem(s.candidate), stop=True)
    assert s.status.tolist() == [kh.STOPPED] * 2
    assert s.active[0] == 0
    assert (s.direction == 0).all()
    assert (s.residual < problem.b.double().norm(dim=1)).all()


def test_a_worse_candidate_is_refused_and_the_cycle_restarts_from_the_old_residual(simt, family, dtype):
    problem = Problem(2, small(family, dtype), dtype)
    s = KernelSolve(simt, problem.b, restart=3, rtol=1e-7)
    s.begin(problem)
    before, first = s.residual.clone(), s.basis[:, 0].clone()
    for j in range(3):
        s.step(j, problem(s.direction))
    s.finish()
    ax = problem(s.candidate)
    ax[1] = -5 * problem.b[1]
    s.close(ax)
    assert s.status.tolist() == [kh.RUNNING] * 2
    assert (s.x[1] == 0).all()
    assert s.residual[1] == before[1]
    assert s.residual[0] < before[0]
    assert torch.equal(s.basis[1, 0], first[1])
    assert torch.equal(s.direction[1], first[1, : s.n])


def test_preconditioned_ending(simt, family, dtype):
    problem = Problem(3, small(family, dtype), dtype)
    b = problem.b.clone()
    b[2] = 0.0
    plain = KernelSolve(simt, b, restart=4, rtol=0.0)
    split_up = KernelSolve(simt, b, restart=4, rtol=0.0)
    for s in (plain, split_up):
        s.begin(problem)
        for j in range(4):
            s.step(j, problem(s.direction))
    plain.finish()
    split_up.candidate.fill_(7.0)
    split_up.finish(preconditioned=True)
    assert (split_up.candidate == 7.0).all()
    assert torch.equal(split_up.direction, plain.candidate.nan_to_num())  # x is zero
    split_up.x[:2] = problem.b[:2]
    z = split_up.direction.clone()
    split_up.direction[2] = 7.0
    split_up.correct(split_up.direction)  # z may be the direction
    assert torch.equal(split_up.candidate[:2], split_up.x[:2] + z[:2])
    assert torch.equal(split_up.direction[:2], split_up.candidate[:2])
    assert (split_up.direction[2] == 0).all()


# ---- scale -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of_a", "of_b"), [(1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, -1)])
def test_magnitudes_near_the_ends_of_the_range(simt, family, dtype, orthogonalization, of_a, of_b):
    """Powers of two near 1e30 (float32) and 1e250 (float64) leave every mantissa as it was."""
    exponent = 100 if dtype == torch.float32 else 830
    problem = Problem(2, small(family, dtype), dtype)
    scaled = Problem(2, small(family, dtype), dtype, scale_a=2.0 ** (exponent * of_a), scale_b=2.0 ** (exponent * of_b))
    plain = KernelSolve(simt, problem.b, restart=5, rtol=1e-3, orthogonalization=orthogonalization).run(problem)
    result = KernelSolve(simt, scaled.b, restart=5, rtol=1e-3, orthogonalization=orthogonalization).run(scaled)
    assert plain.status == result.status == [kh.CONVERGED] * 2
    assert plain.iterations == result.iterations
    assert torch.equal(plain.x, result.x * 2.0 ** (exponent * (of_a - of_b)))


def test_pieces_of_very_different_magnitude(simt, dtype):
    """Each piece of split-n carries its own exponent; the norms must come out as if there were one."""
    simt.cuda.force_variant(SPLIT)
    n = PIECE * 16 // dtype.itemsize * 3 - 5
    limit = 30.0 if dtype == torch.float32 else 250.0
    magnitude = torch.logspace(-limit, limit, n, dtype=torch.float64)
    b = (magnitude * torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).to(dtype)
    b[1] = b[1].flip(0)
    b[1, : n // 2] = 0.0
    s = KernelSolve(simt, b, restart=2, rtol=1e-3)
    s.begin(lambda v: v)
    largest = b.double().abs().amax(dim=1)
    norm = largest * (b.double() / largest[:, None]).norm(dim=1)
    torch.testing.assert_close(s.residual, norm, rtol=1e-6, atol=0)
    s.step(0, s.direction.clone())
    assert s.outcome.tolist() == [kh.BROKEN] * 2
    s.finish()
    s.close(s.candidate.clone())
    assert s.status.tolist() == [kh.CONVERGED] * 2
    error = (s.x.double() / largest[:, None] - b.double() / largest[:, None]).abs().max()
    assert error <= 4 * torch.finfo(dtype).eps
