"""The kernels that take the basis through a ring in shared memory, filled by bulk copies and chunk by chunk."""

from __future__ import annotations

import pytest
import torch

from soae_ext._solver import basis
from soae_ext.gmres import gmres
from tests.kernel_harness import CAPACITY, CLUSTERS, RINGS, SCHEDULES, KernelSolve, Problem, check_arnoldi

pytestmark = pytest.mark.usefixtures("simt_alone")
TWINS = [(ring, loading) for ring, loading in RINGS.items() if loading is not None]
RAGGED = 37  # unknowns less than fit


def steps(
    simt, variant: int, problem: Problem, restart: int, orthogonalization: str = "mgs", *, blocks: int = 0
) -> KernelSolve:
    simt.cuda.force_variant(variant, blocks)
    s = KernelSolve(simt, problem.b, restart=restart, rtol=0.0, orthogonalization=orthogonalization)
    s.begin(problem)
    for j in range(restart):
        s.step(j, problem(s.direction))
    return s


@pytest.mark.parametrize("orthogonalization", ["mgs", "cgs2"])
@pytest.mark.parametrize(("ring", "loading"), TWINS)
def test_the_way_of_the_rows_changes_no_bit(simt, dtype, ring, loading, orthogonalization):
    """9 rows are three panels of the widest kernels: each stage is used again, in both sweeps of cgs2."""
    problem = Problem(2, CAPACITY[ring] * 16 // dtype.itemsize - RAGGED, dtype)
    expected = steps(simt, loading, problem, 9, orthogonalization)
    check_arnoldi(expected, problem)
    for schedule, seed in SCHEDULES:
        simt.set_schedule(schedule, seed)
        found = steps(simt, ring, problem, 9, orthogonalization)
        for name in ("basis", "direction", "r", "rotations", "g", "estimates", "systems", "active"):
            a, b = getattr(found, name), getattr(expected, name)
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), name


@pytest.mark.parametrize("n", [1, 5, 61, 1500])
@pytest.mark.parametrize(("ring", "loading"), [twin for twin in TWINS if twin[0] not in CLUSTERS])
def test_without_bulk_copies_every_thread_fetches_its_own(simt, dtype, ring, loading, n):
    problem = Problem(2, n, dtype)
    expected = steps(simt, loading, problem, min(n, 9), "cgs2")
    simt.set_largest_cluster(0)
    for schedule, seed in SCHEDULES:
        simt.set_schedule(schedule, seed)
        found = steps(simt, ring, problem, min(n, 9), "cgs2")
        assert torch.equal(found.basis.view(torch.uint8), expected.basis.view(torch.uint8))
        assert torch.equal(found.systems, expected.systems)


@pytest.mark.parametrize("blocks", [16, 0], ids=["bulk", "by chunks"])
def test_panels_of_eight_rows(simt, dtype, blocks):
    """No other kernel has them: against float64. 70 rows end within a panel."""
    simt.set_largest_cluster(blocks)
    problem = Problem(2, 150, dtype, coupling=1.5)
    for orthogonalization in ("mgs", "cgs2"):
        check_arnoldi(steps(simt, 8, problem, 70, orthogonalization), problem)
    if dtype == torch.float32 or blocks > 0:
        wide = Problem(1, CAPACITY[8] * 16 // dtype.itemsize - RAGGED, dtype)
        simt.set_largest_cluster(16)
        check_arnoldi(steps(simt, 8, wide, 10, "mgs"), wide)


@pytest.mark.parametrize("blocks", [2, 4, 16])
def test_a_cluster_with_blocks_that_have_no_part(simt, dtype, blocks):
    problem = Problem(2, 37, dtype)
    check_arnoldi(steps(simt, 10, problem, 6, blocks=blocks), problem)


@pytest.mark.parametrize("variant", RINGS)
def test_a_bad_column_and_finished_systems_leave_nothing_on_its_way(simt, dtype, variant):
    """The executor refuses a block that ends before its copies have arrived."""
    simt.cuda.force_variant(variant)
    problem = Problem(4, 61, dtype)
    calls = iter(range(1000))

    def faulty(v: torch.Tensor) -> torch.Tensor:
        w = problem(v)
        if next(calls) == 3:
            w[1, 60] = float("nan")
        return w

    s = KernelSolve(simt, problem.b, restart=5, rtol=[1e-1, 1e-3, 1e-4, 1e-5])
    assert s.run(faulty).status == [0, 4, 0, 0]


@pytest.mark.parametrize("variant", [7, 8])
def test_rows_from_the_chunks_of_a_long_basis(simt, monkeypatch, variant):
    simt.cuda.force_variant(variant)
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(3, 40, 40, dtype=torch.float64, generator=generator) + 5 * torch.eye(40, dtype=torch.float64)
    b = torch.randn(3, 40, dtype=torch.float64, generator=generator)
    whole = gmres(A, b, rtol=1e-12, restart=40, backend="simt")
    monkeypatch.setattr(basis, "LONG", 1)
    monkeypatch.setattr(basis, "SHIFT", 3)
    cut = gmres(A, b, rtol=1e-12, restart=40, backend="simt")
    assert whole.converged.all()
    assert int(whole.iterations.max()) > 16
    assert torch.equal(cut.x, whole.x)


@pytest.mark.parametrize(("variant", "n"), [(8, 3072), (9, 12288)])
def test_a_gpu_without_the_shared_memory_refuses_the_kernel(simt, variant, n):
    """99 KB of sm_86: two stages of 4 rows of 3,072 floats fit, of 8 rows not, nor of 2 rows of 12,288."""
    simt.set_largest_cluster(0)
    simt.cuda.force_variant(7)
    KernelSolve(simt, torch.ones(1, 3072), restart=20)
    simt.cuda.force_variant(variant)
    with pytest.raises(RuntimeError, match="does not run on this GPU"):
        KernelSolve(simt, torch.ones(1, n), restart=20)
