"""gmres with the basis in reduced precision, on every backend: right answers, memory, and the rules that stay."""

from __future__ import annotations

import math

import pytest
import torch

from soae_ext.gmres import Status, Workspace, gmres
from soae_ext.hvp import hessian_operator
from tests.problems import counting, matrices, residual, times, vectors

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
PAIRS = [(F32, F16), (F32, BF16), (F64, F16), (F64, BF16), (F64, F32)]
ORTHOGONALIZATIONS = ["mgs", "cgs2"]


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(str(t).removeprefix("torch.") for t in pair))
def pair(request):
    return request.param


def unit(storage: torch.dtype, n: int) -> float:
    """What a stored 1 stands for."""
    return 2.0 ** -(math.floor(math.log2(math.sqrt(n)))) if storage == F16 else 1.0


def poisson(k: int) -> torch.Tensor:
    line = (
        2 * torch.eye(k, dtype=F64)
        - torch.eye(k, dtype=F64).roll(1, 0).tril()
        - torch.eye(k, dtype=F64).roll(-1, 0).triu()
    )
    eye = torch.eye(k, dtype=F64)
    return torch.kron(line, eye) + torch.kron(eye, line)


def systems(kind: str, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Three float64 systems that are conditioned well enough for every storage."""
    if kind == "nonsymmetric":
        return matrices(3, 40, seed, shift=2.0), vectors(3, 40, seed=seed + 1)
    if kind == "low rank plus diagonal":
        factor = vectors(3, 40, 5, seed=seed) / 40**0.5
        return 8 * factor @ factor.mT + torch.eye(40, dtype=F64), vectors(3, 40, seed=seed + 1)
    return poisson(7).repeat(3, 1, 1), vectors(3, 49, seed=seed + 1)


# --- right answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orthogonalization", ORTHOGONALIZATIONS)
@pytest.mark.parametrize("kind", ["nonsymmetric", "low rank plus diagonal", "Poisson"])
def test_tolerances_far_below_the_storage_are_met(backend, device, pair, orthogonalization, kind):
    dtype, storage = pair
    A, b = (t.to(dtype) for t in systems(kind))
    rtol = 1e-6 if dtype == F32 else 1e-12
    result = gmres(
        A.to(device), b.to(device), rtol=rtol, restart=30, max_iters=600, basis_dtype=storage,
        orthogonalization=orthogonalization, backend=backend,
    )  # fmt: skip
    assert result.status.tolist() == [Status.CONVERGED] * 3
    assert (residual(A, result.x, b) <= 1.05 * rtol * b.double().norm(dim=1)).all()
    exact = torch.linalg.solve(A.double(), b.double()[..., None])[..., 0]
    assert ((result.x.cpu().double() - exact).norm(dim=1) <= 100 * rtol * exact.norm(dim=1)).all()


@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_dtype_of_b_is_no_reduction(backend, device, dtype):
    A, b = matrices(2, 17, 3, dtype=dtype).to(device), vectors(2, 17, seed=4, dtype=dtype).to(device)
    plain, named = (gmres(A, b, restart=5, basis_dtype=t, backend=backend) for t in (None, dtype))
    assert torch.equal(plain.x, named.x)
    assert torch.equal(plain.residual_norm, named.residual_norm)


def test_the_operator_receives_what_is_stored(backend, device, pair):
    """Entries near 2^-20 of the norm, which float16 without its power of two would keep four bits of."""
    dtype, storage = pair
    n = 20_000 if backend == "simt" else 2**16
    generator = torch.Generator().manual_seed(5)
    b = (torch.rand(1, n, generator=generator, dtype=F64) + 0.5) * 2.0**-20
    b[0, 0] = 1.0
    fed = []

    def operator(v):
        fed.append(v.clone().cpu().double())
        return 2 * v + v.roll(1, 1)

    gmres(operator, b.to(dtype).to(device), restart=4, max_iters=4, rtol=0.0, basis_dtype=storage, backend=backend)
    scale = unit(storage, n)
    for v in fed[:2]:
        assert torch.equal((v / scale).to(storage).double() * scale, v)
        assert float(v.norm()) == pytest.approx(1.0, abs=torch.finfo(storage).eps)
    first = b / b.norm()
    assert ((fed[0] - first).abs() <= 0.51 * torch.finfo(storage).eps * first).all()


def test_a_cycle_ends_where_its_estimate_means_nothing(backend, device, pair):
    """At twice the storage's unit roundoff. Krylov vectors are unit vectors, the candidate that follows is none."""
    dtype, storage = pair
    A, b = matrices(1, 60, 6, dtype=dtype).to(device), 1000 * vectors(1, 60, seed=7, dtype=dtype).to(device)
    lengths = []

    def operator(v):
        lengths.append(float(v.norm()))
        return times(A)(v)

    rtol = 1e-6 if dtype == F32 else 1e-12
    result = gmres(operator, b, rtol=rtol, restart=60, basis_dtype=storage, backend=backend, history=True)
    assert bool(result.converged)
    steps = next(k for k, length in enumerate(lengths) if abs(length - 1) > 0.1)
    fallen = (result.residual_history[0] / result.residual_history[0, 0]).cpu()
    assert float(fallen[steps]) <= torch.finfo(storage).eps < float(fallen[steps - 1])


def test_flexible_keeps_its_own_vectors_in_the_working_precision(backend, device, pair):
    dtype, storage = pair
    A, b = matrices(2, 20, 8, dtype=dtype), vectors(2, 20, seed=9, dtype=dtype)
    scales = iter([0.3, 2.0, 0.7, 1.4, 0.5] * 200)
    workspace = Workspace()
    rtol = 1e-5 if dtype == F32 else 1e-11
    result = gmres(
        A.to(device), b.to(device), M=lambda v: v * next(scales), flexible=True, restart=6, max_iters=300, rtol=rtol,
        basis_dtype=storage, backend=backend, workspace=workspace,
    )  # fmt: skip
    assert bool(result.converged.all())
    assert (residual(A, result.x, b) <= 1.05 * rtol * b.double().norm(dim=1)).all()
    if backend != "reference":
        assert workspace._buffers["images", device].numel() >= 2 * 6 * 20 * dtype.itemsize


def test_right_preconditioning(backend, device, pair):
    dtype, storage = pair
    scale = torch.logspace(0, 2, 24, dtype=F64).to(dtype)
    A = torch.diag(scale) + 0.1 * matrices(1, 24, 10, shift=0.0, dtype=dtype)[0]
    b = vectors(3, 24, seed=11, dtype=dtype)
    rtol = 1e-5 if dtype == F32 else 1e-11
    result = gmres(
        A.to(device), b.to(device), M=torch.diag(1 / scale).to(device), rtol=rtol, restart=8, max_iters=200,
        basis_dtype=storage, backend=backend,
    )  # fmt: skip
    assert bool(result.converged.all())
    assert (residual(A, result.x, b) <= 1.2 * rtol * b.double().norm(dim=1)).all()


@pytest.mark.parametrize("activation", [torch.nn.ReLU(), torch.nn.Tanh()], ids=["relu", "tanh"])
def test_hessians_of_networks(backend, device, pair, activation):
    """Rank at most 9 under ReLU without damping, and indefinite under tanh with it."""
    dtype, storage = pair
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(40, 32), activation, torch.nn.Linear(32, 32), activation, torch.nn.Linear(32, 10)
    ).to(device, dtype).requires_grad_(False)  # fmt: skip
    x = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    labels = torch.arange(3, device=device)

    def loss(x, labels):
        return torch.nn.functional.cross_entropy(5 * model(x), labels, reduction="none")

    hessian = hessian_operator(loss, x, labels)
    damping = 0.0 if isinstance(activation, torch.nn.ReLU) else 0.05
    b = hessian.gradient.detach()
    rtol = 1e-4 if dtype == F32 else 1e-10
    result = gmres(
        lambda v: hessian(v) + damping * v,
        b,
        rtol=rtol,
        restart=30,
        max_iters=600,
        basis_dtype=storage,
        backend=backend,
    )
    dense = torch.stack(
        [torch.func.hessian(lambda v, i=i: loss(v[None], labels[i : i + 1])[0])(x[i]) for i in range(3)]
    ).double() + damping * torch.eye(40, dtype=F64, device=device)
    eigenvalues = torch.linalg.eigvalsh(dense).abs()
    largest = eigenvalues.amax(1, keepdim=True)
    condition = (largest / eigenvalues.where(eigenvalues > 1e-6 * largest, largest)).amax(1)  # on the range
    within_reach = condition * torch.finfo(storage).eps < 20
    assert int(within_reach.sum()) >= 2
    assert bool(result.converged[within_reach].all())
    eps = torch.finfo(dtype).eps
    floor = 50 * eps * (b.double().norm(dim=1) + dense.flatten(1).norm(dim=1) * result.x.double().norm(dim=1)).cpu()
    met = residual(dense, result.x, b) <= rtol * b.double().norm(dim=1).cpu() + floor
    assert bool(met[result.converged.cpu()].all())


