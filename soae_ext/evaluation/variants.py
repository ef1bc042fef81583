"""The variants of an attack that the curves run it as: other radii, steps, budgets and difference steps."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from torch import Tensor

from ..attacks import APGD, ASOD, FGSM, SOAE, Attack, AutoAttack

__all__ = ["most_gradients", "size_of", "total_steps", "with_budgets", "with_eps", "with_fd_step", "with_steps"]


def with_eps(attack: Attack, radius: float) -> Attack:
    """The attack in another ball; a step size that was given is scaled with it."""
    if isinstance(attack.eps, Tensor):
        raise ValueError("curves: eps needs one radius for all images, not one for each")
    if attack.step_size is None or attack.eps == 0:
        return replace(attack, eps=radius)
    # A step size must be positive; in a ball of radius 0 it has no meaning.
    return replace(attack, eps=radius, step_size=attack.step_size * radius / attack.eps or None)


def with_fd_step(soae: SOAE, h: float | None) -> SOAE:
    """The attack with finite-difference products; `None` is their default step."""
    return replace(soae, hvp="finite-difference", fd_step=h)


def with_steps(attack: Attack, count: int) -> Attack:
    """The attack with so many iterations; of SOAE second-order ones."""
    return replace(attack.plain() if isinstance(attack, SOAE) else attack, steps=count)


def with_budgets(attack: Attack, budgets: Iterable[int]) -> list[Attack]:
    """The attack for each of these numbers of gradients that it can do with, and as it is; see `gradients_curve`."""
    if isinstance(attack, (FGSM, AutoAttack)):
        return [attack]
    variants = {size_of(attack): attack}
    for budget in budgets:
        with suppress(ValueError):  # less than a step costs, or fewer steps than the attack's schedule needs
            if isinstance(attack, SOAE) and attack.budget is not None:
                variant: Attack = replace(attack, gradients=budget)
            else:
                steps = budget // (attack.restarts * _step_cost(attack))
                variant = replace(attack, steps=steps) if steps else attack
            variants.setdefault(size_of(variant), variant)
    return [variants[size] for size in sorted(variants)]


def _step_cost(attack: Attack) -> int:
    """Gradients that one step of all runs of a restart costs at most."""
    if isinstance(attack, SOAE):
        return attack.step_cost
    if isinstance(attack, APGD):
        return attack.targets or 1
    return attack.samples if isinstance(attack, ASOD) else 1


def most_gradients(attack: Attack) -> int | None:
    """Gradients that an image may cost, vanishing ones aside; `None` of AutoAttack, which decides as it goes."""
    if isinstance(attack, AutoAttack):
        return None
    if isinstance(attack, SOAE):
        plan = attack.plan()
        return attack.budget or plan.restarts * plan.steps + plan.second_order_steps * (attack.step_cost - 1)
    return attack.restarts * attack.steps * _step_cost(attack)


def size_of(attack: Attack) -> int:
    """What tells the runs of one attack apart: its budget, or its number of steps."""
    budget = attack.budget if isinstance(attack, SOAE) else None
    return attack.steps if budget is None else budget


def total_steps(attack: Attack) -> int:
    """Steps of one restart; of a budget, those of all restarts that it pays for."""
    if isinstance(attack, SOAE) and attack.budget is not None:
        plan = attack.plan()
        return plan.restarts * plan.steps
    return attack.steps
