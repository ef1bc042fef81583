"""gmres against SciPy, on every backend: right answers, iteration counts, what is counted and what is kept."""

from __future__ import annotations

import pytest
import torch

from soae_ext.gmres import Status, gmres
from tests.problems import counting, matrices, residual, scipy_gmres, tight, times, vectors

ORTHOGONALIZATIONS = ["mgs", "cgs2"]


@pytest.mark.parametrize("orthogonalization", ORTHOGONALIZATIONS)
@pytest.mark.parametrize("restart", [1, 4, 30])
def test_agrees_with_scipy(backend, device, dtype, orthogonalization, restart):
    A, b = matrices(3, 23, 1, dtype=dtype), vectors(3, 23, seed=2, dtype=dtype)
    rtol = tight(dtype)

    result = gmres(
        A.to(device), b.to(device), rtol=rtol, restart=restart, max_iters=300,
        orthogonalization=orthogonalization, backend=backend,
    )  # fmt: skip

    assert result.status.tolist() == [Status.CONVERGED] * 3
    for i in range(3):
        x, count = scipy_gmres(A[i], b[i], rtol=rtol, restart=restart, maxiter=300)
        assert abs(int(result.iterations[i]) - count) <= 1
        torch.testing.assert_close(
            result.x[i].cpu().double(), torch.from_numpy(x), rtol=20 * rtol, atol=20 * rtol * float(b[i].norm())
        )


def test_residual_norm_is_the_true_one(backend, device, dtype):
    A, b = matrices(4, 40, 3, dtype=dtype), vectors(4, 40, seed=4, dtype=dtype)
    result = gmres(A.to(device), b.to(device), rtol=tight(dtype), restart=7, max_iters=5, backend=backend)
    assert result.status.tolist() == [Status.MAX_ITERS] * 4
    assert result.iterations.tolist() == [5] * 4
    torch.testing.assert_close(
        result.residual_norm.cpu().double(),
        residual(A, result.x, b),
        rtol=1e-4 if dtype == torch.float32 else 1e-9,
        atol=0,
    )
    assert result.residual_norm.dtype == dtype


def test_history_follows_scipy(backend, device):
    A, b = matrices(2, 30, 5), vectors(2, 30, seed=6)
    result = gmres(A.to(device), b.to(device), rtol=1e-9, restart=6, max_iters=100, history=True, backend=backend)
    history = result.residual_history.cpu()
    assert history.shape == (2, int(result.iterations.max()) + 1)
    torch.testing.assert_close(history[:, 0], b.norm(dim=1))
    for i, count in enumerate(result.iterations.tolist()):
        assert not history[i, : count + 1].isnan().any()
        assert history[i, count + 1 :].isnan().all()
        for k in (1, 3, 6):  # within the first cycle the estimate is the least residual over a Krylov space
            krylov = [b[i]]
            for _ in range(k - 1):
                krylov.append(A[i] @ krylov[-1])
            basis, _ = torch.linalg.qr(torch.stack(krylov, 1))
            y = torch.linalg.lstsq(A[i] @ basis, b[i, :, None]).solution
            least = (b[i, :, None] - A[i] @ basis @ y).norm()
            torch.testing.assert_close(history[i, k], least, rtol=1e-8, atol=0)


@pytest.mark.parametrize("flexible", [False, True])
def test_right_preconditioner_keeps_the_true_residual(backend, device, dtype, flexible):
    n = 16
    scale = torch.logspace(0, 2, n, dtype=torch.float64).to(dtype)
    A = torch.diag(scale) + 0.1 * matrices(1, n, 7, shift=0.0, dtype=dtype)[0]
    b = vectors(3, n, seed=8, dtype=dtype)
    plain = gmres(A.to(device), b.to(device), rtol=1e-5, restart=4, max_iters=40, backend=backend)

    M = torch.diag(1 / scale)
    result = gmres(
        A.to(device),
        b.to(device),
        M=M.to(device),
        rtol=1e-5,
        restart=4,
        max_iters=40,
        flexible=flexible,
        backend=backend,
    )

    assert bool(result.converged.all())
    assert (residual(A, result.x, b) <= 1.2e-5 * b.double().norm(dim=1)).all()
    assert int(result.iterations.max()) < int(plain.iterations.max())


