"""Cross-entropy on a ReLU network with C classes has a Hessian of rank C - 1: exact solves end after so many steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from soae_ext.attacks.losses import Objective
from soae_ext.data import load_digits
from soae_ext.gmres import GMRESResult, Status, gmres
from soae_ext.hvp import hessian_operator
from soae_ext.models import digits_network

CLASSES = 10


def solve(dtype: torch.dtype, rtol: float, stable: bool = False) -> tuple[Tensor, Tensor]:
    """Status and iterations of H d = g on the 1,000 shipped digits."""
    model, data = digits_network().to(dtype), load_digits()

    def usual(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x), y, reduction="none")

    loss = Objective(model, "ce") if stable else usual
    results: list[GMRESResult] = []
    for x, y in zip(data.images.to(dtype).split(250), data.labels.split(250), strict=True):
        H = hessian_operator(loss, x, y)
        results.append(gmres(H, H.gradient, rtol=rtol, restart=20, max_iters=20))
    return torch.cat([r.status for r in results]), torch.cat([r.iterations for r in results])


@pytest.mark.slow
def test_float64_solves_take_at_most_the_rank():
    status, iterations = solve(torch.float64, 1e-6)
    assert (status == Status.CONVERGED).all()
    assert int(iterations.max()) == CLASSES - 1


@pytest.mark.slow
def test_float32_solves_with_the_loss_of_the_attacks_take_at_most_the_rank():
    status, iterations = solve(torch.float32, 1e-3, stable=True)
    assert (status == Status.CONVERGED).all()
    assert int(iterations.max()) <= CLASSES - 1


@pytest.mark.slow
def test_float32_cross_entropy_costs_confident_predictions_their_convergence_but_never_a_wrong_claim():
    """p_y - 1 has no digits left where p_y rounds to 1: about one system in five ends with another verdict."""
    status, iterations = solve(torch.float32, 1e-3)
    converged = status == Status.CONVERGED
    assert 0.7 < converged.double().mean() < 0.9
    assert ((iterations <= CLASSES - 1) & converged).double().mean() > 0.7
    unsolved = {Status.STAGNATED, Status.BREAKDOWN, Status.MAX_ITERS}
    assert set(status[~converged].tolist()) <= {int(s) for s in unsolved}


@pytest.mark.slow
def test_an_exhausted_space_is_noticed_one_step_after_the_rank():
    """With a tolerance that cannot be met the space ends by breakdown."""
    status, iterations = solve(torch.float64, 0.0, stable=True)
    assert (status == Status.BREAKDOWN).all()
    assert int(iterations.max()) == CLASSES


@pytest.mark.slow
def test_the_usual_cross_entropy_costs_a_few_systems_one_step_more():
    """Rounding in p_y - 1, beside eigenvalues of H that span up to 1e12."""
    status, iterations = solve(torch.float64, 0.0)
    assert (status == Status.BREAKDOWN).all()
    assert (iterations <= CLASSES).double().mean() > 0.99
    assert int(iterations.max()) <= CLASSES + 1
