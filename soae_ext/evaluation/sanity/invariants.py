"""What holds for every correct attack, whatever the network."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ...attacks import PGD, SOAE, Attack, AttackResult
from ...attacks.losses import is_fooled
from ...attacks.soae import Normalize
from .check import CheckFunction, Outcome, check
from .context import SanityContext
from .statistics import LEVEL, paired

__all__ = ["CHECKS"]

_GROUP = "invariants"
_FEW = 16
# Radii, as parts of the radius of the evaluation, at which the accuracy is compared.
_PARTS = (0.25, 0.5, 1.0)


@check(_GROUP, "eps = 0 returns the image", "0 images changed")
def zero_radius(context: SanityContext) -> Outcome:
    """Every attack of the evaluation in a ball of radius zero, bit by bit."""
    x, y, index = context.few(_FEW)
    changed = {}
    for name, attack in context.attacks.items():
        result = replace(attack, eps=0.0)(context.model, x, y, index=index)
        changed[name] = int((result.x_adv != x).flatten(1).any(1).sum())
    return Outcome.of(
        not any(changed.values()),
        f"{sum(changed.values())} changed of {len(x)} images under {len(changed)} attacks",
        _worst("Changed by", changed) or "Every attack returns its input where no perturbation is allowed.",
    )


@check(_GROUP, "inside the ball and the box", "distance at most eps + 1e-6, pixels in [0, 1], no NaN, type kept")
def inside(context: SanityContext) -> Outcome:
    """The adversarial images of the evaluation, distances computed in double precision."""
    order = {"Linf": torch.inf, "L2": 2.0, "L1": 1.0}
    excess, broken, images = -torch.inf, {}, 0
    for name, m in context.results.items():
        if m.x_adv.shape != context.data.images.shape:
            continue
        attack = context.attacks[name]
        difference = (m.x_adv.double() - context.data.images.double()).flatten(1)
        length = torch.linalg.vector_norm(difference, ord=order[attack.norm], dim=1)
        radius = attack.eps.cpu().double() if isinstance(attack.eps, Tensor) else attack.eps
        beyond = length - radius
        box = ((m.x_adv >= 0) & (m.x_adv <= 1)).flatten(1).all(1)
        kept = m.x_adv.dtype == context.data.images.dtype
        broken[name] = int((~(beyond <= 1e-6) | ~box).sum()) if kept else len(length)
        excess = max(excess, float(beyond.nan_to_num(torch.inf).max()))
        images += len(length)
    if not broken:
        return Outcome("not applicable", "-", "The adversarial images of the evaluation were not kept.")
    return Outcome.of(
        not any(broken.values()),
        f"{sum(broken.values())} of {images} images outside; largest distance - eps: {excess:.2g}",
        _worst("Outside under", broken) or "Every adversarial image is a valid image that the threat model allows.",
    )


@check(_GROUP, "reported success is real", "0 images, margins within rounding (1e-4) aside")
def real_success(context: SanityContext) -> Outcome:
    """The network evaluated anew on the adversarial images of the evaluation."""
    wrong, images = {}, 0
    for name, m in context.results.items():
        if m.x_adv.shape != context.data.images.shape:
            continue
        logits = context.logits(m.x_adv.to(context.device)).cpu()
        top = logits.double().topk(2, dim=1).values
        close = (top[:, 0] - top[:, 1]) <= 1e-4 * top.abs().amax(1).clamp_min(1)
        wrong[name] = int(((is_fooled(logits, context.data.labels, False) != m.success) & ~close).sum())
        images += len(logits)
    if not wrong:
        return Outcome("not applicable", "-", "The adversarial images of the evaluation were not kept.")
    return Outcome.of(
        not any(wrong.values()),
        f"{sum(wrong.values())} of {images} verdicts differ",
        _worst("Another verdict on the images of", wrong)
        or "What the evaluation counts as fooled is what the network gets wrong on the images it returned.",
    )


@check(_GROUP, "the worst case is no better than any attack", "at most the lowest accuracy under one attack")
def worst_case_bound(context: SanityContext) -> Outcome:
    """Per-image worst case over the attacks, with images that are wrong without attack counted under each."""
    if not context.results:
        return Outcome("not applicable", "-", "There is no attack.")
    correct = context.logits(context.data.images.to(context.device)).argmax(1).cpu() == context.data.labels
    success = torch.stack([m.success for m in context.results.values()])
    worst = int((correct & ~success.any(0)).sum())
    least = int((~success).sum(1).min())
    missed = int((~correct & ~success).sum())
    return Outcome.of(
        worst <= least and missed == 0,
        f"{worst} robust images of {len(correct)}, least under one attack {least}",
        "An image counts as robust if no attack fools the network on it."
        if missed == 0
        else f"{missed} verdicts call an image robust that the network gets wrong without any attack.",
    )


@check(_GROUP, "accuracy falls as the ball grows", f"no larger ball fools fewer images (sign test, p < {LEVEL})")
def falls_with_radius(context: SanityContext) -> Outcome:
    """PGD-20 at a quarter, a half and all of eps, paired between neighbouring radii."""
    if context.eps == 0:
        return Outcome("not applicable", "-", "The ball of this evaluation is a point.")
    fooled = []
    for part in _PARTS[:-1]:
        attack = replace(context.pgd_attack, eps=part * context.eps)
        fooled.append(context.probe(f"PGD-20 at {part:g} eps", attack).success)
    fooled.append(context.pgd.success)
    pairs = [paired(larger, smaller) for smaller, larger in pairwise(fooled)]
    robust = ", ".join(str(int((~f).sum())) for f in fooled)
    return Outcome.of(
        not any(pair.second_finds_more(level=LEVEL / len(pairs)) for pair in pairs),
        f"{robust} of {len(context.rows)} images robust under PGD-20 at "
        + ", ".join(f"{part * context.eps:.3g}" for part in _PARTS),
        "A larger ball contains the smaller one.",
        "An attack that finds less in it is caught in the loss surface: use more steps, restarts or another loss.",
    )


@check(_GROUP, "no accuracy is left in the whole box", "0 robust images")
def whole_box(context: SanityContext) -> Outcome:
    """PGD-40 with Linf eps = 1, where every image may become every other.

    At eps = 1/2 every image may become the grey one, which has one class: only images of that class can stay robust.
    """
    half, whole = (
        context.probe(f"PGD-40 at {eps:g}", replace(context.pgd_attack, norm="Linf", eps=eps, steps=40))
        for eps in (0.5, 1.0)
    )
    grey = context.logits(torch.full_like(context.few(1).x, 0.5)).argmax(1).cpu()
    allowed = int((context.subset.labels == grey).sum())
    return Outcome.of(
        whole.robust.correct == 0 and half.robust.correct <= allowed,
        f"{whole.robust.correct} of {len(context.rows)} images robust at Linf 1, {half.robust.correct} at 1/2",
        "Within Linf 1 an image may become any other, within 1/2 the grey one, so no network is robust there.",
        "An attack that leaves some robust does not find perturbations that exist: the gradients are masked.",
        f"0 robust images at 1, {allowed} at 1/2 (the class of the grey image)",
    )


@check(_GROUP, "more iterations never lose", "0 images worse")
def more_iterations(context: SanityContext) -> Outcome:
    """PGD and SOAE with 2, 5 and 10 steps of the same length, so that a shorter run is the beginning of a longer one.

    Attacks that adapt their steps to how many there will be, as APGD does, have no such order.
    """
    if context.eps == 0:
        return Outcome("not applicable", "-", "The ball of this evaluation is a point.")
    common: dict[str, Any] = {"norm": context.norm, "step_size": context.eps / 4, "seed": context.seed}
    normalize: Normalize = "sign" if context.norm == "Linf" else "L2"
    attacks: dict[str, Attack] = {
        "PGD": PGD(context.eps, **common),
        "SOAE": SOAE(context.eps, steps=2, direction="ascent", max_dim=3, normalize=normalize, **common),
    }
    return _monotone(context, attacks, [{"steps": count} for count in (2, 5, 10)], "more iterations")


@check(_GROUP, "more restarts never lose", "0 images worse")
def more_restarts(context: SanityContext) -> Outcome:
    """The gradient attacks of the evaluation with one, two and three restarts.

    A budget decides on its restarts, and a larger one on other runs: SOAE is then taken with 5 second-order steps.
    """
    attacks = {
        name: attack.plain(5) if isinstance(attack, SOAE) else attack for name, attack in _scalar(context).items()
    }
    return _monotone(context, attacks, [{"restarts": count} for count in (1, 2, 3)], "more restarts")


def _monotone(context: SanityContext, attacks: dict[str, Attack], variants: list[dict[str, Any]], what: str) -> Outcome:
    """Every attack with each of the options, from the weakest to the strongest, on a few images."""
    x, y, index = context.few(_FEW)
    if not attacks:
        return Outcome("not applicable", "-", f"No attack of this evaluation can be given {what}.")
    worse = {}
    for name, attack in attacks.items():
        results = [
            replace(attack, early_stop=False, **options)(context.model, x, y, index=index) for options in variants
        ]
        worse[name] = sum(int(_is_worse(longer, shorter).sum()) for shorter, longer in pairwise(results))
    return Outcome.of(
        not any(worse.values()),
        f"{sum(worse.values())} worse of {len(x)} images under {len(worse)} attacks",
        _worst("Worse under", worse) or f"The best iterate is returned, so {what} of the same kind cannot lose it.",
    )


def _is_worse(longer: AttackResult, shorter: AttackResult) -> Tensor:
    """An image that was fooled no longer is, or the loss is lower though it is fooled as before."""
    slack = 1e-5 * shorter.loss.abs().clamp_min(1)
    lower = (longer.success == shorter.success) & (longer.loss < shorter.loss - slack)
    return (shorter.success & ~longer.success) | lower


@check(_GROUP, "the same seed gives the same images", "0 images differ")
def same_seed(context: SanityContext) -> Outcome:
    """Every gradient attack of the evaluation twice, and the logits of the network twice, bit by bit."""
    x, y, index = context.few(_FEW)
    differ = {"the network itself": int((context.logits(x) != context.logits(x)).any(1).sum())}
    for name, attack in _scalar(context).items():
        first, second = (attack(context.model, x, y, index=index).x_adv for _ in range(2))
        differ[name] = int((first != second).flatten(1).any(1).sum())
    return Outcome.of(
        not any(differ.values()),
        f"{sum(differ.values())} differ of {len(x)} images under {len(differ) - 1} attacks",
        _worst("Differing under", differ) or "The evaluation can be repeated.",
        "A network that answers at random needs AutoAttack's version rand, and gradients averaged over many passes."
        if differ["the network itself"]
        else "",
    )


@check(_GROUP, "the batch size does not matter", "0 verdicts, and at most 1 image in 16 by more than 1e-6")
def batch_size(context: SanityContext) -> Outcome:
    """The gradient attacks in batches of 16, 5 and 1, in double precision.

    In single precision the sums of another batch size round differently, and where a gradient is nearly zero its sign,
    so a whole pixel step, changes: that is no dependence on the batch.
    """
    x, y, index = context.few(_FEW)
    verdicts, moved = {}, 0
    for name, attack in _scalar(context).items():
        results = [
            replace(attack, batch_size=size)(context.double, x.double(), y, index=index) for size in (len(x), 5, 1)
        ]
        verdicts[name] = sum(int((r.success != results[0].success).sum()) for r in results[1:])
        distance = torch.stack([(r.x_adv - results[0].x_adv).flatten(1).abs().amax(1) for r in results[1:]])
        moved = max(moved, int((distance.amax(0) > 1e-6).sum()))
    if not verdicts:
        return Outcome("not applicable", "-", "AutoAttack draws its random numbers for a whole batch.")
    return Outcome.of(
        not any(verdicts.values()) and 16 * moved <= len(x),
        f"{sum(verdicts.values())} verdicts differ of {len(x)} images, {moved} images moved",
        _worst("Another verdict under", verdicts) or "Images do not influence each other.",
        "A network that mixes the images of a batch (batch statistics in eval mode) has no per-image robustness.",
    )


@check(_GROUP, "the network is left as it was", "0 changes of mode, gradients, flags, hooks or values")
def left_alone(context: SanityContext) -> Outcome:
    """The gradient attacks on a copy of the network with every second module in training mode."""
    x, y, index = context.few(2)
    model = copy.deepcopy(context.model)
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 1
    before = _state(model)
    changes = {}
    for name, attack in _scalar(context).items():
        attack(model, x, y, index=index)
        after = _state(model)
        changes[name] = sum(not _equal(a, b) for a, b in zip(before, after, strict=True))
    return Outcome.of(
        not any(changes.values()),
        f"{sum(changes.values())} changes by {len(changes)} attacks",
        _worst("Changed by", changes) or "An attack leaves the network in the mode and the state that it came in.",
    )


def _scalar(context: SanityContext) -> dict[str, Attack]:
    """The gradient attacks, with one radius for all images."""
    return {
        name: replace(attack, eps=context.eps) if isinstance(attack.eps, Tensor) else attack
        for name, attack in context.gradient_attacks.items()
    }


def _state(model: nn.Module) -> list[object]:
    modules = [(module.training, len(module._forward_hooks), len(module._backward_hooks)) for module in model.modules()]
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    values = [value.detach().clone() for value in model.state_dict().values()]
    return [*modules, *flags, *values]


def _equal(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


def _worst(start: str, counts: dict[str, int]) -> str:
    """Which attacks broke the rule; empty if none did."""
    return f"{start} {', '.join(f'{name} ({n})' for name, n in counts.items() if n)}." if any(counts.values()) else ""


CHECKS: tuple[CheckFunction, ...] = (
    zero_radius,
    inside,
    real_success,
    worst_case_bound,
    falls_with_radius,
    whole_box,
    more_iterations,
    more_restarts,
    same_seed,
    batch_size,
    left_alone,
)
