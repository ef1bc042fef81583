"""Universal rules, tried on systems that hypothesis invents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from soae_ext.gmres import Status, gmres
from tests.problems import residual, vectors

EPS = {torch.float32: 1.2e-7, torch.float64: 2.3e-16}


@st.composite
def systems(draw):
    """Any square batch: well conditioned, ill conditioned, symmetric indefinite, low rank, or with zero rows."""
    batch, n = draw(st.integers(1, 4)), draw(st.integers(1, 14))
    seed = draw(st.integers(0, 2**20))
    kind = draw(st.sampled_from(["random", "shifted", "indefinite", "lowrank", "zero-rows", "triangular", "rotation"]))
    A = vectors(batch, n, n, seed=seed)
    if kind == "shifted":
        A = A / n**0.5 + 3 * torch.eye(n, dtype=A.dtype)
    elif kind == "indefinite":
        A = (A + A.mT) / 2
    elif kind == "lowrank":
        A = A[:, :, : max(1, n // 3)] @ A[:, : max(1, n // 3), :]
    elif kind == "zero-rows":
        A[:, ::2] = 0
    elif kind == "triangular":
        A = A.triu()
    elif kind == "rotation":
        A = torch.roll(torch.eye(n, dtype=A.dtype), 1, 0).repeat(batch, 1, 1)
    scale = 2.0 ** draw(st.integers(-20, 20))
    return A * scale, vectors(batch, n, seed=seed + 1)


solves = {
    "restart": st.integers(1, 16),
    "rtol": st.sampled_from([1e-2, 1e-5, 1e-9]),
    "max_iters": st.integers(0, 40),
    "orthogonalization": st.sampled_from(["mgs", "cgs2"]),
}


def _settings(backend):
    return settings(
        max_examples=15 if backend == "simt" else 60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        derandomize=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_right_answer_or_honest_answer(backend, device, dtype):
    @_settings(backend)
    @given(systems(), st.fixed_dictionaries(solves), st.booleans())
    def check(system, arguments, start):
        A, b = (t.to(dtype) for t in system)
        x0 = vectors(*b.shape, seed=99, dtype=dtype) if start else None
        result = gmres(
            A.to(device),
            b.to(device),
            None if x0 is None else x0.to(device),
            history=True,
            backend=backend,
            **arguments,
        )
        x, status = result.x.cpu(), result.status.cpu()
        norm = b.double().norm(dim=1)
        true = residual(A, x, b)
        floor = 50 * EPS[dtype] * (norm + A.double().flatten(1).norm(dim=1) * x.double().norm(dim=1))
        reported = result.residual_norm.cpu().double()
        assert bool(x.isfinite().all())
        assert set(status.tolist()) <= {0, 1, 2, 3}
        # the residual is the true one, and it never exceeds the start's
        assert ((reported - true).abs() <= floor).all()
        assert (true <= residual(A, torch.zeros_like(b) if x0 is None else x0, b) + floor).all()
        # a verdict means what it says
        limit = arguments["rtol"] * norm
        assert torch.equal(result.converged.cpu(), status == Status.CONVERGED)
        assert (reported[status == Status.CONVERGED] <= limit[status == Status.CONVERGED] * (1 + 1e-6)).all()
        assert (reported[status != Status.CONVERGED] > limit[status != Status.CONVERGED] * (1 - 1e-6)).all()
        count = result.iterations.cpu()
        assert (count <= arguments["max_iters"]).all()
        assert (count[status == Status.MAX_ITERS] == arguments["max_iters"]).all()
        # one column of history per iteration; inside a cycle estimates never rise
        history = result.residual_history.cpu().double()
        assert ((~history.isnan()).sum(1) == count + 1).all()
        first = history[:, : min(arguments["restart"], A.shape[1]) + 1]
        falls = (first.diff(dim=1) <= 1e-5 * first[:, :-1]) | first.diff(dim=1).isnan()
        assert falls.all()

    check()


def test_backends_agree_on_any_system(backend, device):
    """In float64 and away from the tolerance, every backend takes the reference's steps."""

    @_settings(backend)
    @given(systems(), st.fixed_dictionaries(solves))
    def check(system, arguments):
        A, b = system
        expected = gmres(A, b, backend="reference", **arguments)
        result = gmres(A.to(device), b.to(device), backend=backend, **arguments)
        both = expected.converged & result.converged.cpu()
        norm = b.norm(dim=1)
        worse = result.residual_norm.cpu() > 1.5 * expected.residual_norm + (arguments["rtol"] + 1e-10) * norm
        assert not worse.any()
        close = (result.iterations.cpu() - expected.iterations).abs() <= 1
        assert close[both].all()

    check()


def test_any_shape_of_the_batch_gives_the_same_systems(backend, device):
    @_settings(backend)
    @given(systems(), st.integers(1, 3))
    def check(system, copies):
        A, b = system
        arguments = {"rtol": 1e-8, "restart": 5, "max_iters": 30, "backend": backend}
        one = gmres(A.to(device), b.to(device), **arguments)
        many = gmres(A.repeat(copies, 1, 1).to(device), b.repeat(copies, 1).to(device), **arguments)
        for c in range(copies):
            part = slice(c * b.shape[0], (c + 1) * b.shape[0])
            gap = (many.residual_norm[part] - one.residual_norm).abs().cpu()
            assert (gap <= 1e-7 * b.norm(dim=1)).all()

    check()
