"""The rules of the solver that have nothing to do with easy systems: verdicts, breakdown, isolation, scale, NaN."""

from __future__ import annotations

import math

import pytest
import torch

from soae_ext.gmres import Status, gmres
from tests.problems import counting, matrices, residual, tight, times, vectors

ORTHOGONALIZATIONS = ["mgs", "cgs2"]


# --- breakdown and singular systems ----------------------------------------------------------------------------------


@pytest.mark.parametrize("orthogonalization", ORTHOGONALIZATIONS)
def test_happy_breakdown_is_convergence(backend, device, dtype, orthogonalization):
    """A low-rank operator, as the Hessian of a ReLU network is: the space is exhausted after rank + 1 steps."""
    factor = vectors(3, 40, 4, seed=1, dtype=dtype)
    A = factor @ factor.mT
    b = (A @ vectors(3, 40, 1, seed=2, dtype=dtype))[..., 0]
    result = gmres(
        A.to(device),
        b.to(device),
        rtol=tight(dtype) * 10,
        restart=20,
        backend=backend,
        orthogonalization=orthogonalization,
    )
    assert result.status.tolist() == [Status.CONVERGED] * 3
    assert int(result.iterations.max()) <= 5
    minimum_norm = (torch.linalg.pinv(A.double(), hermitian=True, rtol=1e-6) @ b.double()[..., None])[..., 0]
    error = (result.x.cpu().double() - minimum_norm).norm(dim=1) / minimum_norm.norm(dim=1)
    assert (error < (2e-2 if dtype == torch.float32 else 1e-6)).all()


@pytest.mark.parametrize("orthogonalization", ORTHOGONALIZATIONS)
def test_inconsistent_system_gives_the_least_squares_solution_of_its_space(backend, device, dtype, orthogonalization):
    A = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=dtype))
    b = torch.ones(1, 3, dtype=dtype)
    result = gmres(
        A.to(device), b.to(device), history=True, rtol=1e-6, backend=backend, orthogonalization=orthogonalization
    )
    assert result.status.tolist() == [Status.BREAKDOWN]
    # The space is all of R³, but A is singular on it: the pivot rule leaves the last direction out.
    torch.testing.assert_close(result.residual_norm.cpu(), torch.ones(1, dtype=dtype), rtol=1e-5, atol=0)
    assert float(result.residual_history[0, -1]) == pytest.approx(1.0, rel=1e-5)
    assert float(result.x.norm()) < 5


def test_singular_consistent_systems_stay_bounded(backend, device, dtype):
    A = matrices(6, 15, 3, dtype=dtype)
    A[:, -1] = A[:, 0]  # rank n − 1
    b = (A @ vectors(6, 15, 1, seed=4, dtype=dtype))[..., 0]
    result = gmres(A.to(device), b.to(device), rtol=1e-14, restart=15, max_iters=300, backend=backend)
    assert (result.residual_norm.cpu() <= 1e-3 * b.norm(dim=1)).all()
    assert result.x.norm(dim=1).max() < 1e3
    assert set(result.status.tolist()) <= {Status.CONVERGED, Status.BREAKDOWN, Status.STAGNATED}


def test_inconsistent_systems_stay_bounded_over_many_restarts(backend, device, dtype):
    """Where SciPy once returned iterates of norm 1e58."""
    A = matrices(4, 12, 5, dtype=dtype)
    A[:, :, -1] = 0
    A[:, -1] = 0
    b = vectors(4, 12, seed=6, dtype=dtype)
    for restart in (3, 12):
        result = gmres(A.to(device), b.to(device), rtol=1e-10, restart=restart, max_iters=240, backend=backend)
        assert not bool(result.converged.any())
        assert (result.residual_norm.cpu() <= b.norm(dim=1) * (1 + 1e-6)).all()
        # Near the least-squares solution rounding moves x by about eps^½ of its conditioning, no further.
        assert result.x.norm(dim=1).max() < (1e4 if dtype == torch.float32 else 100)


