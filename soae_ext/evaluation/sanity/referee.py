"""AutoAttack as the referee of the evaluation's own attacks."""

from __future__ import annotations

import torch

from ...attacks import AutoAttack
from ..accuracy import Accuracy
from .check import CheckFunction, Outcome, check
from .context import SanityContext
from .statistics import LEVEL, paired

__all__ = ["CHECKS"]

_GROUP = "referee"
_POINTS = 2.0
_ENOUGH = 1000


@check(_GROUP, "AutoAttack confirms the robust accuracy", f"at most {_POINTS:g} points lower (sign test, p < {LEVEL})")
def autoattack(context: SanityContext) -> Outcome:
    """AutoAttack, version standard, on all images, against the worst case over the attacks of the evaluation.

    Where the evaluation has run it already, its result is used.
    """
    if not context.referee:
        return Outcome("not run", "-", "AutoAttack was not asked for: --referee runs it on all images.")
    done = [name for name, attack in context.attacks.items() if _is_standard(attack) and name in context.results]
    if done:
        referee = context.results[done[0]]
    else:
        attack = AutoAttack(context.eps, norm=context.norm, seed=context.seed)
        referee = context.run("sanity/referee", "referee: AutoAttack", attack, context.data)
    others = [m.success for name, m in context.results.items() if not isinstance(context.attacks[name], AutoAttack)]
    if not others:
        return Outcome("not applicable", f"AutoAttack {referee.robust}", "There is no other attack to compare with.")
    success = torch.stack(others).any(0)
    pair = paired(success, referee.success)
    worst = Accuracy(int((~success).sum()), len(success))
    text = "Robust accuracy under AutoAttack and in the worst case over the evaluation's own attacks."
    if len(success) < _ENOUGH:
        text += f" Fewer than {_ENOUGH} images: a small difference cannot be seen."
    return Outcome.of(
        not pair.second_finds_more(_POINTS),
        f"AutoAttack {str(referee.robust).strip()}, own attacks {str(worst).strip()}; fooled {pair}",
        text,
        "The evaluation's own attacks overstate the robustness: report AutoAttack's number.",
    )


def _is_standard(attack: object) -> bool:
    return isinstance(attack, AutoAttack) and attack.version == "standard" and attack.attacks is None


CHECKS: tuple[CheckFunction, ...] = (autoattack,)
