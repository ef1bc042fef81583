"""Which kernels a solve uses, and where they look for its vectors."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from tests.kernel_harness import BLOCK_CAPACITY, CLUSTERS, PIECE, SPLIT, KernelSolve, Problem, check_arnoldi

pytestmark = pytest.mark.usefixtures("simt_alone")


def described(simt: ModuleType, batch: int, n: int, dtype: torch.dtype, restart: int) -> object:
    s = simt.Solve()
    granule = 128 // dtype.itemsize
    s.batch, s.n, s.ld, s.restart = batch, n, (n + granule - 1) // granule * granule, restart
    s.dtype = 0 if dtype == torch.float32 else 1
    return s


def splits(simt: ModuleType, *problem: object) -> bool:
    return simt.cuda.scratch_bytes(described(simt, *problem)) > 0


def test_the_plan_without_clusters(simt):
    f32, f64 = torch.float32, torch.float64
    simt.set_multiprocessors(132)
    simt.set_largest_cluster(0)
    assert not splits(simt, 128, 3072, f32, 20)
    assert not splits(simt, 1024, 784, f64, 250)
    assert not splits(simt, 1, 784, f32, 20)
    assert not splits(simt, 1024, 12288, f32, 20)
    assert splits(simt, 1024, 12289, f32, 20)  # does not fit the registers of a block
    assert splits(simt, 1024, 6145, f64, 20)
    assert splits(simt, 1, 150528, f32, 20)
    assert splits(simt, 1, 3072, f32, 250)  # one system would keep one multiprocessor busy
    assert not splits(simt, 128, 3072, f32, 250)


def test_the_plan_with_clusters(simt):
    def plan(*problem):
        return simt.cuda.plan(described(simt, *problem))

    f32, f64 = torch.float32, torch.float64
    simt.set_multiprocessors(132)
    assert plan(128, 3072, f32, 20) == (2, 1)  # as many blocks as multiprocessors already
    assert plan(1024, 20000, f32, 20)[0] in CLUSTERS
    assert plan(16, 150528, f32, 50) == (6, 16)
    assert splits(simt, 16, 163841, f32, 50)  # does not fit the registers of 16 blocks
    assert splits(simt, 1, 150528, f64, 20)
    simt.set_largest_cluster(8)
    assert splits(simt, 16, 150528, f32, 50)
    assert all(
        plan(b, n, f64, 20)[1] <= 8 for b in (1, 3, 40) for n in (500, 5000, 30000) if not splits(simt, b, n, f64, 20)
    )


def test_every_plan_holds_its_vectors(simt):
    """Whatever the GPU: the blocks of the variant have a place for every chunk of a row."""
    for largest in (0, 2, 16):
        simt.set_largest_cluster(largest)
        for multiprocessors in (4, 132):
            simt.set_multiprocessors(multiprocessors)
            for batch in (1, 7, 300):
                for n in (1, 200, 1025, 4000, 13000, 70000, 200000):
                    s = described(simt, batch, n, torch.float32, 20)
                    variant, blocks = simt.cuda.plan(s)
                    capacity = PIECE if variant == SPLIT else BLOCK_CAPACITY[variant]
                    assert blocks * capacity >= s.ld * 4 // 16
                    assert blocks == 1 or variant in (SPLIT, *CLUSTERS)
                    assert variant == SPLIT or blocks <= max(1, largest)


@pytest.mark.parametrize("blocks", [4, 16])
def test_clusters_larger_than_the_vector_needs(simt, dtype, blocks):
    """Some blocks have fewer chunks than others, and some none."""
    simt.cuda.force_variant(5, blocks)
    problem = Problem(2, 37, dtype)
    s = KernelSolve(simt, problem.b, restart=4, rtol=0.0)
    s.begin(problem)
    for j in range(4):
        s.step(j, problem(s.direction))
    check_arnoldi(s, problem)


@pytest.mark.parametrize("batch_n", [(0, 10), (3, 0)])
def test_nothing_to_do(simt, dtype, batch_n):
    solve = described(simt, *batch_n, dtype, 5)
    assert simt.cuda.scratch_bytes(solve) == 0
    simt.cuda.begin(solve, 0, 0)
    simt.cuda.step(solve, 0, 0, 0)
    simt.cuda.finish(solve, False, 0)
    simt.cuda.correct(solve, 0, 0)
    simt.cuda.close(solve, 0, False, 0)


def test_offsets_pass_2_to_the_31(simt):
    solve = described(simt, 64, 150528, torch.float32, 2196)
    assert simt.basis_offset(solve, 63, 2196) == (63 * 2197 + 2196) * 150528 > 2**34
