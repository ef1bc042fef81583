"""gmres on a GPU: streams, polling, memory. The rules of the solver run there through tests/test_gmres_*.py."""

from __future__ import annotations

import pytest
import torch

from soae_ext import _native
from soae_ext.gmres import Workspace, gmres

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module", autouse=True)
def needs_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    if not hasattr(_native.extension, "cuda"):
        pytest.skip("the extension was built without CUDA")


def diagonal_problem(batch: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch + n)
    diagonal = 10 ** torch.rand(batch, n, generator=generator)
    return diagonal.cuda(), torch.randn(batch, n, generator=generator).cuda()


@pytest.mark.parametrize(("batch", "n"), [(200, 784), (2, 150528)])
def test_a_whole_solve_never_synchronises_through_torch(batch, n):
    diagonal, b = diagonal_problem(batch, n)
    workspace = Workspace()
    expected = gmres(lambda v: v * diagonal, b, restart=8, workspace=workspace)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = gmres(lambda v: v * diagonal, b, restart=8, workspace=workspace)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(result.converged.all())
    assert torch.equal(result.x, expected.x)


@pytest.mark.parametrize(("batch", "n"), [(200, 784), (2, 150528)])
def test_surplus_calls_are_few_and_counted(batch, n):
    diagonal, b = diagonal_problem(batch, n)
    calls = 0

    def operator(v):
        nonlocal calls
        calls += 1
        return v * diagonal

    result = gmres(operator, b, rtol=1e-4, restart=50)
    cpu = gmres(lambda v: v * diagonal.cpu(), b.cpu(), rtol=1e-4, restart=50)
    assert calls == result.operator_calls
    assert cpu.operator_calls - 1 <= calls <= cpu.operator_calls + 3  # up to 2 surplus, counts agree to 1
    watched = gmres(operator, b, rtol=1e-4, restart=50, callback=lambda iteration, residual_norm, active: None)
    assert abs(watched.operator_calls - cpu.operator_calls) <= 1  # a callback sees no surplus sweep


def test_a_solve_follows_the_current_stream():
    diagonal, b = diagonal_problem(150, 784)
    expected = gmres(lambda v: v * diagonal, b, restart=8)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(b)
        torch.cuda._sleep(50_000_000)
        late.copy_(b)  # not there yet when the solve is called
        result = gmres(lambda v: v * diagonal, late, restart=8)
    stream.synchronize()
    assert torch.equal(result.x, expected.x)


def test_memory_of_a_second_solve():
    diagonal, b = diagonal_problem(64, 3072)
    workspace = Workspace()
    product = torch.empty_like(b)

    def operator(v):
        return torch.mul(v, diagonal, out=product)

    gmres(operator, b, workspace=workspace)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = gmres(operator, b, workspace=workspace)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= result.x.nbytes + 64 * 1024
