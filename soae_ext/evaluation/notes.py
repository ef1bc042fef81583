"""What a reader must know of the attacks of an evaluation before comparing them."""

from __future__ import annotations

from collections.abc import Mapping

from ..attacks import APGD, PGD, SOAE, Attack
from .variants import most_gradients

__all__ = ["attack_notes"]

_ASCENDS = (
    "the direction with the sign that ascends: where the Hessian is positive semi-definite, as that of the "
    "cross-entropy of a ReLU network is, the stationary point -H^-1 g of the quadratic model that the method was "
    "derived from is its minimum, and a step there lowers the loss."
)
_SIGNS = {
    "ascent": f"steps along +H^-1 g, {_ASCENDS}",
    "auto": f"steps along +H^-1 g or -H^-1 g, for each image {_ASCENDS}",
    "paper": "steps along -H^-1 g, as the method was derived: wherever H is positive definite this lowers the loss, so "
    "the accuracy that it leaves says little about the network.",
    "damped": f"steps along (H + mu I)^-1 g, {_ASCENDS}",
    "power": "steps along the direction of largest curvature in the Krylov space, turned so that it ascends.",
    "trust-region": "steps to the maximiser of the quadratic model over a ball, not to its stationary point.",
    "frank-wolfe": "steps to a maximiser of the quadratic model over the feasible set, not to its stationary point.",
}


def attack_notes(attacks: Mapping[str, Attack]) -> list[str]:
    """The sign of each SOAE's direction, and what an image may cost under each attack; nothing without SOAE.

    Args:
        attacks: by the name that they are reported under.
    """
    second = {name: attack for name, attack in attacks.items() if isinstance(attack, SOAE)}
    if not second:
        return []
    notes = [f"{name} {_SIGNS[attack.direction]}" for name, attack in second.items()]
    costs = {name: most_gradients(attack) for name, attack in attacks.items()}
    told = ", ".join(f"{name} {cost}" for name, cost in costs.items() if cost is not None)
    rivals = {costs[name] for name, attack in attacks.items() if isinstance(attack, PGD | APGD)}
    alone = [name for name in second if costs[name] not in rivals]
    remedy = f" No PGD or APGD here costs as much as {' or '.join(alone)}; add one to compare." if alone else ""
    notes.append(
        "Attacks are to be compared at equal gradients, an exact Hessian-vector product counting as two. What an image "
        f"may cost: {told}.{remedy}"
    )
    return notes
