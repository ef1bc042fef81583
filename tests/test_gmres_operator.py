"""What A and M may rely on, and what they may do: the operator's contract."""

from __future__ import annotations

import math

import torch

from soae_ext.gmres import gmres
from tests.problems import matrices, tight, times, vectors


def test_what_the_operator_returns_is_neither_written_to_nor_kept(backend, device, dtype):
    b = vectors(3, 12, seed=33, dtype=dtype).to(device)
    expected = gmres(lambda v: v.clone(), b, rtol=tight(dtype), backend=backend)
    identity = gmres(lambda v: v, b, rtol=tight(dtype), backend=backend)  # returns its input
    assert torch.equal(identity.x, expected.x)

    A = matrices(3, 12, 34, dtype=dtype).to(device)
    buffer = torch.empty_like(b)

    def reusing(v):
        torch.bmm(A, v[:, :, None], out=buffer[:, :, None])
        return buffer

    def strided(v):
        return torch.bmm(A, v[:, :, None])[..., 0].repeat_interleave(2, 1)[:, ::2]

    plain = gmres(lambda v: torch.bmm(A, v[:, :, None])[..., 0], b, rtol=tight(dtype), restart=4, backend=backend)
    for operator in (reusing, strided):
        assert torch.equal(gmres(operator, b, rtol=tight(dtype), restart=4, backend=backend).x, plain.x)

    constant = torch.ones(12, dtype=dtype, device=device)
    before = constant.clone()
    gmres(lambda v: constant.expand(3, 12), b, max_iters=6, restart=3, backend=backend)  # expanded: zero strides
    assert torch.equal(constant, before)


def test_the_operator_gets_scratch_also_behind_a_preconditioner(backend, device, dtype):
    A, b = matrices(3, 12, 38, dtype=dtype).to(device), vectors(3, 12, seed=39, dtype=dtype).to(device)
    kept = []

    def M(v):
        out = (v * 0.25).T.contiguous().T  # not contiguous
        kept.append((out, out.clone()))
        return out

    def hostile(v):
        out = times(A)(v.view(-1).view(3, 12))
        v.requires_grad_(True).detach().fill_(math.nan)
        return out

    for flexible in (False, True):
        result = gmres(hostile, b, M=M, flexible=flexible, rtol=tight(dtype), restart=5, backend=backend)
        assert bool(result.converged.all())
        assert all(torch.equal(now, then) for now, then in kept)


def test_autocast_reaches_the_operator_alone(backend, device):
    A, b = matrices(2, 24, 40, dtype=torch.float32).to(device), vectors(2, 24, seed=41, dtype=torch.float32).to(device)
    seen = []

    def operator(v):
        seen.append(torch.is_autocast_enabled(v.device.type))
        return times(A.double())(v.double()).float()

    plain, product = gmres(A, b, restart=8, backend=backend), gmres(operator, b, restart=8, backend=backend)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(gmres(A, b, restart=8, backend=backend).x, plain.x)
        seen.clear()
        assert torch.equal(gmres(operator, b, restart=8, backend=backend).x, product.x)
    assert all(seen)


def test_a_lazily_negated_right_hand_side(backend, device):
    b = torch.imag(torch.tensor([[1 + 2j, 3 - 1j]], device=device).conj())
    assert b.is_neg()
    result = gmres(lambda v: 2 * v, b, backend=backend)
    torch.testing.assert_close(result.x, torch.tensor([[-1.0, 0.5]], device=device))


def test_the_operator_runs_in_the_callers_grad_mode(backend, device):
    b = vectors(2, 6, seed=35).to(device)
    weight = torch.tensor(3.0, dtype=torch.float64, device=device, requires_grad=True)
    modes = []

    def operator(v):
        modes.append(torch.is_grad_enabled())
        return weight * v

    result = gmres(operator, b, backend=backend)
    assert not result.x.requires_grad
    with torch.no_grad():
        gmres(operator, b, backend=backend)
    with torch.inference_mode():
        gmres(operator, b, backend=backend)
    assert modes[0] is True
    assert modes[-1] is False
