"""The end-to-end benchmark's baseline does what SOAE does, and its bookkeeping adds up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from soae_ext.attacks import SOAE
from soae_ext.data import load_digits
from soae_ext.models import load_checkpoint

BENCH = Path(__file__).resolve().parents[1] / "bench"
if not BENCH.exists():
    pytest.skip("bench/ is not beside the tests", allow_module_level=True)


@pytest.fixture(autouse=True)
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


@pytest.fixture
def digits():
    data = load_digits().first(12)
    return data.images, data.labels


def test_the_papers_way_is_the_same_attack(digits):
    """In double precision, on a smooth network, where differences are accurate: equal images but for a few signs."""
    import papers_way

    x, y = digits[0].double(), digits[1]
    model = load_checkpoint(BENCH / "networks" / "digits_silu_pgd.safetensors").double().requires_grad_(False)
    theirs, spent = papers_way.attack(model, x, y, eps=0.3, steps=2, dimensions=4, fd_step=1e-4)
    # The paper's way pays no product for the true residual.
    ours = SOAE(0.3, steps=2, max_dim=4, threshold=0.0, hvp="finite-difference", fd_step=1e-4, early_stop=False)
    result = ours(model, x, y)
    # SOAE returns the best iterate, the paper's way the last one: mostly they are the same.
    agreement = torch.isclose(result.x_adv, theirs, rtol=0, atol=1e-4).flatten(1).double().mean(1)
    assert float(agreement.median()) > 0.97
    assert float((theirs - x).abs().amax()) > 0.1
    assert spent.gradients == len(x) * 2 * (1 + 4)
    assert result.gradient_calls.tolist() == [2 * (1 + 4 + 1)] * len(x)
    assert spent.operator > 0 < spent.solver
    assert sum(spent.split().values()) == pytest.approx(spent.total)


def test_both_sides_of_a_case_cost_the_same(digits):
    import bench_attack_end_to_end as benchmark

    case = benchmark.cases(True, None)[0]
    case.x, case.y = digits
    rows = benchmark.compare(case, 1)
    assert [row["gradients_per_image"]["ours"] for row in rows] == [22.0, 22.0]
    assert all(row["gradients_per_image"]["papers_way"] == 22.0 for row in rows)
    for row in rows:
        for side in (row["ours"], row["papers_way"]):
            assert sum(side["split"].values()) == pytest.approx(side["seconds"]["median"])
    # The package is as it was.
    from soae_ext import hvp
    from soae_ext.attacks import soae, systems

    assert soae.hessian_operator is hvp.hessian_operator
    assert soae.solve_to_residual is systems.solve_to_residual


def test_every_gain_runs_on_both_sides():
    import gains

    for gain in gains.all_gains(quick=True)[:8]:
        without, with_it = gain.without(), gain.with_it()
        assert without.gradients > 0 < with_it.gradients
    assert len({(gain.name, gain.what) for gain in gains.all_gains(quick=True)}) == len(gains.all_gains(quick=True))
