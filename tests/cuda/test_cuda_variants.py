"""Every variant of csrc/cuda/plan.h on a GPU, whatever the plan would take: clusters of every size, rings, split-n."""

from __future__ import annotations

import pytest
import torch

from soae_ext import _native
from tests.kernel_harness import (
    CAPACITY,
    CLUSTERS,
    HALF_CAPACITY,
    HALF_SPLIT,
    PIECE,
    RINGS,
    SPLIT,
    KernelSolve,
    Problem,
    check_arnoldi,
    check_rounded_arnoldi,
)

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def extension():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    if not hasattr(_native.extension, "cuda"):
        pytest.skip("the extension is missing, or was built without CUDA")
    yield _native.extension
    _native.extension.cuda.force_variant(-1)


def steps(extension, variant: int, blocks: int, problem: Problem, count: int, **options: object) -> KernelSolve:
    """Steps by one variant, `count` of them; skips where this GPU has no such clusters or too little for the ring."""
    extension.cuda.force_variant(variant, blocks)
    try:
        s = KernelSolve(extension, problem.b, restart=count, rtol=0.0, **options)
        s.begin(problem)
        for j in range(count):
            s.step(j, problem(s.direction))
    except RuntimeError as error:
        if "forced kernel" in str(error):
            pytest.skip(str(error))
        raise
    return s


@pytest.mark.parametrize("orthogonalization", ["mgs", "cgs2"])
@pytest.mark.parametrize("variant", range(SPLIT + 1))
def test_steps_of_full_and_of_ragged_vectors(extension, dtype, variant, orthogonalization):
    full = (3 * PIECE if variant == SPLIT else CAPACITY[variant]) * 16 // dtype.itemsize
    for n in (full, full - 37, 61):
        problem = Problem(300, n, dtype, device="cuda")
        s = steps(extension, variant, 0, problem, 19, orthogonalization=orthogonalization)
        check_arnoldi(s, problem, systems=2)


@pytest.mark.parametrize("blocks", [2, 4, 8, 16])
@pytest.mark.parametrize("variant", CLUSTERS)
def test_clusters_of_every_size(extension, dtype, variant, blocks):
    capacity = blocks * CAPACITY[variant] // 2 * 16 // dtype.itemsize
    for n in (capacity - 5, 37):
        problem = Problem(20, n, dtype, device="cuda")
        check_arnoldi(steps(extension, variant, blocks, problem, 9), problem, systems=2)


@pytest.mark.parametrize(("ring", "loading"), [pair for pair in RINGS.items() if pair[1] is not None])
def test_a_ring_changes_no_bit(extension, dtype, ring, loading):
    """Three hundred systems, forty rows, ten times: a race would show in one of them."""
    problem = Problem(300, CAPACITY[ring] * 16 // dtype.itemsize - 37, dtype, device="cuda", coupling=1.5)
    expected = steps(extension, loading, 0, problem, 40, orthogonalization="cgs2")
    for _ in range(10):
        found = steps(extension, ring, 0, problem, 40, orthogonalization="cgs2")
        assert torch.equal(found.basis.view(torch.uint8), expected.basis.view(torch.uint8))
        assert torch.equal(found.systems, expected.systems)


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("variant", range(HALF_SPLIT + 1))
def test_a_basis_in_half_the_working_precision(extension, storage, variant):
    dtype = torch.float64 if storage == torch.float32 else torch.float32
    chunks = 3 * PIECE if variant == HALF_SPLIT else HALF_CAPACITY[variant]
    problem = Problem(20, chunks * 16 // storage.itemsize - 37, dtype, device="cuda")
    check_rounded_arnoldi(steps(extension, variant, 0, problem, 6, basis_dtype=storage), problem)


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16])
def test_a_basis_in_a_quarter_of_the_working_precision(extension, storage):
    problem = Problem(20, 3 * PIECE * 8 - 37, torch.float64, device="cuda")
    check_rounded_arnoldi(steps(extension, -1, 0, problem, 6, basis_dtype=storage), problem)