# --- breakdown, verdicts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orthogonalization", ORTHOGONALIZATIONS)
def test_an_exhausted_space_is_not_the_end(backend, device, pair, orthogonalization):
    """A low-rank operator: one cycle's space cannot hold more than the storage lets it, the next one goes on."""
    dtype, storage = pair
    factor = vectors(3, 40, 4, seed=12)
    A = (factor @ factor.mT).to(dtype)
    b = (A @ vectors(3, 40, 1, seed=13, dtype=dtype))[..., 0]
    rtol = 1e-5 if dtype == F32 else 1e-11
    result = gmres(
        A.to(device), b.to(device), rtol=rtol, basis_dtype=storage, backend=backend, orthogonalization=orthogonalization
    )
    assert result.status.tolist() == [Status.CONVERGED] * 3
    minimum_norm = (torch.linalg.pinv(A.double(), hermitian=True, rtol=1e-6) @ b.double()[..., None])[..., 0]
    assert (result.x.cpu().double().norm(dim=1) <= 1.1 * minimum_norm.norm(dim=1)).all()


def test_identity(backend, device, pair):
    dtype, storage = pair
    b = vectors(2, 33, seed=14, dtype=dtype).to(device)
    result = gmres(lambda v: v.clone(), b, rtol=1e-6 if dtype == F32 else 1e-12, basis_dtype=storage, backend=backend)
    assert bool(result.converged.all())
    torch.testing.assert_close(result.x, b, rtol=1e-4, atol=1e-5)


