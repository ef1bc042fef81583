"""A basis in reduced precision on the CPU kernels: the relation that holds for what is stored, and the conversions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from soae_ext import _native
from tests import kernel_harness as kh
from tests.kernel_harness import Problem, check_rounded_arnoldi

if _native.extension is None:
    pytest.skip(f"the compiled extension is missing: {_native.missing}", allow_module_level=True)

from tests.cpu_harness import CpuSolve  # it needs the extension

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
PAIRS = [(F32, F16), (F32, BF16), (F64, F16), (F64, BF16), (F64, F32)]


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(str(t).removeprefix("torch.") for t in pair))
def pair(request):
    return request.param


@pytest.mark.parametrize("orthogonalization", ["mgs", "cgs2"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("batch", "n"), [(2, 1), (3, 31), (2, 97), (2, 1024), (2, 4133), (1, 20011)])
def test_a_cycle_keeps_its_relation(pair, orthogonalization, offset, batch, n):
    """Sizes with and without remainders after cache lines, vectors, blocks and chunks; three threads."""
    problem = Problem(batch, n, pair[0])
    s = CpuSolve(
        problem.b, restart=min(6, n), rtol=0.0, orthogonalization=orthogonalization, basis_dtype=pair[1],
        offset=offset, threads=3,
    )  # fmt: skip
    s.begin(problem)
    for j in range(s.restart):
        s.step(j, problem(s.direction))
        if int(s.active[j + 1]) == 0:
            break
    check_rounded_arnoldi(s, problem)
    s.finish()
    s.close(problem(s.candidate))
    eps = torch.finfo(pair[0]).eps
    beta = problem.b.double().norm(dim=1)
    torch.testing.assert_close(s.residual, problem.residual(s.x), rtol=1e-4, atol=20 * eps * float(beta.max()))
    assert (s.residual < 0.05 * beta).all()
    s.check_guard()


def test_threads_change_no_bit(pair):
    problem = Problem(1, 30011, pair[0])
    found = []
    for threads in (1, 2, 3):
        s = CpuSolve(problem.b, restart=6, rtol=1e-4, basis_dtype=pair[1], threads=threads)
        result = s.run(problem)
        assert result.status == [kh.CONVERGED]
        found.append((result.x, s.basis.view(torch.uint8).clone()))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_a_refused_candidate_restarts_from_the_stored_vector(pair):
    problem = Problem(2, 61, pair[0])
    s = CpuSolve(problem.b, restart=3, rtol=1e-7, basis_dtype=pair[1])
    s.begin(problem)
    first = s.direction.clone()
    for j in range(3):
        s.step(j, problem(s.direction))
    s.finish()
    s.close(-5 * problem.b)
    assert s.status.tolist() == [kh.RUNNING] * 2
    assert torch.equal(s.direction, first)
    assert torch.equal(s.direction.double(), s.vectors()[:, 0, :61])


def test_all_float16_numbers_convert_as_numpy_converts_them():
    """Every number from 2^-24 to 1, and some between them, as begin stores them and the operator receives them."""
    values = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) <= 1) & (values != 0)]
    between = np.concatenate([values, values * np.float32(1 + 2.0**-11), values * np.float32(1 + 2.0**-12)])
    between = between[np.abs(between) <= 1]
    b = torch.from_numpy(np.resize(between, (-(-between.size // 63), 63)))
    b = torch.cat([torch.full((b.shape[0], 1), 1e4), b], 1)
    s = CpuSolve(b, restart=1, rtol=0.0, basis_dtype=F16)
    s.begin(lambda v: v)
    scaled = b * torch.ldexp(torch.ones(b.shape[0]), -s._ints("scale"))[:, None]
    expected = (scaled * ((1 / s._reals("beta")).float() * 8)[:, None]).numpy().astype(np.float16)
    np.testing.assert_array_equal(s.basis[:, 0, :64].numpy(), expected)
    np.testing.assert_array_equal(s.direction.numpy(), expected.astype(np.float32) / 8)
