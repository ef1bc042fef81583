"""A host that hears of every step two steps late, as on a GPU: what it does with the news, on the SIMT build."""

from __future__ import annotations

import pytest
import torch

from soae_ext import _native
from soae_ext.gmres import gmres

LAG = 2


class LatePoll:
    """`_native.Poll` without a GPU: a slot can be read once the host has gone on by as many steps as it may be late."""

    def __init__(self, active, outcome):
        self.active, self.outcome = active, outcome
        self.counts, self.outcomes, self.newest = {}, {}, 0

    def post(self, slot):
        self.newest = slot
        self.counts[slot] = int(self.active[slot])
        if self.outcome is not None:
            self.outcomes[slot] = self.outcome.clone()

    def read(self, slot):
        assert slot == 0 or self.newest - slot >= LAG, "the host waits for a step that may not be done"
        return self.counts[slot]

    def outcomes_at(self, slot):
        assert self.newest - slot >= LAG
        return self.outcomes[slot]


@pytest.fixture(autouse=True)
def late(monkeypatch, simt_alone):
    monkeypatch.setattr(_native, "poll_for", LatePoll)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: type("Stream", (), {"cuda_stream": 0})())


class Diagonal:
    """Counts the systems that every product is made for."""

    def __init__(self, diagonal, sizes=None):
        self.diagonal, self.sizes = diagonal, [] if sizes is None else sizes

    def __call__(self, v):
        self.sizes.append(len(v))
        return v * self.diagonal

    def restrict(self, index):
        return Diagonal(self.diagonal[index], self.sizes)


def problem(batch=8, n=60):
    """System i has i + 1 different eigenvalues: it is solved in as many steps."""
    generator = torch.Generator().manual_seed(0)
    values = torch.linspace(1, 10, batch, dtype=torch.float64)
    kinds = torch.randint(0, 2**30, (batch, n), generator=generator)
    diagonal = values[kinds % torch.arange(1, batch + 1)[:, None]]
    return diagonal, torch.randn(batch, n, dtype=torch.float64, generator=generator)


def test_finished_systems_leave_the_operator_two_steps_late():
    diagonal, b = problem()
    whole, narrowed = Diagonal(diagonal), Diagonal(diagonal)
    plain = gmres(whole, b, rtol=1e-10, restart=30, backend="simt")
    compact = gmres(narrowed, b, rtol=1e-10, restart=30, backend="simt", compact=True)
    assert plain.converged.all()
    assert compact.converged.all()
    torch.testing.assert_close(compact.x, plain.x, rtol=1e-9, atol=1e-10)
    assert compact.operator_calls == plain.operator_calls == len(narrowed.sizes)
    assert set(whole.sizes) == {8}
    # System i stops at step i + 1: four are left after the fourth step, which is heard of two steps later.
    first = narrowed.sizes.index(4)
    assert first == 6
    assert narrowed.sizes[first:-1] == sorted(narrowed.sizes[first:-1], reverse=True)


def test_surplus_steps_are_counted_and_change_nothing():
    diagonal, b = problem()
    late = gmres(Diagonal(diagonal), b, rtol=1e-10, restart=30, backend="simt")
    prompt = gmres(Diagonal(diagonal), b, rtol=1e-10, restart=30, backend="reference")
    assert late.operator_calls == prompt.operator_calls + LAG
    assert late.iterations.tolist() == list(range(1, 9))
    torch.testing.assert_close(late.x, prompt.x, rtol=1e-9, atol=1e-10)


def test_near_the_end_of_a_cycle_the_batch_stays_whole():
    diagonal, b = problem()
    operator = Diagonal(diagonal)
    result = gmres(operator, b, rtol=1e-10, restart=8, backend="simt", compact=True)
    assert result.converged.all()
    assert set(operator.sizes[:8]) == {8}