def test_flexible_survives_restarts_with_a_changing_preconditioner(backend, device):
    """The combination that some libraries get wrong: the update must use the stored z_j, not M(V y)."""
    n = 20
    A, b = matrices(2, n, 9, shift=3.0), vectors(2, n, seed=10)
    scales = iter([0.3, 2.0, 0.7, 1.4, 0.5] * 100)

    def M(v):
        return v * next(scales)

    result = gmres(A.to(device), b.to(device), M=M, flexible=True, restart=3, max_iters=200, rtol=1e-8, backend=backend)
    assert bool(result.converged.all())
    assert (residual(A, result.x, b) <= 1.01e-8 * b.norm(dim=1)).all()


def test_operator_calls_follow_the_formula(backend, device):
    A, b = matrices(2, 16, 11), vectors(2, 16, seed=12)
    operator, calls = counting(times(A.to(device)))
    for x0 in (None, vectors(2, 16, seed=13).to(device)):
        calls.clear()
        result = gmres(operator, b.to(device), x0, rtol=1e-10, restart=4, max_iters=100, backend=backend, history=True)
        assert result.operator_calls == len(calls)
        if backend != "cuda":  # asynchronous polling may add up to 2 calls a cycle there
            longest = max(result.iterations.tolist())
            full, rest = divmod(longest, 4)
            assert len(calls) == longest + full + (rest > 0) + (x0 is not None)


def test_max_iters_zero_only_measures(backend, device):
    A, b, x0 = matrices(2, 8, 14), vectors(2, 8, seed=15), vectors(2, 8, seed=16)
    operator, calls = counting(times(A.to(device)))
    result = gmres(operator, b.to(device), max_iters=0, backend=backend)
    assert (len(calls), result.operator_calls) == (0, 0)
    assert result.status.tolist() == [Status.MAX_ITERS] * 2
    torch.testing.assert_close(result.residual_norm.cpu(), b.norm(dim=1))

    result = gmres(operator, b.to(device), x0.to(device), max_iters=0, backend=backend)
    assert (len(calls), result.operator_calls) == (1, 1)
    assert torch.equal(result.x.cpu(), x0)
    torch.testing.assert_close(result.residual_norm.cpu(), residual(A, x0, b))


@pytest.mark.parametrize("shape", [(3, 1), (2, 7), (2, 3, 5), (1, 1, 4, 4)])
def test_any_shape_and_strides(backend, device, shape):
    n = torch.Size(shape[1:]).numel()
    A, b = matrices(shape[0], n, 17), vectors(*shape, seed=18)
    expected = torch.linalg.solve(A, b.reshape(shape[0], n, 1)).view(shape)
    wide = torch.zeros(*shape[:-1], 2 * shape[-1], dtype=b.dtype)
    wide[..., ::2] = b
    for right_hand_side in (b, wide[..., ::2], b.mT.contiguous().mT if b.ndim > 2 else b):
        kept = right_hand_side.clone()
        result = gmres(A.to(device), right_hand_side.to(device), rtol=1e-12, restart=n, backend=backend)
        torch.testing.assert_close(result.x.cpu(), expected, rtol=1e-8, atol=1e-10)
        assert torch.equal(right_hand_side, kept)
        assert result.x.shape == b.shape


