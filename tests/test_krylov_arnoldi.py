"""arnoldi: A V_m = V_{m+1} H, orthonormal vectors, where systems end, and what one system may do to another."""

from __future__ import annotations

import pytest
import torch

from soae_ext.gmres import Workspace
from soae_ext.krylov import Arnoldi, arnoldi
from tests.krylov_problems import krylov_space, numpy64, symmetric, with_spectrum
from tests.problems import counting, matrices, times, vectors


def check(a: Arnoldi, A: torch.Tensor, tolerance: float = 30) -> None:
    """The decomposition of every system, and the zeros around it. A: (B, n, n)."""
    eps = torch.finfo(a.basis.dtype).eps
    for i, d in enumerate(a.dims.tolist()):
        V, H, matrix = a.basis[i].double().cpu(), a.hessenberg[i].cpu(), A[i].double().cpu()
        scale = float(H.abs().max()) if d else 0.0
        gap = matrix @ V[:d].mT - V.mT @ H[:, :d]
        assert float(gap.abs().max() if d else 0.0) <= tolerance * eps * scale
        rows = d + 1 if d and float(H[d, d - 1]) > 0 else d
        assert float((V[:rows] @ V[:rows].mT - torch.eye(rows)).abs().max() if rows else 0.0) <= tolerance * eps
        assert bool((V[rows:] == 0).all())
        assert bool((H[:, d:] == 0).all())
        assert bool((H.tril(-2) == 0).all())
        assert bool((H.diagonal(-1) >= 0).all())


@pytest.mark.parametrize(("batch", "n", "steps"), [(1, 1, 1), (3, 7, 3), (4, 60, 12), (2, 40, 40), (2, 9, 30)])
def test_decomposition(backend, device, dtype, batch, n, steps):
    A, v = matrices(batch, n, 1, dtype=dtype).to(device), vectors(batch, n, seed=2, dtype=dtype).to(device)
    a = arnoldi(A, v, steps=steps, backend=backend)
    assert a.basis.shape == (batch, steps + 1, n)
    assert a.basis.dtype == dtype
    assert a.hessenberg.shape == (batch, steps + 1, steps)
    assert a.hessenberg.dtype == torch.float64
    assert a.dims.dtype == torch.int64
    assert a.dims.tolist() == [min(steps, n)] * batch
    assert a.operator_calls == min(steps, n)
    check(a, A)
    torch.testing.assert_close(torch.ldexp(a.norm, a.norm_exponent), v.double().norm(dim=1), rtol=1e-6, atol=0)


def test_the_space_is_the_krylov_space(backend, device):
    A, v = symmetric(2, 30, 3), vectors(2, 30, seed=4)
    a = arnoldi(A.to(device), v.to(device), steps=9, backend=backend)
    for i in range(2):
        expected = torch.from_numpy(krylov_space(numpy64(A[i]), numpy64(v[i]), 10)).mT
        torch.testing.assert_close(a.basis[i].cpu(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("graded", [True, False], ids=["graded", "outliers"])
def test_orthonormal_whatever_the_spectrum(backend, device, dtype, graded):
    """One sweep of Gram–Schmidt loses every digit on both."""
    few = torch.cat([torch.tensor([1e3, -3e2, 50.0]), torch.linspace(1.0, 1.1, 197)])
    values = torch.logspace(0, -8, 200, dtype=torch.float64) if graded else few.double()
    A, v = with_spectrum(values, 5, dtype)[None].to(device), vectors(1, 200, seed=6, dtype=dtype).to(device)
    a = arnoldi(A, v, steps=40, backend=backend)
    check(a, A)
    assert int(a.dims[0]) >= 6


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3)])
def test_shapes_strides_and_operators(backend, device, dtype, shape):
    A = symmetric(3, 6, 7, dtype).to(device)
    flat = vectors(3, 6, seed=8, dtype=dtype).to(device)
    expected = arnoldi(times(A), flat, steps=4, backend=backend)
    v = flat.view(3, *shape).movedim(0, -1).contiguous().movedim(-1, 0)
    before = v.clone()
    for operator in (A, A.to_sparse(), times(A)):
        a = arnoldi(operator, v, steps=4, backend=backend)
        assert a.solve().shape == v.shape
        torch.testing.assert_close(a.basis, expected.basis, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-12)
    assert torch.equal(v, before)


