"""Bad input of soae_ext.krylov gets one error that names argument and remedy, before the operator is called once."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch

from soae_ext.gmres import Workspace, gmres
from soae_ext.krylov import Arnoldi, arnoldi

v = torch.ones(2, 5)
eye = torch.eye(5)


def never(u):
    raise AssertionError("the operator was called")


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        ({"v": torch.ones(5)}, ValueError, r"arnoldi: v: .*add a batch dimension: v\[None\]"),
        ({"v": v.half()}, TypeError, r"v: .*float16.*v\.float\(\)"),
        ({"v": v.long()}, TypeError, "v: .*int64"),
        ({"v": v.to(torch.complex64)}, NotImplementedError, "v: complex"),
        ({"v": v.to(torch.complex128)}, NotImplementedError, "v: complex"),
        ({"v": v.numpy()}, TypeError, r"v: .*ndarray.*torch\.as_tensor"),
        ({"v": v.to_sparse()}, ValueError, r"v: .*v\.to_dense"),
        ({"v": v.to("meta")}, RuntimeError, "v: has no storage.*call arnoldi outside"),
        ({"v": v.clone().requires_grad_()}, NotImplementedError, r"v: gradients.*v\.detach\(\)"),
        ({"A": 3}, TypeError, "A: expected a callable or a tensor"),
        ({"A": np.eye(5, dtype=np.float32)}, TypeError, r"A: .*torch\.from_numpy"),
        ({"A": torch.eye(4)}, ValueError, r"A: .*\(5, 5\).*for v of shape.*got \(4, 4\)"),
        ({"A": eye.double()}, TypeError, r"A: dtype.*v's.*\.to\(v\.dtype\)"),
        ({"A": eye.clone().requires_grad_()}, NotImplementedError, r"A: gradients.*A\.detach\(\)"),
        ({"A": eye.to("meta")}, ValueError, "A: on meta while v"),
        ({"steps": 0}, ValueError, "steps: 0 is too small: it must be >= 1"),
        ({"steps": -2}, ValueError, "steps: -2 is too small"),
        ({"steps": 2.5}, TypeError, "steps: expected an integer"),
        ({"steps": True}, TypeError, "steps: expected an integer"),
        ({"steps": None}, TypeError, "steps: expected an integer"),
        ({"workspace": {}}, TypeError, r"workspace: expected a Workspace\(\)"),
        ({"backend": "tpu"}, ValueError, "backend: unknown 'tpu'.*'auto'.*'reference'"),
        ({"backend": "cuda"}, RuntimeError, "backend: 'cuda'"),
    ],
)
def test_refusals(arguments, error, names):
    arguments = {"A": never, "v": v, "steps": 3, **arguments}
    with pytest.raises(error, match=f"^arnoldi: .*{names.removeprefix('arnoldi: ')}"):
        arnoldi(arguments.pop("A"), arguments.pop("v"), **arguments)


def test_steps_has_no_default():
    with pytest.raises(TypeError, match="steps"):
        arnoldi(never, v)
    with pytest.raises(TypeError, match="positional"):
        arnoldi(never, v, 3)


@pytest.fixture(scope="module")
def decomposition() -> Arnoldi:
    return arnoldi(torch.diag(torch.arange(1.0, 6.0)), v, steps=3)


@pytest.mark.parametrize(
    ("value", "error", "names"),
    [
        (math.nan, ValueError, "every value must be finite"),
        (math.inf, ValueError, "every value must be finite"),
        (torch.tensor([1.0, math.nan]), ValueError, "every value must be finite"),
        (torch.ones(3), ValueError, r"expected a float or a tensor \(2,\), got shape \(3,\)"),
        (torch.ones(2, 1), ValueError, r"expected a float or a tensor \(2,\)"),
        (torch.tensor(1j), TypeError, "expected real numbers"),
        ("large", TypeError, "expected a float"),
        (None, TypeError, "expected a float"),
        ([1.0, 2.0], TypeError, r"\(B,\) tensor"),
        (10**400, ValueError, "every value must be finite"),
    ],
)
def test_refusals_of_the_methods(decomposition, value, error, names):
    with pytest.raises(error, match=rf"^Arnoldi\.solve: shift: .*{names}"):
        decomposition.solve(value)
    with pytest.raises(error, match=rf"^Arnoldi\.trust_region: radius: .*{names}"):
        decomposition.trust_region(value)


def test_a_radius_is_not_negative(decomposition):
    with pytest.raises(ValueError, match=r"radius: every value must be finite and >= 0, got -1"):
        decomposition.trust_region(-1)
    with pytest.raises(ValueError, match=r"radius: .*>= 0"):
        decomposition.trust_region(torch.tensor([1.0, -1e-30]))


def test_numbers_of_every_kind(decomposition):
    for value in (2, 2.0, np.float32(2.0), torch.tensor(2), torch.tensor([2, 2]), torch.full((2,), 2.0).half()):
        assert torch.equal(decomposition.solve(value), decomposition.solve(2.0))
        assert torch.equal(decomposition.trust_region(value), decomposition.trust_region(2.0))


def test_what_the_operator_returns_is_vetted():
    for bad, error, names in (
        (lambda u: u[:, :4], ValueError, "A: must return a tensor of v's shape"),
        (lambda u: u.double(), TypeError, "A: must return torch.float32 on cpu like v"),
        (lambda u: u.numpy(), TypeError, "A: must return a dense tensor, returned ndarray"),
        (lambda u: u.to_sparse(), TypeError, "A: must return a dense tensor"),
    ):
        with pytest.raises(error, match=f"^arnoldi: {names}"):
            arnoldi(bad, v, steps=2)


def test_a_workspace_serves_one_at_a_time(backend, device):
    start = v.to(device)
    workspace = Workspace()

    def nested(u):
        gmres(lambda w: 2 * w, start, workspace=workspace, backend=backend)
        return u

    with pytest.raises(RuntimeError, match=r"workspace: already used"):
        arnoldi(nested, start, steps=2, workspace=workspace, backend=backend)
    inside, leave = threading.Event(), threading.Event()

    def slow(u):
        inside.set()
        leave.wait(10)
        return u

    thread = threading.Thread(target=lambda: gmres(slow, start, workspace=workspace, backend=backend))
    thread.start()
    inside.wait(10)
    try:
        with pytest.raises(RuntimeError, match=r"^arnoldi: workspace: already used.*Workspace\(\)"):
            arnoldi(lambda u: u, start, steps=2, workspace=workspace, backend=backend)
    finally:
        leave.set()
        thread.join()
    assert arnoldi(lambda u: u, start, steps=2, workspace=workspace, backend=backend).dims.tolist() == [1, 1]


def test_gradients_are_neither_recorded_nor_lost(backend, device):
    """A is called in the caller's grad mode; what comes back carries no graph."""
    weight = torch.linspace(1.0, 2.0, 5, device=device, requires_grad=True)
    modes = []

    def operator(u):
        modes.append(torch.is_grad_enabled())
        return u * weight

    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            a = arnoldi(operator, v.to(device), steps=2, backend=backend)
        assert not a.basis.requires_grad
        assert not a.solve(torch.ones(2, requires_grad=True)).requires_grad
    assert modes == [True, True, False, False]
    with torch.inference_mode():
        assert arnoldi(lambda u: u, v.to(device), steps=2, backend=backend).solve().shape == v.shape


def test_representation():
    a = arnoldi(torch.diag(torch.arange(1.0, 6.0)), v, steps=3)
    assert repr(a) == "Arnoldi(2 × n=5, dims 3 to 3 of 3, 3 operator calls)"
    assert a != arnoldi(torch.diag(torch.arange(1.0, 6.0)), v, steps=3)  # compared by identity: it holds tensors
    with pytest.raises(AttributeError):
        a.dims = a.dims


def test_inside_a_compiled_function():
    A = torch.diag(torch.arange(1.0, 6.0))

    @torch.compile(backend="eager")
    def step(u):
        return arnoldi(A, u, steps=3).trust_region(0.5) + 1

    assert torch.equal(step(v), arnoldi(A, v, steps=3).trust_region(0.5) + 1)
