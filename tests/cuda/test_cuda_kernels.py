"""The kernels on a GPU: what an execution on the CPU cannot show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from soae_ext import _native
from soae_ext.gmres import gmres
from tests import kernel_harness as kh
from tests.kernel_harness import KernelSolve, Problem, check_arnoldi, least_squares_oracle

pytestmark = pytest.mark.cuda

# (batch, n in float32) that reach the five block variants, aligned and not, and split-n; float64 takes half of n.
SHAPES = [(200, 250), (200, 784), (140, 1001), (140, 3072), (140, 6101), (140, 12288), (2, 12300), (1, 150528)]


@pytest.fixture(scope="module", autouse=True)
def extension():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    if _native.extension is None:
        pytest.skip(f"the compiled extension is missing: {_native.missing}")
    if not hasattr(_native.extension, "cuda"):
        pytest.skip("the extension was built without CUDA")
    return _native.extension


@pytest.fixture(params=["mgs", "cgs2"])
def orthogonalization(request):
    return request.param


def problem_of(shape: tuple[int, int], dtype: torch.dtype, **options: float) -> Problem:
    batch, n = shape
    return Problem(batch, n * 4 // dtype.itemsize, dtype, device="cuda", **options)


def snapshot(s: KernelSolve) -> list[torch.Tensor]:
    arrays = (s.x, s.candidate, s.direction, s.basis, s.r, s.rotations, s.g, s.estimates, s.systems)
    return [a.contiguous().view(torch.uint8).clone() for a in arrays]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_cycle_matches_float64(extension, dtype, orthogonalization, shape):
    """Every array starts as NaN: see kernel_harness."""
    restart = 6
    problem = problem_of(shape, dtype)
    s = KernelSolve(extension, problem.b, restart=restart, rtol=0.0, orthogonalization=orthogonalization)
    s.begin(problem)
    for j in range(restart):
        s.step(j, problem(s.direction))
    check_arnoldi(s, problem, systems=3)
    s.finish()
    s.close(problem(s.candidate))

    few = problem.first(3)
    estimates, x = least_squares_oracle(few, restart)
    eps = torch.finfo(dtype).eps
    beta = few.b.double().norm(dim=1, keepdim=True).cpu().numpy()
    np.testing.assert_allclose(s.estimates[:3].cpu().numpy() / beta, estimates / beta, rtol=0, atol=50 * eps)
    scale = np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(s.x[:3].double().cpu().numpy() / scale, x / scale, rtol=0, atol=50 * eps)
    measured = torch.linalg.vector_norm(problem.b.double() - problem(s.candidate).double(), dim=1)
    torch.testing.assert_close(s.residual, measured, rtol=1e-4, atol=10 * eps * float(beta.max()))


@pytest.mark.parametrize("shape", [(140, 3072), (1, 60000)], ids=str)
def test_a_long_cycle_matches_float64(extension, dtype, orthogonalization, shape):
    problem = problem_of(shape, dtype, coupling=1.5)
    s = KernelSolve(extension, problem.b, restart=45, rtol=0.0, orthogonalization=orthogonalization)
    s.begin(problem)
    for j in range(45):
        s.step(j, problem(s.direction))
    check_arnoldi(s, problem, systems=2)


@pytest.mark.parametrize("shape", [(140, 1001), (1, 150528)], ids=str)
def test_a_run_repeats_bitwise(extension, dtype, orthogonalization, shape):
    problem = problem_of(shape, dtype)
    runs = []
    for _ in range(2):
        s = KernelSolve(extension, problem.b, restart=4, rtol=1e-4, orthogonalization=orthogonalization)
        assert set(s.run(problem).status) == {kh.CONVERGED}
        runs.append(snapshot(s))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("shape", [(140, 784), (2, 150528)], ids=str)
def test_a_side_stream_is_honoured(extension, shape):
    """Work queued on the stream just before a launch must be done when the launch reads it."""
    problem = problem_of(shape, torch.float32)
    expected = KernelSolve(extension, problem.b, restart=4, rtol=1e-4).run(problem).x
    torch.cuda.synchronize()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        s = KernelSolve(extension, problem.b, restart=4, rtol=1e-4)
        s.stream = stream.cuda_stream

        def slow(v: torch.Tensor) -> torch.Tensor:
            torch.cuda._sleep(2_000_000)
            return problem(v)

        result = s.run(slow).x
    stream.synchronize()
    assert torch.equal(result, expected)


def test_the_device_guard_restores_the_current_device(extension):
    if torch.cuda.device_count() < 2:
        problem = problem_of((3, 784), torch.float32)
        KernelSolve(extension, problem.b, restart=4, rtol=1e-4).run(problem)
        assert torch.cuda.current_device() == 0
        return
    batch = Problem(3, 784, torch.float32, device="cuda:1")
    assert torch.cuda.current_device() == 0
    s = KernelSolve(extension, batch.b, restart=4, rtol=1e-4, device_index=1)
    assert set(s.run(batch).status) == {kh.CONVERGED}
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("shape", [(140, 784), (2, 150528)], ids=str)
def test_a_step_can_be_captured(extension, dtype, orthogonalization, shape):
    problem = problem_of(shape, dtype)
    eager = KernelSolve(extension, problem.b, restart=3, rtol=0.0, orthogonalization=orthogonalization)
    captured = KernelSolve(extension, problem.b, restart=3, rtol=0.0, orthogonalization=orthogonalization)
    for s in (eager, captured):
        s.begin(problem)
    w = problem(captured.direction)
    torch.cuda.synchronize()

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.stream = torch.cuda.current_stream().cuda_stream
        captured.step(0, w)
    assert captured.iterations.tolist() == [0] * problem.batch  # captured, not run
    graph.replay()
    eager.step(0, problem(eager.direction))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(snapshot(eager), snapshot(captured), strict=True))


def test_no_launch_synchronizes(extension, dtype):
    for shape in ((140, 784), (2, 150528)):
        problem = problem_of(shape, dtype)
        s = KernelSolve(extension, problem.b, restart=3, rtol=0.0)
        z = torch.zeros_like(problem.b)
        torch.cuda.synchronize()
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            s.begin(problem)
            for j in range(3):
                s.step(j, problem(s.direction))
            s.finish(preconditioned=True)
            s.correct(z)
            s.close(problem(s.candidate))
        finally:
            torch.cuda.set_sync_debug_mode(mode)


def test_a_launch_does_not_wait_for_the_gpu(extension):
    """The sync debug mode sees torch's own calls only; the stream must still be busy when the launchers are back."""
    problem = problem_of((140, 784), torch.float32)
    s = KernelSolve(extension, problem.b, restart=3, rtol=0.0)
    s.begin(problem)
    w = problem(s.direction)
    s.step(0, w)
    torch.cuda.synchronize()
    s.begin(problem)
    torch.cuda._sleep(2_000_000_000)
    s.step(0, w)
    s.finish()
    s.close(w)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