@pytest.mark.parametrize("orthogonalization", ORTHOGONALIZATIONS)
def test_random_inconsistent_systems_stay_near_the_least_squares_solution(backend, device, dtype, orthogonalization):
    """Rank n - 1 and a right-hand side out of range: orthogonality lost inside a panel once sent x to 1e12."""
    for n in (2, 3, 4, 6):
        count = 20 if backend == "simt" else 300
        A = vectors(count, n, n, seed=n)
        A[:, -1] = A[:, 0]
        A, b = A.to(dtype), vectors(count, n, seed=n + 1, dtype=dtype)
        result = gmres(
            A.to(device), b.to(device), rtol=1e-6, restart=n, orthogonalization=orthogonalization, backend=backend
        )
        least = (torch.linalg.pinv(A.double(), rtol=1e-9) @ b.double()[..., None])[..., 0].norm(dim=1)
        far = result.x.cpu().double().norm(dim=1) > 1e3 * least
        assert int(far.sum()) <= count // 100  # a singular value may lie close to the threshold
        assert result.x.double().norm(dim=1).max() < 1e9
        assert not bool(result.converged.any())


@pytest.mark.parametrize("orthogonalization", ORTHOGONALIZATIONS)
def test_rank_one_with_a_nearly_orthogonal_right_hand_side(backend, device, orthogonalization):
    """R = [[small, 1], [0, rounding]]: its largest pivot says nothing about its largest singular value."""
    count = 10 if backend == "simt" else 100
    p, q, b = (vectors(count, 5, seed=s) for s in (41, 42, 43))
    inside = (q * b).sum(1, keepdim=True) / (q * q).sum(1, keepdim=True)
    b = b - inside * q + 10.0 ** -torch.linspace(2, 8, count, dtype=torch.float64)[:, None] * q
    A = p[:, :, None] * q[:, None]
    result = gmres(
        A.to(device), b.to(device), rtol=1e-8, restart=5, orthogonalization=orthogonalization, backend=backend
    )
    assert int((result.x.norm(dim=1) > 1e10).sum()) <= count // 20


def test_zero_operator_breaks_down_at_once(backend, device, dtype):
    b = vectors(2, 9, seed=7, dtype=dtype).to(device)
    result = gmres(torch.zeros_like, b, backend=backend)
    assert result.status.tolist() == [Status.BREAKDOWN] * 2
    assert result.iterations.tolist() == [1, 1]
    assert torch.equal(result.x, torch.zeros_like(b))
    torch.testing.assert_close(result.residual_norm, b.norm(dim=1))


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_two_idle_cycles_are_stagnation(backend, device):
    A = torch.roll(torch.eye(10), 1, 0)  # no restart below n makes any progress on the cyclic shift
    b = torch.zeros(1, 10)
    b[0, 0] = 1
    result = gmres(A.to(device), b.to(device), restart=4, backend=backend)
    assert result.status.tolist() == [Status.STAGNATED]
    assert result.iterations.tolist() == [8]
    assert float(result.residual_norm) == pytest.approx(1.0)
    full = gmres(A.to(device), b.to(device), restart=10, backend=backend)
    assert (full.status.tolist(), full.iterations.tolist()) == ([Status.CONVERGED], [10])


def test_a_refuted_claim_is_never_called_convergence(backend, device):
    """A float32 operator that rounds coarsely: the estimate falls below what the true residual can reach."""
    A, b = matrices(4, 30, 8, dtype=torch.float32).to(device), vectors(4, 30, seed=9, dtype=torch.float32).to(device)

    def rounded(v):
        return times(A)(v).half().float()

    result = gmres(rounded, b, rtol=1e-6, restart=30, max_iters=600, backend=backend)
    assert Status.CONVERGED not in result.status.tolist()
    assert Status.STAGNATED in result.status.tolist()
    measured = (b - rounded(result.x)).norm(dim=1)
    torch.testing.assert_close(result.residual_norm, measured, rtol=1e-3, atol=1e-7)


