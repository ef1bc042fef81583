"""The CPU launchers of csrc/gmres.h, called directly: every array starts as NaN, and float64 NumPy is the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from soae_ext import _native
from tests.cpu_harness import CpuSolve, diagonal, matvec
from tests.kernel_harness import (
    ACTIVE,
    BAD_COLUMN,
    CONVERGED,
    FROZEN,
    MAX_ITERS,
    NON_FINITE,
    RUNNING,
)
from tests.problems import matrices, vectors

if _native.extension is None:
    pytest.skip(f"the compiled extension is missing: {_native.missing}", allow_module_level=True)

FLOATS = [torch.float32, torch.float64]
dtypes = st.sampled_from(FLOATS)
orthogonalizations = st.sampled_from(["mgs", "cgs2"])
CHUNK = 16384  # bytes, csrc/cpu/parallel.h


def krylov_iterates(
    A: np.ndarray, b: np.ndarray, x0: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Basis rows, least residual norms after 1..steps columns, and the last iterate, by Gram-Schmidt done twice."""
    r = b - A @ x0
    basis, hessenberg, norms = [r / np.linalg.norm(r)], np.zeros((steps + 1, steps)), []
    y = np.zeros(0)
    for j in range(steps):
        w = A @ basis[j]
        for _ in range(2):
            h = np.array(basis) @ w
            w = w - np.array(basis).T @ h
            hessenberg[: j + 1, j] += h
        hessenberg[j + 1, j] = np.linalg.norm(w)
        basis.append(w / hessenberg[j + 1, j])
        target = np.zeros(j + 2)
        target[0] = np.linalg.norm(r)
        y = np.linalg.lstsq(hessenberg[: j + 2, : j + 1], target, rcond=None)[0]
        norms.append(np.linalg.norm(target - hessenberg[: j + 2, : j + 1] @ y))
    return np.array(basis), np.array(norms), x0 + np.array(basis[:-1]).T @ y


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 5),
    n=st.integers(2, 90),
    restart=st.integers(1, 11),
    dtype=dtypes,
    orthogonalization=orthogonalizations,
    start=st.booleans(),
    offset=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
