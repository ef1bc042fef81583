"""arnoldi on a GPU: every kernel variant, streams, polling. Its rules run there through tests/test_krylov_*.py."""

from __future__ import annotations

import pytest
import torch

from soae_ext import _native
from soae_ext.gmres import Workspace
from soae_ext.krylov import Arnoldi, arnoldi

pytestmark = pytest.mark.cuda

# (batch, n in float32) that reach the five block variants, aligned and not, and split-n; float64 takes half of n.
SHAPES = [(200, 250), (200, 784), (140, 1001), (140, 3072), (140, 6101), (140, 12288), (2, 12300), (1, 150528)]


@pytest.fixture(scope="module", autouse=True)
def needs_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    if not hasattr(_native.extension, "cuda"):
        pytest.skip("the extension was built without CUDA")


def diagonal_problem(batch: int, n: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch + n)
    diagonal = torch.rand(batch, n, generator=generator, dtype=torch.float64) * 4 - 2
    return diagonal.to(dtype).cuda(), torch.randn(batch, n, generator=generator, dtype=torch.float64).to(dtype).cuda()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_decomposition(dtype, shape):
    diagonal, v = diagonal_problem(shape[0], shape[1] * 4 // dtype.itemsize, dtype)
    a = arnoldi(lambda u: u * diagonal, v, steps=8)
    eps = torch.finfo(dtype).eps
    assert bool((a.dims == 8).all())
    V, H = a.basis[:3].double(), a.hessenberg[:3]
    assert float((V @ V.mT - torch.eye(9, device="cuda")).abs().max()) <= 20 * eps
    assert float((diagonal[:3, None].double() * V[:, :8] - H.mT @ V).abs().max()) <= 60 * eps * float(H.abs().max())


@pytest.mark.parametrize("shape", [(200, 784), (2, 150528)], ids=str)
def test_answers_agree_with_the_cpu(shape):
    diagonal, v = diagonal_problem(*shape, torch.float64)
    on_cpu = diagonal.cpu()
    gpu, cpu = arnoldi(lambda u: u * diagonal, v, steps=12), arnoldi(lambda u: u * on_cpu, v.cpu(), steps=12)
    for answer in (lambda a: a.solve(0.3), lambda a: a.trust_region(0.5), lambda a: a.trust_region(1e4)):
        got, expected = answer(gpu).cpu(), answer(cpu)
        assert float((got - expected).norm() / expected.norm()) <= 1e-9


@pytest.mark.parametrize("shape", [(200, 784), (2, 150528)], ids=str)
def test_a_decomposition_never_synchronises_through_torch(shape):
    diagonal, v = diagonal_problem(*shape)
    workspace = Workspace()
    expected = arnoldi(lambda u: u * diagonal, v, steps=8, workspace=workspace)
    torch.cuda.set_sync_debug_mode("error")
    try:
        a = arnoldi(lambda u: u * diagonal, v, steps=8, workspace=workspace)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(a.basis, expected.basis)
    assert torch.equal(a.hessenberg, expected.hessenberg)


@pytest.mark.parametrize("shape", [(200, 784), (2, 150528)], ids=str)
def test_surplus_calls_are_few_counted_and_without_effect(shape):
    diagonal, v = diagonal_problem(*shape)
    diagonal[:, 5:] = 0.0  # a Krylov space of 6 dimensions
    v[:, 5:] = 0.0
    calls = 0

    def operator(u: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return u * diagonal

    a = arnoldi(operator, v, steps=40)
    longest = int(a.dims.max())
    assert calls == a.operator_calls
    assert longest <= 7
    assert longest <= calls <= longest + 2
    assert bool((a.hessenberg[:, :, longest:] == 0).all())
    assert bool((a.basis[:, longest + 1 :] == 0).all())


def test_the_current_stream_is_followed():
    diagonal, v = diagonal_problem(150, 784)

    def decompose(start: torch.Tensor) -> Arnoldi:
        return arnoldi(lambda u: u * diagonal, start, steps=8)

    expected = decompose(v).trust_region(1.0)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(v)
        torch.cuda._sleep(50_000_000)
        late.copy_(v)  # not there yet when arnoldi is called
        result = decompose(late).trust_region(1.0)
    stream.synchronize()
    assert torch.equal(result, expected)