def test_convergence_is_confirmed_by_the_true_residual(backend, device, dtype):
    A, b = matrices(5, 20, 10, dtype=dtype), vectors(5, 20, seed=11, dtype=dtype)
    rtol = tight(dtype)
    result = gmres(A.to(device), b.to(device), rtol=rtol, restart=6, max_iters=200, backend=backend)
    assert bool(result.converged.all())
    limit = rtol * b.double().norm(dim=1)
    assert (result.residual_norm.cpu().double() <= limit * (1 + 1e-6)).all()
    assert (residual(A, result.x, b) <= limit * (1.05 if dtype == torch.float32 else 1.0001)).all()


def test_tolerance_zero_is_met_by_an_exact_zero_only(backend, device, dtype):
    b = torch.tensor([[2.0, 4.0, 8.0]], dtype=dtype, device=device)
    exact = gmres(lambda v: 2 * v, b, rtol=0.0, atol=0.0, backend=backend)
    if exact.converged.item():
        assert float(exact.residual_norm) == 0.0
    A, c = matrices(1, 20, 12, dtype=dtype).to(device), vectors(1, 20, seed=13, dtype=dtype).to(device)
    inexact = gmres(A, c, rtol=0.0, restart=20, max_iters=100, backend=backend)
    assert bool(inexact.converged) == (float(inexact.residual_norm) == 0.0)


# --- zero and exact --------------------------------------------------------------------------------------------------


def test_zero_right_hand_side(backend, device, dtype):
    A, b = matrices(3, 7, 14, dtype=dtype).to(device), vectors(3, 7, seed=15, dtype=dtype).to(device)
    b[1] = 0
    x0 = vectors(3, 7, seed=16, dtype=dtype).to(device)
    x0[1, 2] = math.nan
    for start in (None, x0):
        operator, _ = counting(times(A))
        result = gmres(operator, b, None if start is None else start.nan_to_num(7.0), atol=0.0, backend=backend)
        assert result.status.tolist() == [Status.CONVERGED] * 3
        assert torch.equal(result.x[1], torch.zeros_like(b[1]))
        assert int(result.iterations[1]) == 0
        assert float(result.residual_norm[1]) == 0.0
    assert torch.equal(gmres(A, b, x0, backend=backend).x[1], torch.zeros_like(b[1]))


def test_exact_start_costs_no_iteration(backend, device, dtype):
    A = 2 * torch.eye(6, dtype=dtype, device=device)
    x = torch.tensor([[1.0, 2, 3, 4, 5, 6]], dtype=dtype, device=device)
    result = gmres(A, 2 * x, x, rtol=0.0, backend=backend)
    assert (result.status.tolist(), result.iterations.tolist(), result.operator_calls) == ([Status.CONVERGED], [0], 1)
    assert torch.equal(result.x, x)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (0, 2, 3)])
def test_empty(backend, device, shape):
    b = torch.zeros(shape, device=device)
    result = gmres(lambda v: v, b, history=True, backend=backend)
    assert result.x.shape == shape
    assert bool(result.converged.all())
    assert result.status.shape == (shape[0],)
    assert result.operator_calls == 0
    assert result.residual_history.shape == (shape[0], 1)


# --- isolation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orthogonalization", ORTHOGONALIZATIONS)
@pytest.mark.parametrize("where", ["b", "x0", "operator"])
def test_nan_in_one_system_leaves_the_others_bitwise_unchanged(backend, device, dtype, orthogonalization, where):
    A, b = matrices(4, 18, 17, dtype=dtype).to(device), vectors(4, 18, seed=18, dtype=dtype).to(device)
    x0 = vectors(4, 18, seed=19, dtype=dtype).to(device)
    arguments = {
        "rtol": tight(dtype), "restart": 5, "max_iters": 60, "history": True,
        "backend": backend, "orthogonalization": orthogonalization,
    }  # fmt: skip
    clean = gmres(times(A), b, x0, **arguments)
    bad_A, bad_b, bad_x0 = A.clone(), b.clone(), x0.clone()
    {"b": bad_b, "x0": bad_x0, "operator": bad_A[:, 0]}[where][2, 3] = math.nan
    dirty = gmres(times(bad_A), bad_b, bad_x0, **arguments)
    assert int(dirty.status[2]) == Status.NON_FINITE
    assert bool(dirty.x[2].isfinite().all())
    others = [0, 1, 3]
    for name in ("x", "status", "iterations", "residual_norm"):
        assert torch.equal(getattr(dirty, name)[others], getattr(clean, name)[others]), name