@example(batch=1, n=2, restart=1, dtype=torch.float32, orthogonalization="mgs", start=True, offset=1, seed=0)
@example(batch=3, n=65, restart=9, dtype=torch.float64, orthogonalization="cgs2", start=True, offset=3, seed=1)
def test_a_cycle_equals_the_oracle(
    batch: int, n: int, restart: int, dtype: torch.dtype, orthogonalization: str, start: bool, offset: int, seed: int
) -> None:
    restart = min(restart, n - 1)  # before the space is exhausted
    A, b = matrices(batch, n, seed, dtype=dtype), vectors(batch, n, seed=seed + 1, dtype=dtype)
    x0 = vectors(batch, n, seed=seed + 2, dtype=dtype) if start else None
    solve = CpuSolve(b, x0=x0, restart=restart, rtol=0.0, orthogonalization=orthogonalization, offset=offset, threads=2)

    solve.begin(matvec(A))
    for j in range(restart):
        solve.step(j, matvec(A)(solve.direction))
    lengths = solve.length.tolist()
    solve.finish()
    solve.close(matvec(A)(solve.direction))

    eps = torch.finfo(dtype).eps
    solve.check_guard()
    for i in range(batch):
        start_x = np.zeros(n) if x0 is None else x0[i].double().numpy()
        basis, norms, x = krylov_iterates(A[i].double().numpy(), b[i].double().numpy(), start_x, restart)
        first = np.linalg.norm(b[i].double().numpy() - A[i].double().numpy() @ start_x)
        # Once the residual is down at rounding level, what follows is noise in either computation.
        kept = int(np.count_nonzero(norms > 1e-3 * first))
        assert lengths[i] >= kept
        assert (solve.basis[i, : kept + 1, n:] == 0).all()
        np.testing.assert_allclose(
            solve.basis[i, 1 : kept + 1, :n].numpy(), basis[1 : kept + 1], atol=3e3 * eps, rtol=0
        )
        np.testing.assert_allclose(solve.estimates[i, :kept].numpy(), norms[:kept], atol=200 * eps * first, rtol=0)
        scale = np.abs(x).max() + first
        np.testing.assert_allclose(solve.x[i].double().numpy(), x, atol=200 * eps * scale, rtol=0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("orthogonalization", ["mgs", "cgs2"])
@pytest.mark.parametrize(("batch", "n"), [(1, 1), (1, 4096), (2, 4097), (3, 12289), (1, 20011)])
def test_long_vectors_and_single_unknowns(batch: int, n: int, orthogonalization: str, dtype: torch.dtype) -> None:
    b = vectors(batch, n, seed=n, dtype=dtype)
    operator = diagonal(n, dtype)

    solve = CpuSolve(b, restart=min(n, 9), rtol=1e-5, orthogonalization=orthogonalization, threads=3)
    result = solve.run(operator)

    assert result.status == [CONVERGED] * batch
    exact = b.double() / torch.linspace(1.0, 3.0, n, dtype=dtype).double()
    assert float((result.x.double() - exact).norm() / exact.norm()) < 1e-5
    truth = (b.double() - operator(result.x).double()).norm(dim=1)
    torch.testing.assert_close(result.residual, truth, rtol=1e-2, atol=1e-6 * float(b.norm()))
    solve.check_guard()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("orthogonalization", ["mgs", "cgs2"])
@pytest.mark.parametrize(("batch", "n"), [(5, 3001), (7, 9001), (1, 20011), (2, 20011)])
def test_threads_do_not_change_a_bit(batch: int, n: int, orthogonalization: str, dtype: torch.dtype) -> None:
    b, x0 = vectors(batch, n, seed=1, dtype=dtype), vectors(batch, n, seed=2, dtype=dtype)

    def solve(threads: int) -> Any:
        options = {"restart": 7, "rtol": 1e-6, "orthogonalization": orthogonalization}
        return CpuSolve(b, x0=x0, threads=threads, **options).run(diagonal(n, dtype))

    alone = solve(1)
    for threads in (2, 3, 8):
        together = solve(threads)
        assert together.status == alone.status
        assert together.iterations == alone.iterations
        assert torch.equal(together.x, alone.x)
        assert torch.equal(together.residual, alone.residual)


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 4), n=st.integers(1, 60), dtype=dtypes, orthogonalization=orthogonalizations)
def test_the_operator_may_return_its_input(batch: int, n: int, dtype: torch.dtype, orthogonalization: str) -> None:
    A, b = matrices(batch, n, 3, dtype=dtype), vectors(batch, n, seed=4, dtype=dtype)
    options: dict[str, Any] = {"restart": min(n, 5), "rtol": 1e-5, "orthogonalization": orthogonalization}

    separate = CpuSolve(b, **options).run(matvec(A))
    in_place = CpuSolve(b, **options).run(matvec(A), in_place=True)

    assert in_place.status == separate.status
    assert torch.equal(in_place.x, separate.x)


def test_in_place_on_a_vector_that_threads_share() -> None:
    b = vectors(1, 30011, seed=5)

    separate = CpuSolve(b, restart=6, threads=2).run(diagonal(30011, torch.float64))
    in_place = CpuSolve(b, restart=6, threads=2).run(diagonal(30011, torch.float64), in_place=True)

    assert torch.equal(in_place.x, separate.x)


def test_what_the_operator_returns_is_not_written_to() -> None:
    A, b = matrices(3, 33, 6), vectors(3, 33, seed=7)
    images: list[tuple[torch.Tensor, torch.Tensor]] = []

    def operator(v: torch.Tensor) -> torch.Tensor:
        w = matvec(A)(v)
        images.append((w, w.clone()))
        return w

    CpuSolve(b, restart=5).run(operator)

    assert images
    assert all(torch.equal(w, copy) for w, copy in images)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("batch", "n", "threads"), [(3, 50, 1), (2, 20011, 3), (40, 1001, 2)])
def test_a_bad_column_keeps_what_came_before_and_harms_nobody(bad: float, batch: int, n: int, threads: int) -> None:
    b, good = vectors(batch, n, seed=8), diagonal(n, torch.float64)

    def run(broken_step: int | None) -> CpuSolve:
        solve = CpuSolve(b, restart=6, rtol=0.0, threads=threads)
        solve.begin(good)
        for j in range(6):
            w = good(solve.direction)
            if j == broken_step:
                w[1, n - 1] = bad
            solve.step(j, w)
            if broken_step is not None and j >= broken_step:
                assert solve.outcome[1] == BAD_COLUMN
                assert (solve.direction[1] == 0).all()
        solve.finish()
        solve.close(good(solve.direction))
        return solve

    spoiled, clean = run(3), run(None)
    short = CpuSolve(b[1:2].clone(), restart=3, rtol=0.0, threads=threads)
    short.begin(good)
    short.cycle(good)

    others = [i for i in range(batch) if i != 1]
    assert torch.equal(spoiled.x[others], clean.x[others])
    assert torch.equal(spoiled.residual[others], clean.residual[others])
    assert spoiled.status[1] == NON_FINITE
    assert torch.equal(spoiled.x[1], short.x[0])
    assert int(spoiled.active[0]) == batch - 1


