"""Steps that are captured once and replayed: kernels that know themselves which step they take, and the loop around."""

from __future__ import annotations

import pytest
import torch

from soae_ext._solver import graphs
from soae_ext.gmres import Status, Workspace, gmres
from tests.kernel_harness import SPLIT, KernelSolve, Problem

pytestmark = pytest.mark.usefixtures("simt_alone")


class Recorder:
    """Stands in for CUDA graphs: what was captured once is run at every replay."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def captured(self, launch):
        self.captures += 1

        def replay():
            self.replays += 1
            launch()

        return replay


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setattr(graphs, "captured", made.captured)
    return made


@pytest.mark.parametrize("schedule", ["in-order", "reversed", "shuffled"])
@pytest.mark.parametrize("orthogonalization", ["mgs", "cgs2"])
@pytest.mark.parametrize("variant", range(SPLIT + 1))
def test_a_step_without_its_number_is_bitwise_the_step_with_it(simt, variant, orthogonalization, schedule):
    simt.cuda.force_variant(variant)
    simt.set_schedule(schedule, 1)
    problem = Problem(3, 101, torch.float64)
    ends = []
    for numbered in (True, False):
        s = KernelSolve(simt, problem.b, restart=5, rtol=1e-6, orthogonalization=orthogonalization)
        s.begin(problem)
        for _ in range(2):
            for j in range(5):
                s.step(j if numbered else -1, problem(s.direction))
                assert int(s.active[j + 1]) <= 3
            s.finish()
            s.close(problem(s.direction))
        ends.append([t.clone() for t in (s.x, s.r, s.rotations, s.estimates, s.iterations, s.active)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def systems(batch: int, n: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    diagonal = torch.rand(batch, n, generator=generator, dtype=dtype) + 0.5
    diagonal[0] = 2.0  # done after one step
    diagonal[1, 2:] = 0.0  # singular: breaks down
    b = torch.randn(batch, n, generator=generator, dtype=dtype)
    b[2] = 0.0
    return diagonal, b


@pytest.mark.parametrize("n", [40, 1100])
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("options", [{}, {"x0": True}, {"history": True}, {"max_iters": 9}])
def test_a_solve_by_replays_is_bitwise_the_solve_by_launches(simt, recorder, n, preconditioned, options):
    diagonal, b = systems(5, n)
    calls = 0

    def A(v):
        nonlocal calls
        calls += 1
        return v * diagonal

    options = {"rtol": 1e-10, "restart": 6, "max_iters": 60, "backend": "simt"} | options
    if options.pop("x0", None):
        options["x0"] = torch.ones_like(b)
    if preconditioned:
        options["M"] = lambda v: v / (diagonal + 0.1)
    plain = gmres(A, b, **options)
    replayed = gmres(A, b, workspace=Workspace(graphs=True), **options)
    for field in ("x", "status", "iterations", "residual_norm", "residual_history"):
        ours, theirs = getattr(replayed, field), getattr(plain, field)
        assert ours is theirs is None or torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1)), field
    assert replayed.operator_calls == plain.operator_calls
    assert calls == replayed.operator_calls + plain.operator_calls
    assert replayed.status[2] == Status.CONVERGED
    assert recorder.captures == 1
    steps = replayed.operator_calls - len(options.get("x0", [])[:1])
    assert recorder.replays < steps  # the first step and the true residuals are launched as they are


@pytest.mark.parametrize(
    "options", [{"callback": lambda **state: False}, {"flexible": True, "M": lambda v: v}, {"compact": True}]
)
def test_where_a_step_needs_the_host_it_is_launched(simt, recorder, options):
    class Diagonal:
        def __init__(self, diagonal):
            self.diagonal = diagonal

        def __call__(self, v):
            return v * self.diagonal

        def restrict(self, index):
            return Diagonal(self.diagonal[index])

    diagonal, b = systems(4, 40)
    result = gmres(Diagonal(diagonal + 0.1), b, rtol=1e-8, backend="simt", workspace=Workspace(graphs=True), **options)
    assert result.converged.all()
    assert recorder.captures == 0


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_backends_without_graphs_take_no_notice(recorder, backend):
    diagonal, b = systems(4, 40)
    result = gmres(lambda v: v * (diagonal + 0.1), b, rtol=1e-8, backend=backend, workspace=Workspace(graphs=True))
    assert result.converged.all()
    assert recorder.captures == 0