def test_splitting_permuting_and_padding_agree_to_rounding(backend, device, dtype):
    A, b = matrices(5, 21, 20, dtype=dtype).to(device), vectors(5, 21, seed=21, dtype=dtype).to(device)
    arguments = {"rtol": tight(dtype), "restart": 6, "max_iters": 100, "backend": backend}
    whole = gmres(A, b, **arguments)
    order = torch.tensor([3, 0, 4, 1, 2], device=device)
    permuted = gmres(A[order], b[order], **arguments)
    padded = gmres(torch.cat([A, A]), torch.cat([b, torch.zeros_like(b)]), **arguments)
    single = [gmres(A[i : i + 1], b[i : i + 1], **arguments) for i in range(5)]
    close = {"rtol": 100 * tight(dtype), "atol": 100 * tight(dtype)}
    torch.testing.assert_close(permuted.x, whole.x[order], **close)
    torch.testing.assert_close(padded.x[:5], whole.x, **close)
    torch.testing.assert_close(torch.cat([s.x for s in single]), whole.x, **close)
    for other in (
        permuted.iterations[order.argsort()],
        padded.iterations[:5],
        torch.cat([s.iterations for s in single]),
    ):
        assert (other - whole.iterations).abs().max() <= 1


def test_finished_systems_are_fed_zeros_and_ignored(backend, device, dtype):
    A, b = matrices(3, 16, 22, dtype=dtype).to(device), vectors(3, 16, seed=23, dtype=dtype).to(device)
    b[0] = 0  # done before it starts
    A[1] = torch.eye(16, dtype=dtype, device=device)  # done after one step
    fed = []

    def hostile(v):
        fed.append(v.clone())
        out = times(A)(v)
        out[(v == 0).all(1)] = math.nan  # what comes back for a finished system must not matter
        v.fill_(math.nan)  # the operator may overwrite its input
        return out

    result = gmres(hostile, b, rtol=tight(dtype), restart=16, backend=backend)
    assert bool(result.converged.all())
    assert all(not v[0].any() for v in fed)
    assert not fed[1][1].any()
    expected = gmres(times(A), b, rtol=tight(dtype), restart=16, backend=backend)
    assert torch.equal(result.x, expected.x)


# --- scale -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orthogonalization", ORTHOGONALIZATIONS)
def test_powers_of_two_change_nothing_but_the_exponent(backend, device, dtype, orthogonalization):
    A, b = matrices(2, 19, 24, dtype=dtype).to(device), vectors(2, 19, seed=25, dtype=dtype).to(device)
    span = 60 if dtype == torch.float32 else 500
    arguments = {
        "rtol": tight(dtype), "restart": 5, "max_iters": 50, "backend": backend, "orthogonalization": orthogonalization
    }  # fmt: skip
    base = gmres(times(A), b, **arguments)
    for s, t in [(span, 0), (0, span), (-span, 0), (0, -span), (span // 2, -span // 2), (-span // 2, span // 2)]:
        scaled = gmres(times(A * 2.0**s), b * 2.0**t, **arguments)
        assert torch.equal(scaled.x, base.x * 2.0 ** (t - s)), (s, t)
        assert torch.equal(scaled.iterations, base.iterations)
        assert torch.equal(scaled.residual_norm, base.residual_norm * 2.0**t)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-20, 1e18, 1e30, 1e36])
def test_float32_squares_neither_overflow_nor_underflow(backend, device, scale):
    A = torch.diag(torch.arange(1.0, 7.0)).to(device)
    b = torch.full((2, 6), scale, device=device)
    result = gmres(A, b, rtol=1e-5, backend=backend)
    assert bool(result.converged.all())
    assert result.iterations.tolist() == [6, 6]
    torch.testing.assert_close(result.x, (b / torch.arange(1.0, 7.0, device=device)), rtol=1e-4, atol=0)
    result = gmres(A * scale, torch.ones_like(b) * scale, rtol=1e-5, backend=backend)
    torch.testing.assert_close(result.x, (1 / torch.arange(1.0, 7.0, device=device)).expand(2, 6), rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [1e-290, 1e-160, 1e160, 1e290])