@settings(max_examples=30, deadline=None)
@given(
    dtype=dtypes,
    orthogonalization=orthogonalizations,
    b_power=st.floats(-1, 1),
    x_power=st.floats(-1, 1),
    seed=st.integers(0, 1000),
)
@example(dtype=torch.float32, orthogonalization="mgs", b_power=1.0, x_power=0.0, seed=0)
@example(dtype=torch.float32, orthogonalization="mgs", b_power=-1.0, x_power=0.0, seed=0)
@example(dtype=torch.float64, orthogonalization="cgs2", b_power=0.0, x_power=1.0, seed=0)
def test_powers_of_two_change_exponents_only(
    dtype: torch.dtype, orthogonalization: str, b_power: float, x_power: float, seed: int
) -> None:
    reach = 90 if dtype == torch.float32 else 900
    t = round(b_power * reach)
    s = min(max(t - round(x_power * reach), -reach), reach)
    A, b = matrices(2, 21, seed, dtype=dtype), vectors(2, 21, seed=seed + 1, dtype=dtype)
    options: dict[str, Any] = {"restart": 4, "rtol": 1e-5, "orthogonalization": orthogonalization}

    plain = CpuSolve(b, **options).run(matvec(A))
    scaled = CpuSolve(torch.ldexp(b, torch.tensor(t)), **options).run(matvec(torch.ldexp(A, torch.tensor(s))))

    assert scaled.iterations == plain.iterations
    assert scaled.status == plain.status == [CONVERGED] * 2
    assert torch.equal(torch.ldexp(scaled.x, torch.tensor(s - t)), plain.x)
    assert torch.equal(torch.ldexp(scaled.residual, torch.tensor(-t)), plain.residual)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_ends_of_the_range(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    b = torch.stack([torch.full((40,), limits.max / 4, dtype=dtype), torch.full((40,), limits.tiny * 4, dtype=dtype)])
    b[:, ::3] *= -0.75

    result = CpuSolve(b, restart=8, rtol=1e-4).run(diagonal(40, dtype))

    assert result.status == [CONVERGED] * 2
    exact = b.double() / torch.linspace(1.0, 3.0, 40, dtype=dtype).double()
    error = ((result.x.double() - exact) / exact[:, :1].abs()).abs().max()
    assert float(error) < 1e-3


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [30, 20011])
def test_only_running_systems_are_touched(n: int, threads: int) -> None:
    b, x0 = vectors(4, n, seed=9), vectors(4, n, seed=10)
    good = diagonal(n, torch.float64)
    b[0] = 0.0  # solved by zero
    x0[1] = b[1] / torch.linspace(1.0, 3.0, n, dtype=torch.float64)  # solved already
    b[2, 5] = float("nan")
    solve = CpuSolve(b, x0=x0, restart=3, rtol=1e-12, threads=threads)

    solve.begin(good)

    assert solve.status.tolist() == [CONVERGED, CONVERGED, NON_FINITE, RUNNING]
    assert solve.outcome.tolist() == [FROZEN, FROZEN, FROZEN, ACTIVE]
    assert int(solve.active[0]) == 1
    assert (solve.x[0] == 0).all()
    assert torch.equal(solve.x[1:], x0[1:])
    assert (solve.direction[:3] == 0).all()

    def junk(v: torch.Tensor) -> torch.Tensor:
        w = good(v)
        w[:3] = float("nan")
        v[:3] = float("nan")  # an operator may do to its input what it likes
        return w

    solve.cycle(junk)

    assert torch.equal(solve.x[1:3], x0[1:3])
    assert (solve.x[0] == 0).all()
    assert (solve.direction[:3] == 0).all()
    assert solve.iterations.tolist() == [0, 0, 0, 3]
    assert solve.estimates[:3].isnan().all()


def test_a_start_that_is_not_finite_becomes_zero() -> None:
    b, x0 = vectors(2, 12, seed=11), vectors(2, 12, seed=12)
    x0[0, 3] = float("inf")
    solve = CpuSolve(b, x0=x0, restart=3)

    solve.begin(diagonal(12, torch.float64))

    assert solve.status.tolist() == [NON_FINITE, RUNNING]
    assert (solve.x[0] == 0).all()
    assert solve.residual[0].isnan()