def test_breakdown_at_the_rank(backend, device, dtype):
    """Rank r and v in the range: r columns. v outside: r + 1. A = 0 and A = I: one."""
    n = 25
    ranks = torch.zeros(6, n, dtype=torch.float64)
    ranks[0, :3] = torch.tensor([3.0, 2.0, -1.0])
    ranks[1, :3] = torch.tensor([3.0, -2.0, 1.0])
    ranks[3] = 1.0
    ranks[4, :2] = torch.tensor([1e-3, 1.0])
    A = torch.stack([with_spectrum(row, 9 + i, dtype) for i, row in enumerate(ranks)])
    A[3], A[5] = torch.eye(n), torch.diag(torch.arange(1, n + 1).double())
    v = vectors(6, n, seed=10, dtype=dtype)
    v[0] = (A[0].double() @ v[0].double()).to(dtype)
    v[5] = 0.0
    v[5, [2, 7]] = 1.0
    operator, calls = counting(times(A.to(device)))
    a = arnoldi(operator, v.to(device), steps=20, backend=backend)
    assert a.dims.tolist() == [3, 4, 1, 1, 3, 2]
    assert len(calls) == a.operator_calls
    assert a.operator_calls == 4 if device.type == "cpu" else 4 <= a.operator_calls <= 6  # CUDA notices late
    check(a, A, tolerance=60)
    last = a.hessenberg[torch.arange(6), a.dims, a.dims - 1]
    assert bool((last == 0).all())
    assert bool((a.hessenberg[2] == 0).all())


def test_zero_and_non_finite_start_vectors(backend, device, dtype):
    A, v = symmetric(5, 12, 11, dtype).to(device), vectors(5, 12, seed=12, dtype=dtype).to(device)
    clean = arnoldi(times(A), v, steps=5, backend=backend)
    bad = v.clone()
    bad[0], bad[2, 3], bad[4, 11] = 0.0, torch.nan, -torch.inf
    a = arnoldi(times(A), bad, steps=5, backend=backend)
    assert a.dims.tolist() == [0, 5, 0, 5, 0]
    assert bool((a.basis[[0, 2, 4]] == 0).all())
    assert bool((a.hessenberg[[0, 2, 4]] == 0).all())
    for result, expected in ((a.solve(0.3), clean.solve(0.3)), (a.trust_region(0.7), clean.trust_region(0.7))):
        assert bool((result[[0, 2, 4]] == 0).all())
        assert torch.equal(result[[1, 3]], expected[[1, 3]])
    assert torch.equal(a.basis[[1, 3]], clean.basis[[1, 3]])
    assert torch.equal(a.hessenberg[[1, 3]], clean.hessenberg[[1, 3]])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("bad_call", [0, 3])
def test_a_non_finite_product_ends_one_system_alone(backend, device, dtype, value, bad_call):
    A, v = symmetric(3, 14, 13, dtype).to(device), vectors(3, 14, seed=14, dtype=dtype).to(device)
    clean = arnoldi(times(A), v, steps=6, backend=backend)
    calls = iter(range(100))

    def faulty(u):
        w = times(A)(u)
        if next(calls) >= bad_call:
            w[1, 13] = value
        return w

    a = arnoldi(faulty, v, steps=6, backend=backend)
    assert a.dims.tolist() == [6, bad_call, 6]
    assert a.operator_calls == 6
    assert torch.equal(a.basis[1, : bad_call + 1], clean.basis[1, : bad_call + 1])
    assert torch.equal(a.hessenberg[1, :, :bad_call], clean.hessenberg[1, :, :bad_call])
    assert bool((a.basis[1, bad_call + 1 :] == 0).all())
    assert bool((a.hessenberg[1, :, bad_call:] == 0).all())
    others = [0, 2]
    for name in ("basis", "hessenberg", "dims", "norm"):
        assert torch.equal(getattr(a, name)[others], getattr(clean, name)[others])
    for result, expected in ((a.solve(0.3), clean.solve(0.3)), (a.trust_region(0.7), clean.trust_region(0.7))):
        assert torch.equal(result[others], expected[others])
        assert bool(result.isfinite().all())
    short = arnoldi(times(A), v, steps=max(bad_call, 1), backend=backend)
    if bad_call:
        tolerance = 100 * torch.finfo(dtype).eps
        torch.testing.assert_close(a.trust_region(0.7)[1], short.trust_region(0.7)[1], rtol=0, atol=tolerance)
        torch.testing.assert_close(a.solve(0.3)[1], short.solve(0.3)[1], rtol=0, atol=10 * tolerance)


def test_finished_systems_are_fed_zeros(backend, device, dtype):
    A = symmetric(3, 10, 15, dtype)
    A[1] = 2 * torch.eye(10)
    v = vectors(3, 10, seed=16, dtype=dtype)
    v[2] = 0.0
    seen = []

    def operator(u):
        assert u.is_contiguous()
        assert u.shape == v.shape
        seen.append(u.clone())
        w = times(A.to(device))(u)
        w[u.flatten(1).norm(dim=1) == 0] = torch.nan
        u.fill_(torch.nan)  # it is scratch memory
        return w

    a = arnoldi(operator, v.to(device), steps=4, backend=backend)
    assert a.dims.tolist() == [4, 1, 0]
    assert bool((torch.stack(seen)[:, 2] == 0).all())
    assert bool((torch.stack(seen)[1:, 1] == 0).all())
    check(a, A)


