"""How SOAE spends its gradients: the steps of a plan, from what was asked for or from a budget."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["DEFAULT_GRADIENTS", "Plan", "Schedule", "SecondOrderSteps", "count_steps"]

Schedule = Literal["linear", "constant"]
SecondOrderSteps = int | Literal["all"]

# The default budget.
DEFAULT_GRADIENTS = 100
# A budget is cut into runs of about so many gradients, and into so many runs at most: fresh starts and the other loss
# find more than longer runs do (docs/results).
_RUN, _MOST_RUNS = 20, 20


class Plan(NamedTuple):
    """What an attack will do, once everything left open is decided."""

    restarts: int
    steps: int
    second_order_steps: int
    random_start: bool
    rotate_loss: bool
    schedule: Schedule
    max_dim: int


def count_steps(
    budget: int | None, restarts: int, steps: int, second: SecondOrderSteps, step_cost: int
) -> tuple[int, int, int]:
    """Restarts, steps of each, and second-order steps in all.

    Args:
        budget: gradients for each image, which decide; `None` where `restarts` and `steps` do.
        second: second-order steps that were asked for.
        step_cost: gradients that one of them costs at most; the others cost 1.

    Raises:
        ValueError: the budget does not pay for the second-order steps.
    """
    if budget is None:
        total = restarts * steps
        return restarts, steps, total if second == "all" else min(second, total)
    restarts = max(1, min(_MOST_RUNS, round(budget / _RUN)))
    if second == "all":
        restarts = max(1, min(restarts, budget // step_cost))
        steps = budget // restarts // step_cost
        second = restarts * steps
    else:
        steps = (budget - second * (step_cost - 1)) // restarts
    if steps < 1 or second > restarts * steps:
        raise ValueError(
            f"gradients: {budget} are too few for second-order steps of {step_cost} gradients each; raise it, or lower "
            "max_dim or second_order_steps"
        )
    return restarts, steps, second
