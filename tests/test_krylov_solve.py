"""Arnoldi.solve: the least residual in the space, against NumPy's lstsq and SciPy's gmres and minres."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from soae_ext.gmres import gmres
from soae_ext.krylov import arnoldi
from tests.krylov_problems import krylov_space, numpy64, symmetric, with_spectrum
from tests.problems import matrices, times, vectors


def best_residual(a: np.ndarray, v: np.ndarray, shift: float, dims: int) -> float:
    """min ‖v − (A − shift) x‖ over x in the Krylov space, by lstsq."""
    q = krylov_space(a, v, dims)
    images = a @ q - shift * q
    y = np.linalg.lstsq(images, v, rcond=None)[0]
    return float(np.linalg.norm(v - images @ y))


def residual(a: np.ndarray, v: np.ndarray, shift: float, x: np.ndarray) -> float:
    return float(np.linalg.norm(v - a @ x + shift * x))


@pytest.mark.parametrize("shift", [0.0, 0.7, -3.0, torch.tensor([0.0, 0.5, -40.0])])
@pytest.mark.parametrize("kind", ["symmetric", "general"])
def test_against_lstsq_on_the_krylov_space(backend, device, dtype, shift, kind):
    A = symmetric(3, 30, 1, dtype) if kind == "symmetric" else matrices(3, 30, 1, dtype=dtype)
    v = vectors(3, 30, seed=2, dtype=dtype)
    a = arnoldi(A.to(device), v.to(device), steps=9, backend=backend)
    x = a.solve(shift)
    assert x.dtype == dtype
    shifts = torch.as_tensor(shift, dtype=torch.float64).expand(3).tolist()
    for i in range(3):
        matrix, start = numpy64(A[i]), numpy64(v[i])
        best = best_residual(matrix, start, shifts[i], 9)
        assert residual(matrix, start, shifts[i], numpy64(x[i])) <= best + 200 * torch.finfo(dtype).eps * float(
            v[i].norm()
        )


def test_against_scipy_after_as_many_steps(backend, device):
    A, v = symmetric(2, 40, 3), vectors(2, 40, seed=4)
    a = arnoldi(A.to(device), v.to(device), steps=12, backend=backend)
    for shift in (0.0, 0.3):
        x = a.solve(shift).cpu()
        for i in range(2):
            matrix = numpy64(A[i]) - shift * np.eye(40)
            by_gmres, _ = scipy.sparse.linalg.gmres(matrix, numpy64(v[i]), rtol=0, restart=12, maxiter=1)
            by_minres, _ = scipy.sparse.linalg.minres(numpy64(A[i]), numpy64(v[i]), shift=shift, rtol=0, maxiter=12)
            np.testing.assert_allclose(numpy64(x[i]), by_gmres, atol=1e-10)
            np.testing.assert_allclose(numpy64(x[i]), by_minres, atol=1e-8)


def test_against_gmres_of_this_package(backend, device, dtype):
    A, v = matrices(3, 50, 5, dtype=dtype).to(device), vectors(3, 50, seed=6, dtype=dtype).to(device)
    expected = gmres(A, v, rtol=0.0, restart=10, max_iters=10, backend=backend, orthogonalization="cgs2").x
    x = arnoldi(A, v, steps=10, backend=backend).solve()
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-13)


def test_exact_in_an_invariant_space(backend, device, dtype):
    eps = torch.finfo(dtype).eps
    values = torch.zeros(40, dtype=torch.float64)
    values[:4] = torch.tensor([3.0, -2.0, 1.0, 0.5])
    A = with_spectrum(values, 7, dtype)[None]
    v = (A.double() @ vectors(1, 40, 1, seed=8))[..., 0].to(dtype)
    a = arnoldi(A.to(device), v.to(device), steps=20, backend=backend)
    x = a.solve().double().cpu()
    assert float((A[0].double() @ x[0] - v[0]).norm()) <= 200 * eps * float(v.norm())
    everything = arnoldi(symmetric(1, 12, 9, dtype).to(device), v[:, :12].to(device), steps=12, backend=backend)
    x = everything.solve(5.0).double().cpu()
    left = symmetric(1, 12, 9, dtype)[0].double() @ x[0] - 5 * x[0] - v[0, :12]
    assert float(left.norm()) <= 200 * eps * float(v.norm())


def test_singular_systems_stay_bounded(backend, device, dtype):
    """diag(2, 1, 0) with v = (1, 1, 1) has no solution: (½, 1, any) is best, and ‖x‖ is bounded by the rule."""
    eps = torch.finfo(dtype).eps
    A = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=dtype))
    v = torch.ones(4, 3, dtype=dtype)
    v[1] = torch.tensor([0.0, 0.0, 1.0])  # in the null space: nothing can be done
    v[2] = torch.tensor([1.0, 0.0, 0.0])
    a = arnoldi(A.to(device), v.to(device), steps=3, backend=backend)
    x = a.solve().double().cpu()
    torch.testing.assert_close(x[0, :2], torch.tensor([0.5, 1.0]).double(), rtol=0, atol=100 * eps)
    assert float(x[0].norm()) < 3
    assert bool((x[1] == 0).all())
    torch.testing.assert_close(x[2], torch.tensor([0.5, 0.0, 0.0]).double(), rtol=0, atol=10 * eps)

    shifts = torch.tensor([1.0, 0.0, 2.0, 2.0 + 4 * eps], dtype=torch.float64)  # at eigenvalues, and beside one
    x = a.solve(shifts).double().cpu()
    assert bool((x[:3].norm(dim=1) < 10).all())
    assert float(x[3].norm()) <= 3**0.5 / (16 * eps * 2)
    for i, s in enumerate(shifts.tolist()):
        d = torch.tensor([2.0, 1.0, 0.0]).double() - s
        reachable = d.abs() > 16 * eps * 2
        left = v[i].double() - d * x[i]
        assert float((left * reachable).norm()) <= 200 * eps * (1 + float(x[i].norm()))


def test_nearly_singular_values_are_cut_at_the_stated_rule(backend, device, dtype):
    eps = torch.finfo(dtype).eps
    for factor, cut in ((4.0, True), (64.0, False)):
        A = torch.diag(torch.tensor([1.0, factor * eps], dtype=dtype))[None]
        v = torch.tensor([[1.0, 1.0]], dtype=dtype)
        a = arnoldi(A.to(device), v.to(device), steps=2, backend=backend)
        x = a.solve().double().cpu()[0]
        assert (float(x.norm()) < 10) == cut, factor


def test_zero_operator_and_an_inconsistent_low_rank_one(backend, device, dtype):
    v = vectors(2, 30, seed=10, dtype=dtype).to(device)
    assert bool(
        (arnoldi(torch.zeros(30, 30, dtype=dtype, device=device), v, steps=4, backend=backend).solve() == 0).all()
    )
    a = arnoldi(torch.zeros(30, 30, dtype=dtype, device=device), v, steps=4, backend=backend)
    torch.testing.assert_close(a.solve(2.0), v / -2, rtol=1e-6, atol=0)
    values = torch.zeros(30, dtype=torch.float64)
    values[:5] = torch.linspace(1.0, 2.0, 5)
    A = with_spectrum(values, 11, dtype)[None].expand(2, 30, 30).to(device)
    x = arnoldi(A, v, steps=12, backend=backend).solve().double().cpu()
    for i in range(2):
        expected = np.linalg.pinv(numpy64(A[i]), rcond=1e-4) @ numpy64(v[i])
        best = np.linalg.norm(numpy64(v[i]) - numpy64(A[i]) @ expected)
        left = np.linalg.norm(numpy64(v[i]) - numpy64(A[i]) @ x[i].numpy())
        assert left <= best * (1 + 1e-3)
        assert float(x[i].norm()) <= 100 * float(v[i].norm())


def test_shifts_far_beyond_the_operator():
    v = vectors(3, 6, seed=15)
    A = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).double()) * 1e-200
    shifts = torch.tensor([1e200, -1e250, 0.0], dtype=torch.float64)
    x = arnoldi(A, v, steps=3, backend="reference").solve(shifts)
    torch.testing.assert_close(x[:2], v[:2] / -shifts[:2, None], rtol=1e-14, atol=0)
    assert bool(x[2].isfinite().all())
    assert float(x[2].norm()) > 1e199


def test_systems_of_a_batch_do_not_know_each_other(backend, device, dtype):
    """Different dims, shifts and scales side by side give what each gives alone."""
    A = symmetric(4, 12, 12, dtype)
    A[1] = 2 * torch.eye(12)
    A[2] *= 2.0**60
    A, v = A.to(device), vectors(4, 12, seed=13, dtype=dtype).to(device)
    v[3] *= 2.0**-60
    shifts = torch.tensor([0.5, 7.0, 1.0, -0.25], device=device)
    together = arnoldi(times(A), v, steps=7, backend=backend)
    x, delta = together.solve(shifts), together.trust_region(shifts.abs())
    for i in range(4):
        alone = arnoldi(times(A[i : i + 1]), v[i : i + 1], steps=7, backend=backend)
        tolerance = 500 * torch.finfo(dtype).eps
        for got, expected in ((x[i], alone.solve(shifts[i])[0]), (delta[i], alone.trust_region(shifts.abs()[i])[0])):
            assert float((got - expected).norm()) <= tolerance * float(expected.norm())


def test_nothing_calls_the_operator_again(backend, device):
    allowed = [5]

    def operator(u):
        allowed[0] -= 1
        assert allowed[0] >= 0
        return u * torch.linspace(1.0, 2.0, 20, dtype=u.dtype, device=u.device)

    a = arnoldi(operator, vectors(2, 20, seed=14).to(device), steps=5, backend=backend)
    assert a.operator_calls == 5
    x, delta = a.solve(0.1), a.trust_region(1.0)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(a.solve(0.1), x)
        assert torch.equal(a.trust_region(1.0), delta)