def test_float64_squares_neither_overflow_nor_underflow(backend, device, scale):
    A = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64)).to(device)
    ones = torch.ones(2, 6, dtype=torch.float64, device=device)
    expected = ones / torch.arange(1.0, 7.0, dtype=torch.float64, device=device)
    for matrix, b, x in [(A, scale * ones, expected * scale), (scale * A, scale * ones, expected)]:
        result = gmres(matrix, b, rtol=1e-10, backend=backend)
        assert bool(result.converged.all())
        torch.testing.assert_close(result.x / x, torch.ones_like(x), rtol=1e-8, atol=0)


def test_any_scale_gives_the_same_counts(backend, device, dtype):
    A, b = matrices(2, 17, 26, dtype=dtype).to(device), vectors(2, 17, seed=27, dtype=dtype).to(device)
    arguments = {"rtol": tight(dtype), "restart": 6, "backend": backend}
    base = gmres(A, b, **arguments)
    for s, t in [(3.7, 1e-7), (1.3e-9, 0.9), (1.1e12, 7e12)]:
        scaled = gmres(A * s, b * t, **arguments)
        assert (scaled.iterations - base.iterations).abs().max() <= 1
        torch.testing.assert_close(scaled.x * (s / t), base.x, rtol=50 * tight(dtype), atol=50 * tight(dtype))


# --- non-finite ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_input(backend, device, dtype, bad):
    A, b = matrices(3, 8, 28, dtype=dtype).to(device), vectors(3, 8, seed=29, dtype=dtype).to(device)
    x0 = vectors(3, 8, seed=30, dtype=dtype).to(device)
    bad_b, bad_x0 = b.clone(), x0.clone()
    bad_b[0, 1] = bad
    bad_x0[2, 5] = bad
    result = gmres(A, bad_b, bad_x0, backend=backend)
    assert result.status.tolist() == [Status.NON_FINITE, Status.CONVERGED, Status.NON_FINITE]
    assert (int(result.iterations[0]), int(result.iterations[2])) == (0, 0)
    assert torch.equal(result.x[0], x0[0])
    assert torch.equal(result.x[2], torch.zeros_like(x0[2]))
    assert result.residual_norm.isnan().tolist() == [True, False, True]


@pytest.mark.parametrize("step", [1, 2, 4, 7])
@pytest.mark.parametrize("persistent", [False, True])
def test_non_finite_operator_output_keeps_the_finite_columns(backend, device, step, persistent):
    A, b = matrices(2, 16, 31).to(device), vectors(2, 16, seed=32).to(device)
    calls = 0

    def operator(v):
        nonlocal calls
        calls += 1
        out = times(A)(v)
        if calls == step or (persistent and calls > step):
            out[1, 3] = math.inf
        return out

    result = gmres(operator, b, rtol=1e-12, restart=16, backend=backend)
    assert result.status.tolist() == [Status.CONVERGED, Status.NON_FINITE]
    assert int(result.iterations[1]) == step - 1
    truncated = gmres(times(A), b, rtol=1e-12, restart=16, max_iters=step - 1, backend=backend)
    torch.testing.assert_close(result.x[1], truncated.x[1])
    if not persistent:
        torch.testing.assert_close(result.residual_norm[1], truncated.residual_norm[1])


# --- determinism ---------------------------------------------------------------------------------------------------


def test_a_run_repeats_bitwise(backend, device, dtype):
    A, b = matrices(4, 33, 36, dtype=dtype).to(device), vectors(4, 33, seed=37, dtype=dtype).to(device)
    runs = [gmres(A, b, rtol=tight(dtype), restart=7, backend=backend) for _ in range(3)]
    assert all(torch.equal(run.x, runs[0].x) for run in runs)