def test_singular_systems_are_told(backend, device, pair):
    dtype, storage = pair
    b = vectors(2, 9, seed=15, dtype=dtype).to(device)
    result = gmres(torch.zeros_like, b, basis_dtype=storage, backend=backend)
    assert (result.status.tolist(), result.iterations.tolist()) == ([Status.BREAKDOWN] * 2, [1, 1])
    assert not result.x.any()
    A = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=dtype)).to(device)
    ones = torch.ones(1, 3, dtype=dtype, device=device)
    result = gmres(A, ones, rtol=1e-6, max_iters=60, basis_dtype=storage, backend=backend)
    assert result.status.tolist()[0] in (Status.BREAKDOWN, Status.STAGNATED)
    torch.testing.assert_close(result.residual_norm, ones[:, 0], rtol=1e-3, atol=0)  # less is no gain
    # The reference's one sweep leaves rounding errors of the storage, and with them a pivot that is no zero.
    assert float(result.x.norm()) < (4 / torch.finfo(storage).eps if backend == "reference" else 5)


def test_a_tolerance_out_of_reach_is_never_called_met(backend, device, pair):
    """An operator that rounds coarsely, by its own right: what the storage loses is not what stops the solve."""
    dtype, storage = pair
    A, b = matrices(3, 30, 16, dtype=dtype).to(device), vectors(3, 30, seed=17, dtype=dtype).to(device)

    def rounded(v):
        return times(A)(v).half().to(dtype)

    result = gmres(rounded, b, rtol=1e-6, restart=30, max_iters=300, basis_dtype=storage, backend=backend)
    assert set(result.status.tolist()) <= {Status.STAGNATED, Status.MAX_ITERS}
    torch.testing.assert_close(result.residual_norm, (b - rounded(result.x)).norm(dim=1), rtol=1e-3, atol=1e-7)


def test_zero_exact_and_no_iterations(backend, device, pair):
    dtype, storage = pair
    A, b = matrices(3, 7, 18, dtype=dtype).to(device), vectors(3, 7, seed=19, dtype=dtype).to(device)
    b[1] = 0
    b[2] = times(A)(torch.ones_like(b))[2]
    start = torch.zeros_like(b)
    start[2] = 1
    operator, calls = counting(times(A))
    result = gmres(operator, b, start, basis_dtype=storage, backend=backend)
    assert bool(result.converged.all())
    assert result.iterations.tolist()[1:] == [0, 0]
    assert torch.equal(result.x[1:], start[1:])
    calls.clear()
    measured = gmres(operator, b, max_iters=0, basis_dtype=storage, backend=backend)
    assert (len(calls), int(measured.status[0])) == (0, Status.MAX_ITERS)


# --- isolation, scale, non-finite numbers, determinism ---------------------------------------------------------------


@pytest.mark.parametrize("where", ["b", "operator"])
def test_nan_in_one_system_leaves_the_others_bitwise_unchanged(backend, device, pair, where):
    dtype, storage = pair
    A, b = matrices(4, 18, 20, dtype=dtype).to(device), vectors(4, 18, seed=21, dtype=dtype).to(device)
    arguments = {"rtol": 1e-5, "restart": 5, "max_iters": 60, "backend": backend, "basis_dtype": storage}
    clean = gmres(times(A), b, **arguments)
    bad_A, bad_b = A.clone(), b.clone()
    {"b": bad_b, "operator": bad_A[:, 0]}[where][2, 3] = math.nan
    dirty = gmres(times(bad_A), bad_b, **arguments)
    assert int(dirty.status[2]) == Status.NON_FINITE
    assert bool(dirty.x[2].isfinite().all())
    others = [0, 1, 3]
    for name in ("x", "status", "iterations", "residual_norm"):
        assert torch.equal(getattr(dirty, name)[others], getattr(clean, name)[others]), name


