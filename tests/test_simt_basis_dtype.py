"""A basis in reduced precision on the CUDA kernels, every variant, one thread at a time, under three schedules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import kernel_harness as kh
from tests.kernel_harness import HALF_CAPACITY as CAPACITY
from tests.kernel_harness import HALF_SPLIT as SPLIT
from tests.kernel_harness import PIECE, SCHEDULES, KernelSolve, Problem, check_rounded_arnoldi

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
PAIRS = [(F32, F16), (F32, BF16), (F64, F16), (F64, BF16), (F64, F32)]


pytestmark = pytest.mark.usefixtures("simt_alone")


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(str(t).removeprefix("torch.") for t in pair))
def pair(request):
    return request.param


@pytest.fixture(params=range(SPLIT + 1), ids=[*(f"block{i}" for i in range(SPLIT)), "split"])
def variant(simt, request, pair):
    if request.param != SPLIT and pair[0].itemsize == 4 * pair[1].itemsize:
        pytest.skip("split-n alone stores a quarter of the working precision")
    simt.cuda.force_variant(request.param)
    return request.param


@pytest.fixture(params=["mgs", "cgs2"])
def orthogonalization(request):
    return request.param


def size(variant: int, pair: tuple[torch.dtype, torch.dtype], kind: str) -> int:
    """An n for a variant: a few unknowns, as many as fit, or a bit less with a last chunk that is not full."""
    storage = pair[1]
    chunks = PIECE * 2 if variant == SPLIT else CAPACITY[variant]
    full = chunks * 16 // storage.itemsize
    return {"few": 5, "ragged": full - 37, "full": full}[kind]


@pytest.mark.parametrize("kind", ["few", "ragged", "full"])
def test_a_cycle_keeps_its_relation(simt, variant, pair, orthogonalization, kind):
    n = size(variant, pair, kind)
    problem = Problem(2, n, pair[0])
    s = KernelSolve(
        simt, problem.b, restart=min(6, n), rtol=0.0, orthogonalization=orthogonalization, basis_dtype=pair[1]
    )
    s.begin(problem)
    for j in range(s.restart):
        s.step(j, problem(s.direction))
        if int(s.active[j + 1]) == 0:
            break
    check_rounded_arnoldi(s, problem)
    s.finish()
    assert torch.equal(s.candidate, s.direction)
    s.close(problem(s.candidate))
    eps = torch.finfo(pair[0]).eps
    beta = problem.b.double().norm(dim=1)
    torch.testing.assert_close(s.residual, problem.residual(s.x), rtol=1e-4, atol=20 * eps * float(beta.max()))
    assert (s.residual < 0.05 * beta).all()
    if int(s.active[0]) == 2:
        assert torch.equal(s.direction.double(), s.vectors()[:, 0, :n])


def test_schedules_agree_bitwise(simt, variant, pair, orthogonalization):
    problem = Problem(2, size(variant, pair, "ragged"), pair[0])
    rtol = 1e-4 if pair[0] == F32 else 1e-8
    outcomes = []
    for schedule, seed in SCHEDULES:
        simt.set_schedule(schedule, seed)
        s = KernelSolve(simt, problem.b, restart=5, rtol=rtol, orthogonalization=orthogonalization, basis_dtype=pair[1])
        result = s.run(problem)
        assert result.status == [kh.CONVERGED] * 2
        assert (problem.residual(result.x) <= 1.01 * rtol * problem.b.double().norm(dim=1)).all()
        arrays = (s.x, s.candidate, s.direction, s.basis, s.r, s.rotations, s.g, s.estimates, s.systems, s.active)
        outcomes.append([a.contiguous().view(torch.uint8).clone() for a in arrays])
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


@pytest.mark.parametrize("family", [0, SPLIT], ids=["block", "split"])
def test_unaligned_vectors_and_outputs_in_place_give_the_same_bits(simt, family, pair, orthogonalization):
    simt.cuda.force_variant(family)
    problem = Problem(3, PIECE * 16 // pair[1].itemsize + 64 if family == SPLIT else 64, pair[0])
    found = []
    for offset, in_place in ((0, False), (1, False), (0, True)):
        s = KernelSolve(
            simt, problem.b, restart=5, rtol=1e-4, offset=offset, orthogonalization=orthogonalization,
            basis_dtype=pair[1],
        )  # fmt: skip
        found.append(s.run(problem, in_place))
        assert found[-1].status == [kh.CONVERGED] * 3
    assert all(torch.equal(other.x, found[0].x) for other in found[1:])


@pytest.mark.parametrize("family", [0, SPLIT], ids=["block", "split"])
def test_many_rows_cross_the_groups_of_32(simt, family, pair, orthogonalization):
    """Panels and groups of partial sums beyond one warp's width, on a problem that is slow enough for 40 steps."""
    simt.cuda.force_variant(family)
    problem = Problem(1, PIECE * 16 // pair[1].itemsize + 35 if family == SPLIT else 117, pair[0], coupling=2.2)
    s = KernelSolve(simt, problem.b, restart=40, rtol=0.0, orthogonalization=orthogonalization, basis_dtype=pair[1])
    s.begin(problem)
    for j in range(40):
        s.step(j, problem(s.direction))
    assert s.outcome.tolist() == [kh.ACTIVE]
    check_rounded_arnoldi(s, problem)


def test_a_refused_candidate_restarts_from_the_stored_vector(simt, variant, pair):
    problem = Problem(2, 61, pair[0])
    s = KernelSolve(simt, problem.b, restart=3, rtol=1e-7, basis_dtype=pair[1])
    s.begin(problem)
    first = s.direction.clone()
    for j in range(3):
        s.step(j, problem(s.direction))
    s.finish()
    s.close(-5 * problem.b)
    assert s.status.tolist() == [kh.RUNNING] * 2
    assert torch.equal(s.direction, first)
    assert torch.equal(s.direction.double(), s.vectors()[:, 0, :61])


def test_the_plan_counts_stored_bytes(simt):
    simt.set_multiprocessors(132)

    def splits(dtype, storage, batch, n, restart):
        s = simt.Solve()
        granule = 128 // storage.itemsize
        s.batch, s.n, s.ld, s.restart = batch, n, -(-n // granule) * granule, restart
        s.dtype, s.basis_dtype = kh.DTYPES[dtype], kh.DTYPES[storage]
        return simt.cuda.scratch_bytes(s) > 0

    simt.set_largest_cluster(0)
    assert not splits(F32, F16, 1024, 12288, 20)
    assert splits(F32, F16, 1024, 12289, 20)
    assert splits(F64, F16, 1, 100, 20)  # a quarter of the working precision
    assert splits(F32, F32, 1, 3072, 70)
    assert not splits(F32, F16, 1, 3072, 70)  # half the bytes: one block is quick enough


def test_all_float16_numbers_convert_as_numpy_converts_them(simt):
    """The executor's conversions of every number from 2^-24 to 1, and of some between them, as begin stores them."""
    values = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) <= 1) & (values != 0)]
    between = np.concatenate([values, values * np.float32(1 + 2.0**-11), values * np.float32(1 + 2.0**-12)])
    between = between[np.abs(between) <= 1]
    b = torch.from_numpy(np.resize(between, (-(-between.size // 63), 63)))
    b = torch.cat([torch.full((b.shape[0], 1), 1e4), b], 1)  # n = 64: the norm is 1e4 but for a rounding error
    s = KernelSolve(simt, b, restart=1, rtol=0.0, basis_dtype=F16)
    s.begin(lambda v: v)
    scaled = b * torch.ldexp(torch.ones(b.shape[0]), -s._ints("scale"))[:, None]
    expected = scaled * (1 / s._reals("beta")).float()[:, None] * 8
    found = s.basis[:, 0, :64].numpy()
    np.testing.assert_array_equal(found, expected.numpy().astype(np.float16))