def test_breakdown_and_a_non_finite_column_leave_neighbours_alone(extension, dtype, orthogonalization):
    for shape in ((140, 1001), (3, 60001)):
        problem = problem_of(shape, dtype)
        options = {"restart": 4, "rtol": 1e-4, "orthogonalization": orthogonalization}
        clean = KernelSolve(extension, problem.b, **options).run(problem)
        b = problem.b.clone()
        b[0] = 0.0
        b[0, 3] = 1.0

        def faulty(v: torch.Tensor, problem: Problem = problem) -> torch.Tensor:
            w = problem(v)
            w[0] = 2 * v[0]  # b[0] is an eigenvector
            w[1, -1] = float("nan")
            return w

        result = KernelSolve(extension, b, **options).run(faulty)
        assert result.status[:2] == [kh.CONVERGED, kh.NON_FINITE]
        assert result.iterations[:2] == [1, 0]
        assert torch.equal(result.x[0], b[0] / 2)
        assert (result.x[1] == 0).all()
        assert torch.equal(result.x[2:], clean.x[2:])


def test_magnitudes_near_the_ends_of_the_range(extension, dtype):
    exponent = 100 if dtype == torch.float32 else 830
    for shape in ((140, 1001), (2, 60001)):
        plain = problem_of(shape, dtype)
        expected = KernelSolve(extension, plain.b, restart=4, rtol=1e-3).run(plain)
        for of_a, of_b in ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, -1)):
            scaled = problem_of(shape, dtype, scale_a=2.0 ** (exponent * of_a), scale_b=2.0 ** (exponent * of_b))
            result = KernelSolve(extension, scaled.b, restart=4, rtol=1e-3).run(scaled)
            assert result.iterations == expected.iterations
            assert torch.equal(result.x * 2.0 ** (exponent * (of_a - of_b)), expected.x)


def test_gmres_end_to_end(extension, dtype):
    rtol = 1e-5 if dtype == torch.float32 else 1e-11
    problem = problem_of((130, 3072), dtype)
    result = gmres(problem, problem.b, rtol=rtol, restart=10, backend="cuda")
    assert bool(result.converged.all())
    assert (problem.residual(result.x) <= 1.1 * rtol * problem.b.double().norm(dim=1)).all()