def test_without_iterations_nothing_runs() -> None:
    solve = CpuSolve(vectors(2, 12, seed=13), restart=3, max_iters=0)

    solve.begin(diagonal(12, torch.float64))

    assert solve.status.tolist() == [MAX_ITERS] * 2
    assert int(solve.active[0]) == 0
    torch.testing.assert_close(solve.residual, solve.b.norm(dim=1))


@pytest.mark.parametrize(("n", "threads"), [(30, 1), (20011, 3)])
def test_a_candidate_that_is_worse_restarts_from_the_old_residual(n: int, threads: int) -> None:
    b, good = vectors(2, n, seed=14), diagonal(n, torch.float64)
    solve = CpuSolve(b, restart=3, rtol=1e-12, threads=threads)
    solve.begin(good)
    first, before, g0 = solve.direction.clone(), solve.residual.clone(), solve.g[:, 0].clone()
    for j in range(3):
        solve.step(j, good(solve.direction))
    solve.finish()

    ax = good(solve.direction)
    ax[0] = -100.0 * b[0]
    solve.close(ax)

    assert (solve.x[0] == 0).all()
    assert torch.equal(solve.direction[0], first[0])
    assert solve.residual[0] == before[0]
    assert solve.g[0, 0] == g0[0]
    assert torch.equal(solve.x[1], solve.candidate[1])
    assert solve.residual[1] < before[1]
    assert not torch.equal(solve.direction[1], first[1])
    assert torch.equal(solve.direction, solve.basis[:, 0, :n])


@pytest.mark.parametrize(("n", "threads"), [(30, 1), (20011, 3)])
def test_a_preconditioned_update_goes_through_correct(n: int, threads: int) -> None:
    b, x0, good = vectors(3, n, seed=15), vectors(3, n, seed=16), diagonal(n, torch.float64)
    b[1] = 0.0
    plain, corrected = (CpuSolve(b, x0=x0, restart=3, rtol=1e-12, threads=threads) for _ in range(2))
    for solve in (plain, corrected):
        solve.begin(good)
        for j in range(3):
            solve.step(j, good(solve.direction))
    corrected.candidate.fill_(float("nan"))

    plain.finish()
    corrected.finish(preconditioned=True)

    assert corrected.candidate.isnan().all()
    assert (corrected.direction[1] == 0).all()
    running = [0, 2]
    torch.testing.assert_close(corrected.direction[running], (plain.candidate - x0)[running], rtol=1e-9, atol=1e-12)
    z = corrected.direction.clone()
    corrected.correct(corrected.direction)
    assert torch.equal(corrected.candidate[running], (x0 + z)[running])
    assert torch.equal(corrected.direction[running], corrected.candidate[running])
    assert (corrected.direction[1] == 0).all()


def test_orthogonal_to_working_precision_when_asked() -> None:
    # Two far eigenvalues and a flat rest: one sweep loses every digit here.
    d = torch.cat([torch.tensor([1e3, -3e2]), torch.linspace(1.0, 1.1, 498)])
    b = vectors(2, 500, seed=17, dtype=torch.float32)

    def loss(orthogonalization: str) -> float:
        solve = CpuSolve(b, restart=20, rtol=0.0, orthogonalization=orthogonalization)
        solve.begin(lambda v: d * v)
        steps = 0
        while steps < 20:
            solve.step(steps, d * solve.direction)
            steps += 1
            if int(solve.active[steps]) < 2:
                break
        basis = solve.basis[:, :steps, :500].double()
        return float((basis @ basis.transpose(1, 2) - torch.eye(steps)).abs().max())

    assert loss("cgs2") < 2e-6
    assert loss("mgs") > 1e-4


def test_counters_follow_the_systems() -> None:
    # Eigenvalues 1..k of multiplicity 40/k: system i is solved after exactly k steps.
    spectra = torch.stack([torch.arange(40, dtype=torch.float64) % k + 1.0 for k in (1, 2, 4)])
    solve = CpuSolve(torch.ones(3, 40, dtype=torch.float64), restart=6, rtol=1e-9)

    solve.begin(lambda v: spectra * v)
    counts = []
    for j in range(4):
        solve.step(j, spectra * solve.direction)
        counts.append(int(solve.active[j + 1]))

    assert int(solve.active[0]) == 3
    assert counts == [2, 1, 1, 0]
    assert solve.length.tolist() == [1, 2, 4]
    assert (solve.direction == 0).all()
