"""The CPU's products with dense matrices, against float64 sums; and that the solvers use them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soae_ext import _native
from soae_ext.gmres import gmres
from soae_ext.krylov import arnoldi

pytestmark = pytest.mark.skipif(_native.extension is None, reason="needs the compiled module")
DTYPES = [torch.float32, torch.float64]


def product(matrix, v, threads=1):
    out = torch.full_like(v, torch.nan)
    batch, n = v.shape
    _native.extension.cpu.matvec(
        matrix.data_ptr(), v.data_ptr(), out.data_ptr(), batch, n,
        matrix.stride(1), matrix.stride(0), DTYPES.index(v.dtype), threads,
    )  # fmt: skip
    return out


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_products_are_those_of_a_sum_in_double_precision(data):
    batch, n = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 200, 1025]))
    dtype, extra = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(0, 3))
    torch.manual_seed(data.draw(st.integers(0, 5)))
    whole = torch.randn(batch, n, n + extra, dtype=dtype)
    matrix = whole[:, :, :n]  # rows may lie apart
    if data.draw(st.booleans()):
        matrix = matrix[:1].expand(batch, n, n)
    v = torch.randn(batch, n, dtype=dtype)
    exact = torch.bmm(matrix.double(), v.double()[:, :, None])[:, :, 0]
    bound = torch.bmm(matrix.double().abs(), v.double().abs()[:, :, None])[:, :, 0]
    one, two = product(matrix, v), product(matrix, v, threads=2)
    # A block of 1,024 is summed in at least 4 lanes: at most 256 roundings.
    assert ((one.double() - exact).abs() <= 260 * torch.finfo(dtype).eps * bound).all()
    assert torch.equal(one, two)


def test_a_nan_stays_in_its_system_and_memory_behind_the_rows_is_not_read():
    whole = torch.full((3, 70, 80), torch.nan)
    whole[:, :, :70] = torch.randn(3, 70, 70)
    whole[1, 4, 5] = torch.nan
    out = product(whole[:, :, :70], torch.randn(3, 70))
    assert out[[0, 2]].isfinite().all()
    assert out[1].isnan().nonzero().flatten().tolist() == [4]


@pytest.fixture
def calls(monkeypatch):
    """How often the kernel is called."""
    seen = []
    real = _native._DenseProduct.__call__
    monkeypatch.setattr(_native._DenseProduct, "__call__", lambda self, v: seen.append(len(v)) or real(self, v))
    return seen


def problem(batch=5, n=40, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.eye(n, dtype=dtype) * 3 + torch.randn(batch, n, n, dtype=dtype) / n**0.5, torch.randn(
        batch, n, dtype=dtype
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_solvers_with_a_matrix_per_system_use_the_kernel(calls, dtype):
    A, b = problem(dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    result = gmres(
        A, b, rtol=tolerance, restart=40, M=torch.linalg.inv(A + 0.1 * torch.eye(40, dtype=dtype)).contiguous()
    )
    assert result.converged.all()
    residual = b.double() - torch.bmm(A.double(), result.x.double()[:, :, None])[:, :, 0]
    assert (residual.norm(dim=1) <= 1.01 * tolerance * b.double().norm(dim=1)).all()
    assert len(calls) > result.operator_calls  # A and M
    calls.clear()
    space = arnoldi(A, b, steps=4)
    assert len(calls) == space.operator_calls == 4


@pytest.mark.parametrize(
    ("change", "used"),
    [
        (lambda A: A, True),
        (lambda A: torch.cat([A, A], 2)[:, :, :40], True),  # rows lie apart
        (lambda A: A.mT.contiguous().mT, False),  # columns are contiguous
        (lambda A: A[0], False),  # shared by the batch
        (lambda A: A.conj().imag if A.is_complex() else torch._neg_view(A), False),
    ],
)
def test_layouts_that_the_kernel_cannot_read_go_to_torch(calls, change, used):
    A, b = problem()
    A = change(A)
    ours = gmres(A, b, rtol=1e-8, restart=40)
    assert bool(calls) == used
    callable_form = gmres(lambda v: (A @ v[:, :, None])[:, :, 0], b, rtol=1e-8, restart=40)
    torch.testing.assert_close(ours.x, callable_form.x, rtol=1e-6, atol=1e-8)


def test_one_system_with_a_shared_matrix_uses_it_and_the_reference_does_not(calls):
    A, b = problem(1)
    assert gmres(A[0], b, restart=40).converged.all()
    assert calls
    calls.clear()
    assert gmres(A, b, restart=40, backend="reference").converged.all()
    assert not calls


@pytest.mark.parametrize("options", [{}, {"restart": 7}, {"max_iters": 3}, {"orthogonalization": "cgs2"}, {"x0": True}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cycle_in_one_call_is_bitwise_the_same_steps_one_by_one(dtype, options):
    A, b = problem(batch=6, dtype=dtype)
    A[2] = torch.eye(40, dtype=dtype)  # ends after one step
    A[4, 3, 3] = torch.nan
    options = {"restart": 20, "rtol": 1e-5, "history": True} | options
    if options.pop("x0", None):
        options["x0"] = torch.ones_like(b)
    together = gmres(A, b, **options)
    apart = gmres(lambda v: product(A, v.contiguous()), b, **options)
    for field in ("x", "status", "iterations", "residual_norm", "residual_history"):
        torch.testing.assert_close(getattr(together, field), getattr(apart, field), rtol=0, atol=0, equal_nan=True)
    assert together.operator_calls == apart.operator_calls


def test_a_cycle_in_one_call_asks_for_products_only_at_the_ends_of_cycles(calls):
    A, b = problem()
    result = gmres(A, b, rtol=1e-12, restart=8)
    assert result.converged.all()
    assert len(calls) < result.operator_calls / 4
    calls.clear()
    watched = gmres(A, b, rtol=1e-12, restart=8, callback=lambda **state: False)
    assert len(calls) == watched.operator_calls == result.operator_calls
