"""Memory: what a solve holds, what a second one allocates, and what results may share."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from soae_ext.gmres import Workspace, gmres
from tests.problems import matrices, times, vectors


class Storages(TorchDispatchMode):
    """Bytes of every new storage that an operator hands out, by storage."""

    def __init__(self):
        super().__init__()
        self.sizes: Counter[int] = Counter()
        self.alive = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {
            t.untyped_storage().data_ptr() for t in (*args, *(kwargs or {}).values()) if isinstance(t, torch.Tensor)
        }
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in known:
            self.alive.append(out)
            self.sizes[out.untyped_storage().data_ptr()] = out.untyped_storage().nbytes()
        return out


@pytest.mark.parametrize("precondition", ["none", "right", "flexible"])
def test_memory_bound(backend, device, dtype, precondition):
    if backend == "reference":
        pytest.skip("pure PyTorch makes temporaries: the bound is the compiled backends'")
    batch, n, m = 6, 200, 12
    b = vectors(batch, n, seed=1, dtype=dtype).to(device)
    workspace = Workspace()
    arguments = {} if precondition == "none" else {"M": lambda v: v, "flexible": precondition == "flexible"}
    gmres(
        lambda v: 3 * v + v.roll(1, 1),
        b.mT.contiguous().mT,
        b,
        restart=m,
        workspace=workspace,
        backend=backend,
        **arguments,
    )
    line = 128 // dtype.itemsize
    ld = -(-n // line) * line
    rows = m + 10 + (m if precondition == "flexible" else 0)
    assert workspace.nbytes <= rows * batch * ld * dtype.itemsize + 8 * batch * (m + 8) ** 2 + 8192


def test_a_second_equal_solve_allocates_only_its_results(backend, device, dtype):
    if backend == "reference":
        pytest.skip("pure PyTorch makes temporaries")
    b, x0 = vectors(4, 50, seed=2, dtype=dtype).to(device), vectors(4, 50, seed=3, dtype=dtype).to(device)
    out = torch.empty_like(b)
    workspace = Workspace()

    def solve():
        return gmres(lambda v: torch.mul(v, 2.0, out=out), b, x0, restart=5, workspace=workspace, backend=backend)

    solve()
    held = workspace.nbytes
    with Storages() as storages:
        result = solve()
    assert workspace.nbytes == held
    results = [result.x, result.status, result.converged, result.iterations, result.residual_norm]
    large = [size for size in storages.sizes.values() if size >= b.nbytes // 2]
    assert len(large) == 1  # x; everything else that is new has a few numbers per system
    assert sum(storages.sizes.values()) <= sum(t.nbytes for t in results) + 64 * b.shape[0]


def test_results_never_alias_the_workspace_or_the_input(backend, device):
    A, b, x0 = matrices(2, 12, 4).to(device), vectors(2, 12, seed=5).to(device), vectors(2, 12, seed=6).to(device)
    workspace = Workspace()
    first = gmres(A, b, x0, workspace=workspace, backend=backend, history=True)
    kept = [t.clone() for t in (first.x, first.residual_norm, first.residual_history, first.status, first.iterations)]
    b_before, x0_before = b.clone(), x0.clone()
    gmres(A, -3 * b, workspace=workspace, backend=backend, history=True)
    now = [first.x, first.residual_norm, first.residual_history, first.status, first.iterations]
    assert all(torch.equal(k.nan_to_num(), t.nan_to_num()) for k, t in zip(kept, now, strict=True))
    assert torch.equal(b, b_before)
    assert torch.equal(x0, x0_before)


def test_what_an_earlier_solve_left_does_not_matter(backend, device, dtype):
    """A workspace full of NaN, grown and shrunk, gives the bits that a new one gives."""
    A, b = matrices(3, 21, 7, dtype=dtype).to(device), vectors(3, 21, seed=8, dtype=dtype).to(device)
    arguments = {"rtol": 1e-4, "restart": 6, "backend": backend}
    expected = gmres(A, b, **arguments)
    workspace = Workspace()
    gmres(torch.eye(64, dtype=dtype, device=device), torch.full((9, 64), torch.nan, dtype=dtype, device=device),
          workspace=workspace, backend=backend)  # fmt: skip
    for buffer in workspace._buffers.values():
        buffer.fill_(0xFF)
    again = gmres(A, b, workspace=workspace, **arguments)
    assert torch.equal(again.x, expected.x)
    assert torch.equal(again.residual_norm, expected.residual_norm)


def test_one_workspace_serves_changing_sizes_and_dtypes(backend, device):
    workspace = Workspace()
    for seed, (batch, n, restart, dtype) in enumerate(
        [(1, 5, 3, torch.float32), (7, 33, 9, torch.float64), (2, 4, 2, torch.float32), (3, 64, 20, torch.float32)]
    ):
        A = matrices(batch, n, seed, dtype=dtype).to(device)
        b = vectors(batch, n, seed=seed + 50, dtype=dtype).to(device)
        result = gmres(A, b, rtol=1e-4, restart=restart, workspace=workspace, backend=backend)
        assert bool(result.converged.all())


def test_nested_use_is_refused_and_the_workspace_survives(backend, device):
    A, b = matrices(2, 8, 9).to(device), vectors(2, 8, seed=10).to(device)
    workspace = Workspace()

    def nested(v):
        gmres(A, b, workspace=workspace, backend=backend)
        return v

    with pytest.raises(RuntimeError, match=r"workspace: already used.*Workspace\(\)"):
        gmres(nested, b, workspace=workspace, backend=backend)
    assert bool(gmres(A, b, workspace=workspace, backend=backend).converged.all())


def test_concurrent_use_is_refused(backend, device):
    A, b = matrices(2, 8, 11).to(device), vectors(2, 8, seed=12).to(device)
    workspace, inside, leave = Workspace(), threading.Event(), threading.Event()

    def slow(v):
        inside.set()
        leave.wait(10)
        return times(A)(v)

    thread = threading.Thread(target=lambda: gmres(slow, b, workspace=workspace, backend=backend))
    thread.start()
    inside.wait(10)
    try:
        with pytest.raises(RuntimeError, match="workspace: already used"):
            gmres(A, b, workspace=workspace, backend=backend)
    finally:
        leave.set()
        thread.join()


def test_threads_with_workspaces_of_their_own_agree(backend, device):
    if backend == "simt":
        pytest.skip("the emulator runs one launch at a time")
    A, b = matrices(4, 40, 13).to(device), vectors(4, 40, seed=14).to(device)
    expected = gmres(A, b, restart=8, backend=backend).x
    found = [None] * 4

    def solve(i):
        found[i] = gmres(A, b, restart=8, backend=backend).x

    threads = [threading.Thread(target=solve, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(x, expected) for x in found)


def test_an_error_in_the_operator_frees_the_workspace(backend, device):
    b = vectors(2, 8, seed=15).to(device)
    workspace = Workspace()

    def failing(v):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        gmres(failing, b, workspace=workspace, backend=backend)
    assert bool(gmres(lambda v: 2 * v, b, workspace=workspace, backend=backend).converged.all())
