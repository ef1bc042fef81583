"""The sanity section of an evaluation whose SOAE spends a budget of gradients."""

import dataclasses

from soae_ext.attacks import APGD, PGD, SOAE
from soae_ext.evaluation.sanity import comparisons, invariants
from tests.sanity_cases import context


def test_a_budget_is_compared_with_rivals_of_the_same_budget():
    """Not with what it happened to spend; and checks of steps and restarts take a plain attack from it."""
    budget = context(attacks={"SOAE": SOAE(0.2, gradients=20, loss="margin")}, n=24)
    jobs = {}

    def run(job, name, attack, data):
        jobs[job] = attack
        return budget.run(job, name, attack, data)

    watched = dataclasses.replace(budget, run=run)
    for function in (comparisons.equal_pgd, comparisons.equal_apgd):
        assert function(watched).verdict in ("pass", "fail")
    assert jobs == {
        "sanity/PGD-20 (margin)": PGD(0.2, steps=20, loss="margin"),
        "sanity/APGD-20 (margin)": APGD(0.2, steps=20, loss="margin"),
    }
    for function in (invariants.more_restarts, invariants.batch_size, invariants.same_seed, invariants.zero_radius):
        assert function(budget).verdict == "pass"


def test_a_budget_counts_among_the_iterative_attacks():
    @dataclasses.dataclass(frozen=True)
    class Nothing(SOAE):
        def _run(self, task):
            return None

    lazy = context(attacks={"SOAE": Nothing(0.9)}, eps=0.9, n=24)
    found = comparisons.single_step(lazy)
    assert found.verdict == "fail"
    assert "SOAE" in found.text
