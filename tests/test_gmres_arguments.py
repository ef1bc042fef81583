"""Bad input gets one error that names the argument and the remedy, before the operator is called once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from torch._subclasses.fake_tensor import FakeTensorMode

from soae_ext import _native
from soae_ext.gmres import GMRESResult, Status, Workspace, gmres, minres

b = torch.ones(2, 5)
eye = torch.eye(5)


def never(v):
    raise AssertionError("the operator was called")


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        ({"b": torch.ones(5)}, ValueError, r"b: .*add a batch dimension: b\[None\]"),
        ({"b": torch.tensor(1.0)}, ValueError, "batch dimension"),
        ({"b": b.half()}, TypeError, r"b: .*float16.*b\.float\(\)"),
        ({"b": b.bfloat16()}, TypeError, "b: .*bfloat16"),
        ({"b": b.long()}, TypeError, "b: .*int64"),
        ({"b": b.bool()}, TypeError, "b: .*bool"),
        ({"b": b.to(torch.complex64)}, NotImplementedError, "b: complex"),
        ({"b": b.numpy()}, TypeError, r"b: .*ndarray.*torch\.as_tensor"),
        ({"b": b.to_sparse()}, ValueError, "b: .*to_dense"),
        ({"b": b.clone().requires_grad_()}, NotImplementedError, r"b: gradients.*b\.detach\(\)"),
        ({"A": 3}, TypeError, "A: expected a callable or a tensor"),
        ({"A": np.eye(5, dtype=np.float32)}, TypeError, r"A: .*torch\.from_numpy"),
        ({"A": torch.eye(4)}, ValueError, r"A: .*\(5, 5\).*\(2, 5, 5\).*got \(4, 4\)"),
        ({"A": eye.expand(3, 5, 5)}, ValueError, "A: "),
        ({"A": eye.double()}, TypeError, r"A: dtype.*\.to\(b\.dtype\)"),
        ({"A": eye.clone().requires_grad_()}, NotImplementedError, r"A: gradients.*A\.detach\(\)"),
        ({"A": eye.to("meta")}, ValueError, "A: on meta"),
        ({"A": eye.to_sparse_bsr((1, 1))}, ValueError, "A: layout"),
        ({"A": eye.to_sparse(1)}, ValueError, "A: a hybrid sparse tensor"),
        ({"b": b.to("meta")}, RuntimeError, "b: has no storage"),
        ({"orthogonalization": ["mgs"]}, ValueError, "orthogonalization: unknown"),
        ({"rtol": [1e-5, 1e-5]}, TypeError, r"rtol: expected a float, or a \(B,\) tensor"),
        ({"rtol": torch.tensor(1j)}, TypeError, "rtol: expected real numbers"),
        ({"M": "jacobi"}, TypeError, "M: expected a callable"),
        ({"M": torch.eye(6)}, ValueError, "M: "),
        ({"x0": torch.ones(2, 4)}, ValueError, r"x0: shape \(2, 4\)"),
        ({"x0": b.double()}, TypeError, "x0: dtype"),
        ({"x0": [0.0] * 5}, TypeError, "x0: expected a tensor"),
        ({"x0": b.to("meta")}, ValueError, "x0: on meta"),
        ({"rtol": -1e-5}, ValueError, "rtol: .*negative or NaN"),
        ({"rtol": math.nan}, ValueError, "rtol: "),
        ({"atol": -1.0}, ValueError, "atol: "),
        ({"rtol": torch.tensor([1e-5, math.nan])}, ValueError, "rtol: negative or NaN"),
        ({"rtol": torch.full((3,), 1e-5)}, ValueError, r"rtol: expected a float or a tensor \(2,\)"),
        ({"rtol": "tight"}, TypeError, "rtol: expected a float"),
        ({"rtol": None}, TypeError, "rtol: expected a float"),
        ({"restart": 0}, ValueError, "restart: 0 is too small: it must be >= 1"),
        ({"restart": 2.5}, TypeError, "restart: expected an integer"),
        ({"restart": True}, TypeError, "restart: "),
        ({"max_iters": -1}, ValueError, "max_iters: -1 is too small"),
        ({"max_iters": "all"}, TypeError, "max_iters: "),
        ({"orthogonalization": "householder"}, ValueError, "orthogonalization: unknown 'householder'.*'cgs2'"),
        ({"basis_dtype": torch.float64}, ValueError, r"basis_dtype: torch\.float64 is wider.*None.*b\.double\(\)"),
        ({"basis_dtype": torch.int8}, ValueError, r"basis_dtype: unknown torch\.int8: use None.*torch\.float16"),
        ({"basis_dtype": torch.complex64}, ValueError, "basis_dtype: unknown"),
        ({"basis_dtype": "float16"}, ValueError, "basis_dtype: unknown 'float16'"),
        ({"callback": 3}, TypeError, "callback: "),
        ({"workspace": {}}, TypeError, r"workspace: expected a Workspace\(\)"),
        ({"backend": "tpu"}, ValueError, "backend: unknown 'tpu'.*'auto'.*'reference'"),
        ({"backend": "cuda"}, RuntimeError, "backend: 'cuda'"),
    ],
)
def test_refusals(arguments, error, names):
    arguments = {"A": never, "b": b, **arguments}
    with pytest.raises(error, match=names):
        gmres(arguments.pop("A"), arguments.pop("b"), **arguments)


def test_without_grad_mode_nothing_asks_for_gradients():
    with torch.no_grad():
        assert bool(gmres(eye.clone().requires_grad_(), b.clone().requires_grad_()).converged.all())


@pytest.mark.parametrize(
    ("returned", "error", "names"),
    [
        (lambda v: None, TypeError, "A: must return a dense tensor, returned NoneType"),
        (lambda v: v[:1], ValueError, r"A: must return a tensor of b's shape \(2, 5\), got \(1, 5\)"),
        (lambda v: v.flatten(), ValueError, "A: must return"),
        (lambda v: v.double(), TypeError, r"A: must return torch\.float32"),
    ],
)
def test_a_wrong_operator_is_named(returned, error, names):
    with pytest.raises(error, match=names):
        gmres(returned, b)
    with pytest.raises(error, match=names.replace("A: ", "M: ", 1)):
        gmres(eye, b, M=returned)


def test_inside_vmap_says_that_it_is_batched_already():
    with pytest.raises(RuntimeError, match="outside vmap"):
        torch.func.vmap(lambda v: gmres(eye, v).x)(b[None])


def test_fake_tensors_are_refused():
    with FakeTensorMode(allow_non_fake_inputs=True):
        for fake in (torch.ones(2, 5), b):
            with pytest.raises(RuntimeError, match="real tensors"):
                gmres(lambda v: v, fake)


def test_minres_names_itself():
    with pytest.raises(NotImplementedError, match="minres"):
        minres(eye, b)


def test_falls_back_to_the_reference_with_one_warning(monkeypatch, recwarn):
    monkeypatch.setattr(_native, "extension", None)
    monkeypatch.setattr(_native, "missing", "No module named 'soae_ext._C'")
    monkeypatch.setattr(_native, "_warned", set())
    for _ in range(2):
        assert bool(gmres(eye, b).converged.all())
    messages = [str(w.message) for w in recwarn if "reference" in str(w.message)]
    assert len(messages) == 1
    assert "pip install ." in messages[0]
    with pytest.raises(RuntimeError, match=r"backend: 'cpu' is not available.*pip install \."):
        gmres(eye, b, backend="cpu")


def test_result_reports_and_raises():
    good = gmres(eye, b)
    assert isinstance(good, GMRESResult)
    assert good.raise_for_status() is good
    assert "2/2 converged" in repr(good)
    assert len(repr(good)) < 200
    assert good != gmres(eye, b)
    with pytest.raises(AttributeError):
        good.x = b
    bad = gmres(torch.diag(torch.tensor([1.0, 2, 3, 4, 0])), torch.cat([b, torch.full((1, 5), math.nan)]))
    assert [Status(s).name for s in bad.status.tolist()] == ["BREAKDOWN", "BREAKDOWN", "NON_FINITE"]
    with pytest.raises(RuntimeError, match=r"3 of 3 systems did not converge \(2 BREAKDOWN, 1 NON_FINITE\); system 0"):
        bad.raise_for_status()
    assert (good.status.dtype, good.converged.dtype, good.iterations.dtype) == (torch.int8, torch.bool, torch.int32)


def test_workspace_repr_and_type():
    workspace = Workspace()
    gmres(eye, b, workspace=workspace)
    assert "MiB" in repr(workspace)
    assert workspace.nbytes > 0


def test_compiled_callers_may_contain_a_solve():
    """torch.compile leaves the solver alone instead of tracing into it."""

    def solve_twice(v):
        return 2 * gmres(eye, v, rtol=1e-6).x

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    assert torch.allclose(torch.compile(solve_twice, backend=counter)(b), 2 * b)
    assert counter.frame_count <= 2  # what stands before and after the solve, none of its inside
