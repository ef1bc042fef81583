"""Stronger attacks must not find less than weaker ones, and SOAE is compared at equal cost.

Attacks are compared image by image, on the images that they are run on here, with exact tests: which of two attacks
of equal strength fools more of 128 images is chance.
"""

from __future__ import annotations

import math

from torch import Tensor

from ...attacks import APGD, PGD, SOAE, Attack
from ..accuracy import paired_difference
from .check import CheckFunction, Outcome, check
from .context import SanityContext
from .statistics import LEVEL, paired

__all__ = ["CHECKS"]

_GROUP = "comparisons"


@check(_GROUP, "gradients beat random noise", f"noise does not fool more (sign test, p < {LEVEL})")
def noise(context: SanityContext) -> Outcome:
    """Every gradient attack of the evaluation against one random point of the same ball."""
    return _each(
        context,
        context.gradient_attacks,
        context.noise.success,
        "Random noise of the same norm is the least that an attack must beat.",
        "An attack that noise beats is broken, or its gradients are.",
    )


@check(_GROUP, "iterations beat a single step", f"FGSM does not fool more (sign test, p < {LEVEL})")
def single_step(context: SanityContext) -> Outcome:
    """Every iterative gradient attack of the evaluation, and PGD-20, against FGSM."""
    iterative = {
        name: attack
        for name, attack in context.gradient_attacks.items()
        if attack.steps > 1 or (isinstance(attack, SOAE) and attack.budget is not None)
    }
    return _each(
        context,
        iterative,
        context.fgsm.success,
        "Iterations can only follow the loss more closely than one step of length eps.",
        "The loss surface is so rough that following it loses: gradients are masked, or the step size is wrong.",
        {"PGD-20 of this section": context.pgd.success},
    )


def _each(
    context: SanityContext,
    attacks: dict[str, Attack],
    weaker: Tensor,
    text: str,
    remedy: str,
    more: dict[str, Tensor] | None = None,
) -> Outcome:
    """Hold the weaker attack against each of the others; the worst of them gives the value."""
    success = {name: context.fooled(name) for name in attacks if name in context.results} | (more or {})
    if not success:
        return Outcome("not applicable", "-", "The evaluation has no such attack.")
    pairs = {name: paired(fooled, weaker) for name, fooled in success.items()}
    # Several attacks are tested at once; their chances of a false alarm add up.
    beaten = [name for name, pair in pairs.items() if pair.second_finds_more(level=LEVEL / len(pairs))]
    worst = min(pairs, key=lambda name: (pairs[name].p, -pairs[name].gap))
    return Outcome.of(
        not beaten,
        f"{pairs[worst]} of {worst}",
        text,
        f"Beaten: {', '.join(beaten)}. {remedy}",
    )


@check(_GROUP, "SOAE against PGD at equal gradients", "the 95 % interval does not lie below zero")
def equal_pgd(context: SanityContext) -> Outcome:
    """PGD with as many steps as SOAE may spend gradients on an image, or spends on one that it does not fool."""
    return _equal_cost(context, "PGD")


@check(_GROUP, "SOAE against APGD at equal gradients", "the 95 % interval does not lie below zero")
def equal_apgd(context: SanityContext) -> Outcome:
    """Auto-PGD on the loss of SOAE with as many steps as SOAE may spend gradients on an image, or spends."""
    return _equal_cost(context, "APGD")


def _equal_cost(context: SanityContext, rival: str) -> Outcome:
    found: list[tuple[float, str, bool]] = []
    for name, attack in context.attacks.items():
        if not isinstance(attack, SOAE) or name not in context.results:
            continue
        steps = _gradients(context, name) if attack.budget is None else attack.budget
        first, second = context.fooled(name), _rival(context, rival, steps, attack)
        gap, low, high = (100 * part for part in paired_difference(~second, ~first))
        found.append(
            (gap, f"{name} - {rival}-{steps}: {gap:+.1f} points fooled (95 %: {low:+.1f} to {high:+.1f})", high >= 0)
        )
    if not found:
        return Outcome("not applicable", "-", "SOAE is not among the attacks of the evaluation.")
    gap, _, _ = min(found)
    return Outcome.of(
        all(passed for _, _, passed in found),
        f"{'; '.join(text for _, text, _ in found)}; {len(context.rows)} images",
        f"Gradients are what attacks cost; an exact product counts 2. Positive: SOAE fools more than {rival}.",
        f"Here {rival} is the stronger attack for the same cost (by {-gap:.1f} points): report it beside SOAE.",
    )


def _gradients(context: SanityContext, name: str) -> int:
    """Mean gradients that the attack spent on the images of `subset` that it did not fool (else: most on any)."""
    spent = context.results[name].gradient_calls[context.rows]
    robust = spent[~context.fooled(name)]
    return max(1, math.ceil(robust.double().mean().item()) if len(robust) else int(spent.max()))


def _rival(context: SanityContext, rival: str, steps: int, soae: SOAE) -> Tensor:
    """Which images of `subset` the first-order attack of so many steps on the same loss fools."""
    attack: Attack
    if rival == "PGD":
        attack = PGD(context.eps, norm=context.norm, steps=steps, loss=soae.loss, seed=context.seed)
    else:
        attack = APGD(context.eps, norm=context.norm, steps=steps, loss=soae.loss, seed=context.seed)
    return context.probe(f"{rival}-{steps} ({soae.loss})", attack).success


CHECKS: tuple[CheckFunction, ...] = (noise, single_step, equal_pgd, equal_apgd)
