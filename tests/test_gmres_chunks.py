"""A basis that grows in chunks while it is written, on the SIMT build: the same bits, memory for what was written."""

from __future__ import annotations

import pytest
import torch

from soae_ext._solver import basis, graphs
from soae_ext.gmres import Workspace, gmres
from tests.kernel_harness import SPLIT

pytestmark = pytest.mark.usefixtures("simt_alone")


@pytest.fixture
def in_chunks(monkeypatch):
    """Chunks of 8 rows, the fewest that the kernels take, whatever the restart."""
    monkeypatch.setattr(basis, "LONG", 1)
    monkeypatch.setattr(basis, "SHIFT", 3)


def problem(n=61, batch=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    diagonal = 10 ** torch.rand(batch, n, generator=generator, dtype=dtype)
    b = torch.randn(batch, n, generator=generator, dtype=dtype)
    return (lambda v: v * diagonal + 0.3 * v.roll(1, 1)), b


def solve(**options):
    A, b = problem()
    found = gmres(A, b, rtol=1e-12, backend="simt", max_iters=60, **options)
    return [found.x, found.status, found.iterations, found.residual_norm]


@pytest.mark.parametrize("restart", [8, 20])
@pytest.mark.parametrize(
    "options",
    [{}, {"orthogonalization": "cgs2"}, {"basis_dtype": torch.float32}, {"basis_dtype": torch.bfloat16},
     {"M": lambda v: v / 3}, {"M": lambda v: v / 3, "flexible": True}],
)  # fmt: skip
@pytest.mark.parametrize("variant", [0, 5, SPLIT])
def test_chunks_change_no_bit(simt, monkeypatch, variant, options, restart):
    simt.cuda.force_variant(variant)
    whole = solve(restart=restart, **options)
    monkeypatch.setattr(basis, "LONG", 1)
    monkeypatch.setattr(basis, "SHIFT", 3)
    cut = solve(restart=restart, **options)
    assert all(torch.equal(a, b) for a, b in zip(cut, whole, strict=True))


@pytest.mark.usefixtures("in_chunks")
def test_a_graph_is_captured_anew_when_the_basis_grows(monkeypatch):
    captures = []
    monkeypatch.setattr(graphs, "captured", lambda launch: captures.append(1) or launch)
    plain = solve(restart=20)
    replayed = solve(restart=20, workspace=Workspace(graphs=True))
    assert all(torch.equal(a, b) for a, b in zip(replayed, plain, strict=True))
    assert len(captures) == 3  # after the first step, and for rows 8 and 16


def test_a_long_restart_costs_what_its_steps_write():
    A, b = problem(n=1000, batch=2)
    space = Workspace()
    result = gmres(A, b, rtol=1e-6, restart=900, backend="simt", workspace=space)
    assert result.converged.all()
    steps = int(result.iterations.max())
    assert steps < 32
    rows = 1024  # of 1,000 unknowns, padded
    triangles = 2 * 8 * (900 * 901 // 2) * 2  # R, and the Gram triangle of split-n
    assert space.nbytes < 2 * 8 * rows * (32 + 10) + triangles + 2 * 8 * 900 * 40
    before = space.nbytes
    gmres(A, b, rtol=1e-6, restart=900, backend="simt", workspace=space)
    assert space.nbytes == before


@pytest.mark.parametrize("rows", [129, 4096, 4097, 30000])
def test_there_are_never_more_chunks_than_places_for_them(rows):
    sizes = []

    def take(name, shape, dtype):
        sizes.append((name, shape[1]))
        return torch.empty(0)

    grown = basis.GrowingBasis(take, 1, rows, 16, torch.float32)
    for row in range(rows):
        if grown.lacks(row):
            grown.grow()
        assert not grown.lacks(row)
    assert sum(size for _, size in sizes) == rows
    assert len({name for name, _ in sizes}) == len(sizes) <= basis.MOST_CHUNKS