def test_matrices_in_every_layout_agree(backend, device):
    A, b = matrices(3, 12, 19), vectors(3, 12, seed=20)
    A = A.masked_fill(A.abs() < 0.15, 0)
    for one in (A[0], A):
        expected = torch.linalg.solve(one, b[..., None])[..., 0]
        forms = [one, one.to_sparse_coo()]
        if one.ndim == 2:
            forms.append(one.to_sparse_csr())
        else:
            mask = torch.ones(12, 12, dtype=torch.bool)  # batched CSR wants equally many entries per matrix
            index = mask.nonzero().T
            crow = torch.arange(0, 145, 12).expand(3, -1)
            forms.append(torch.sparse_csr_tensor(crow, index[1].expand(3, -1), one.reshape(3, -1), one.shape))
        for form in forms:
            result = gmres(form.to(device), b.to(device), rtol=1e-11, restart=12, backend=backend)
            torch.testing.assert_close(result.x.cpu(), expected, rtol=1e-8, atol=1e-9)


def test_tolerances_per_system(backend, device):
    A, b = matrices(3, 32, 21), vectors(3, 32, seed=22)
    rtol = torch.tensor([1e-2, 1e-6, 1e-10], dtype=torch.float64, device=device)
    result = gmres(A.to(device), b.to(device), rtol=rtol, backend=backend, restart=32)
    count = result.iterations.tolist()
    assert count[0] < count[1] < count[2]
    assert (residual(A, result.x, b) <= rtol.cpu() * b.norm(dim=1) * (1 + 1e-6)).all()
    absolute = gmres(A.to(device), b.to(device), rtol=0.0, atol=1e-3, backend=backend, restart=32)
    assert bool(absolute.converged.all())
    assert (residual(A, absolute.x, b) <= 1e-3).all()


def test_callback_sees_each_sweep_and_can_stop(backend, device):
    A, b = matrices(2, 20, 23), vectors(2, 20, seed=24)
    seen = []

    def by_name(iteration, residual_norm, active):
        seen.append((iteration, residual_norm.clone(), active.clone()))
        return iteration == 5

    result = gmres(A.to(device), b.to(device), rtol=1e-12, restart=3, callback=by_name, backend=backend, history=True)
    assert [s[0] for s in seen] == [1, 2, 3, 4, 5]
    assert result.status.tolist() == [Status.STOPPED] * 2
    assert result.iterations.tolist() == [5, 5]
    for iteration, norms, active in seen:
        torch.testing.assert_close(norms, result.residual_history[:, iteration])
        assert active.dtype == torch.bool
    capped = gmres(A.to(device), b.to(device), rtol=1e-12, restart=3, max_iters=5, backend=backend)
    torch.testing.assert_close(result.x, capped.x)

    order = []
    gmres(A.to(device), b.to(device), callback=lambda i, r, a: order.append((i, r.shape, a.shape)), backend=backend)
    assert order[0] == (1, (2,), (2,))


class Narrowing:
    """A matrix operator that can drop systems and remembers how many it was applied to."""

    def __init__(self, A, sizes):
        self.A, self.sizes = A, sizes

    def __call__(self, v):
        self.sizes.append(v.shape[0])
        return torch.bmm(self.A, v.reshape(v.shape[0], -1, 1)).view(v.shape)

    def restrict(self, index):
        return Narrowing(self.A[index], self.sizes)


def test_compact_drops_finished_systems(backend, device):
    A, b = matrices(6, 24, 25), vectors(6, 24, seed=26)
    A[:4] = torch.eye(24, dtype=A.dtype)  # four systems are done after one step
    sizes: list[int] = []
    arguments = {"rtol": 1e-9, "restart": 8, "max_iters": 100, "backend": backend}
    compact = gmres(Narrowing(A.to(device), sizes), b.to(device), compact=True, **arguments)
    plain = gmres(A.to(device), b.to(device), **arguments)
    assert sizes[0] == 6
    assert min(sizes) <= 2
    assert bool(compact.converged.all())
    torch.testing.assert_close(compact.x, plain.x, rtol=1e-7, atol=1e-9)
    assert (compact.iterations - plain.iterations).abs().max() <= 1


def test_auto_picks_the_compiled_backend(recwarn):
    A, b = matrices(2, 9, 27), vectors(2, 9, seed=28)
    assert bool(gmres(A, b).converged.all())
    from soae_ext import _native

    if _native.extension is not None:
        assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
        assert _native.choose("auto", b.device) == "cpu"