def test_the_operator_may_return_its_input(backend, device, dtype):
    scale = torch.linspace(1.0, 2.0, 40, dtype=dtype, device=device)
    v = vectors(2, 40, seed=17, dtype=dtype).to(device)
    expected = arnoldi(lambda u: scale * u, v, steps=6, backend=backend)
    in_place = arnoldi(lambda u: u.mul_(scale), v, steps=6, backend=backend)
    assert torch.equal(in_place.basis, expected.basis)
    assert torch.equal(in_place.hessenberg, expected.hessenberg)


@pytest.mark.parametrize(("of_a", "of_v"), [(0, 1), (0, -1), (1, 0), (-1, 0), (1, -1), (-1, 1), (1, 1), (-1, -1)])
def test_powers_of_two_change_exponents_only(backend, device, dtype, of_a, of_v):
    reach = 100 if dtype == torch.float32 else 830
    A, v = symmetric(2, 15, 18, dtype).to(device), vectors(2, 15, seed=19, dtype=dtype).to(device)
    shift, radius = torch.tensor([0.5, -0.25]), torch.tensor([3.0, 1e-3])
    s, t = 2.0 ** (reach * of_a), 2.0 ** (reach * of_v)
    plain = arnoldi(A, v, steps=6, backend=backend)
    scaled = arnoldi(A * s, v * t, steps=6, backend=backend)
    assert torch.equal(scaled.basis, plain.basis)
    assert torch.equal(scaled.hessenberg, plain.hessenberg * s)
    assert torch.equal(scaled.dims, plain.dims)
    if abs(of_v - of_a) < 2 or dtype == torch.float64:  # else x leaves the range of float32
        factor = torch.tensor(reach * (of_v - of_a))
        if abs(of_v - of_a) < 2:
            x = scaled.solve(shift.double() * s)
            assert torch.equal(x, torch.ldexp(plain.solve(shift), factor).to(dtype))
            delta = scaled.trust_region(radius.double() * 2.0 ** float(factor))
            assert torch.equal(delta, torch.ldexp(plain.trust_region(radius), factor).to(dtype))


def test_the_ends_of_the_range(backend, device, dtype):
    limits = torch.finfo(dtype)
    d = torch.linspace(1.0, 3.0, 40, dtype=dtype, device=device)
    v = torch.stack([torch.full((40,), size, dtype=dtype) for size in (limits.max / 4, limits.tiny * 4)])
    v[:, ::3] *= -0.75
    a = arnoldi(lambda u: u * d, v.to(device), steps=12, backend=backend)
    x = a.solve().double()
    expected = v.double().to(device) / d.double()
    assert float(((x - expected) / expected[:, :1].abs()).abs().max()) < 1e-2
    check(a, torch.diag(d).expand(2, 40, 40))


def test_a_product_whose_norm_leaves_float64_is_not_finite(backend, device):
    v = torch.ones(2, 40, dtype=torch.float64, device=device)
    big = torch.tensor([[1.7e308], [1.0]], dtype=torch.float64, device=device)
    a = arnoldi(lambda u: torch.ones_like(u) * big, v, steps=3, backend=backend)
    assert a.dims.tolist() == [0, 1]
    assert bool((a.solve()[0] == 0).all())
    assert bool((a.hessenberg[0] == 0).all())


def test_workspace(backend, device, dtype):
    A, v = symmetric(3, 20, 20, dtype).to(device), vectors(3, 20, seed=21, dtype=dtype).to(device)
    expected = arnoldi(A, v, steps=5, backend=backend)
    workspace = Workspace()
    first = arnoldi(A, v, steps=5, backend=backend, workspace=workspace)
    for buffer in workspace._buffers.values():
        buffer.fill_(0xFF)
    second = arnoldi(-A, 2 * v, steps=9, backend=backend, workspace=workspace)
    for name in ("basis", "hessenberg", "dims", "norm", "norm_exponent"):
        assert torch.equal(getattr(first, name), getattr(expected, name)), name
    assert torch.equal(first.solve(0.1), expected.solve(0.1))
    check(second, -A)
    if backend != "reference":
        held = workspace.nbytes
        assert held > 0
        arnoldi(A, v, steps=9, backend=backend, workspace=workspace)
        assert workspace.nbytes == held
        owners = {buffer.untyped_storage().data_ptr() for buffer in workspace._buffers.values()}
        assert not owners & {getattr(first, k).untyped_storage().data_ptr() for k in ("basis", "hessenberg", "dims")}


def test_nothing_to_do(backend, device, dtype):
    for shape in ((0, 4), (3, 0), (0, 0)):
        v = torch.zeros(shape, dtype=dtype, device=device)
        a = arnoldi(lambda u: u, v, steps=3, backend=backend)
        assert a.basis.shape == (shape[0], 4, shape[1])
        assert a.hessenberg.shape == (shape[0], 4, 3)
        assert a.dims.tolist() == [0] * shape[0]
        assert a.operator_calls == 0
        assert a.solve(1.0).shape == a.trust_region(1.0).shape == v.shape
        assert "Arnoldi" in repr(a)