@pytest.mark.parametrize("orthogonalization", ORTHOGONALIZATIONS)
def test_powers_of_two_change_nothing_but_the_exponent(backend, device, pair, orthogonalization):
    dtype, storage = pair
    A, b = matrices(2, 19, 22, dtype=dtype).to(device), vectors(2, 19, seed=23, dtype=dtype).to(device)
    span = 60 if dtype == F32 else 500
    arguments = {
        "rtol": 1e-5, "restart": 5, "max_iters": 50, "backend": backend, "basis_dtype": storage,
        "orthogonalization": orthogonalization,
    }  # fmt: skip
    base = gmres(times(A), b, **arguments)
    assert bool(base.converged.all())
    for s, t in [(span, 0), (-span, 0), (0, -span), (span // 2, -span // 2)]:
        scaled = gmres(times(A * 2.0**s), b * 2.0**t, **arguments)
        assert torch.equal(scaled.x, base.x * 2.0 ** (t - s)), (s, t)
        assert torch.equal(scaled.iterations, base.iterations)
        assert torch.equal(scaled.residual_norm, base.residual_norm * 2.0**t)


@pytest.mark.parametrize("step", [1, 3])
def test_non_finite_operator_output_keeps_the_finite_columns(backend, device, pair, step):
    dtype, storage = pair
    A, b = matrices(2, 16, 24, dtype=dtype).to(device), vectors(2, 16, seed=25, dtype=dtype).to(device)
    calls = 0

    def operator(v):
        nonlocal calls
        calls += 1
        out = times(A)(v)
        if calls == step:
            out[1, 3] = math.inf
        return out

    arguments = {"rtol": 1e-5, "restart": 16, "backend": backend, "basis_dtype": storage}
    result = gmres(operator, b, **arguments)
    assert result.status.tolist() == [Status.CONVERGED, Status.NON_FINITE]
    assert int(result.iterations[1]) == step - 1
    truncated = gmres(times(A), b, max_iters=step - 1, **arguments)
    torch.testing.assert_close(result.x[1], truncated.x[1])


def test_a_run_repeats_bitwise(backend, device, pair):
    dtype, storage = pair
    A, b = matrices(4, 33, 26, dtype=dtype).to(device), vectors(4, 33, seed=27, dtype=dtype).to(device)
    runs = [gmres(A, b, rtol=1e-5, restart=7, basis_dtype=storage, backend=backend) for _ in range(3)]
    assert all(torch.equal(run.x, runs[0].x) for run in runs)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_the_basis_takes_the_room_of_its_storage(backend, device, pair):
    if backend == "reference":
        pytest.skip("pure PyTorch makes temporaries: the bound is the compiled backends'")
    dtype, storage = pair
    batch, n, m = 4, 300, 12
    b = vectors(batch, n, seed=28, dtype=dtype).to(device)
    workspace = Workspace()
    arguments = {"restart": m, "rtol": 1e-4, "workspace": workspace, "backend": backend}
    gmres(lambda v: 3 * v + v.roll(1, 1), b, basis_dtype=storage, **arguments)
    line = 128 // storage.itemsize
    rows = batch * (m + 1) * -(-n // line) * line * storage.itemsize
    assert workspace._buffers["basis", device].numel() <= rows + 512
    held = workspace.nbytes
    gmres(lambda v: 3 * v + v.roll(1, 1), b, basis_dtype=storage, **arguments)
    assert workspace.nbytes == held
    whole = Workspace()
    gmres(lambda v: 3 * v + v.roll(1, 1), b, **arguments | {"workspace": whole})
    saved = batch * m * n * (dtype.itemsize - storage.itemsize)
    assert whole.nbytes - held >= 0.9 * saved


def test_what_an_earlier_solve_left_does_not_matter(backend, device, pair):
    dtype, storage = pair
    A, b = matrices(3, 21, 29, dtype=dtype).to(device), vectors(3, 21, seed=30, dtype=dtype).to(device)
    arguments = {"rtol": 1e-4, "restart": 6, "backend": backend}
    expected = {t: gmres(A, b, basis_dtype=t, **arguments).x for t in (storage, None)}
    workspace = Workspace()
    for t in (storage, None, storage):
        for buffer in workspace._buffers.values():
            buffer.fill_(0xFF)
        assert torch.equal(gmres(A, b, basis_dtype=t, workspace=workspace, **arguments).x, expected[t])
