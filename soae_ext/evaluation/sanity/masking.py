"""Signs that an attack's gradients do not show the network's weakness (Athalye, Carlini and Wagner, 2018).

A network whose gradients vanish, are noise, or lead to nowhere looks robust to every attack that follows them. Each
flag compares what gradients find with what something else finds, or looks at the gradients themselves. A raised flag
says that the robust accuracy of this evaluation is too high, not why.

Attacks are compared image by image. One finds more where it fools a stated number of points more than the other, and
more than chance allows; it finds what the other misses where more than a stated share of the images falls to it alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...attacks import PGD
from ...attacks.geometry import Norm, per_sample, project, random_perturbation, steepest_step
from ...attacks.losses import LossName, Objective
from .check import CheckFunction, Outcome, check
from .context import SanityContext
from .probes import RandomNoise, train_substitute, transferred
from .statistics import LEVEL, Paired, paired

__all__ = ["CHECKS"]

_GROUP = "gradient masking"
_FEW = 64
_POINTS = 2.0
_RESTART_POINTS = 5.0
_DRAWS = 50
_ADDS_LITTLE = f"fools no more than {_POINTS:g} % of the images (binomial test, p < {LEVEL})"
_NOT_MORE = f"does not fool {_POINTS:g} points more (sign test, p < {LEVEL})"


@check(_GROUP, "the network gives logits, not probabilities", "not every output in [0, 1] with sum 1")
def gives_logits(context: SanityContext) -> Outcome:
    """Cross-entropy of probabilities has gradients that all but vanish."""
    outputs = context.logits(context.compared.x).double()
    inside = float(((outputs >= 0) & (outputs <= 1)).all(1).double().mean())
    off = float((outputs.sum(1) - 1).abs().max())
    return Outcome.of(
        inside < 1 or off > 1e-4,
        f"{100 * inside:.0f} % of {len(outputs)} outputs in [0, 1], sums off 1 by up to {off:.2g}",
        "The losses of the attacks apply the softmax themselves.",
        "Leave the softmax out of the network.",
    )


@check(_GROUP, "gradients are not zero", "at most 1 % of the images")
def zero_gradients(context: SanityContext) -> Outcome:
    """The gradients of cross-entropy and of the margin, in the precision that the attacks compute in."""
    images = context.few(_FEW)
    zero = {}
    names: tuple[LossName, ...] = ("ce", "margin")
    for name in names:
        gradient = _gradients(context, context.model, name, images.x, images.y).flatten(1)
        zero[name] = float(((gradient == 0) | ~gradient.isfinite()).all(1).double().mean())
    return Outcome.of(
        max(zero.values()) <= 0.01,
        f"cross-entropy {100 * zero['ce']:.0f} %, margin {100 * zero['margin']:.0f} % of {len(images.x)} images",
        "Share of images whose gradient is zero or not finite.",
        "A part of the network has no gradient (rounding, thresholds): attack it with a differentiable stand-in "
        "(BPDA), or with queries."
        if zero["margin"] > 0.01
        else "Cross-entropy is saturated: attack the margin or the DLR loss.",
    )


@check(_GROUP, "gradients survive rounding", "at most 10 % of the images")
def rounded_gradients(context: SanityContext) -> Outcome:
    """Directions of the cross-entropy gradient in single and in double precision, at random points of the ball.

    Where rounding inside the network takes the digits in which its logits differ, the gradient that an attack gets is
    not the gradient.
    """
    images = context.few(_FEW)
    radii = torch.full((len(images.x),), context.eps, dtype=images.x.dtype, device=images.x.device)
    points = images.x + random_perturbation(images.x, radii, context.norm, context.seed, (1,), images.numbers)
    points = project(images.x, points, radii, context.norm)
    rough = _gradients(context, context.model, "ce", points, images.y).double().flatten(1)
    exact = _gradients(context, context.double, "ce", points.double(), images.y).flatten(1)
    some = exact.any(1)
    if not bool(some.any()):
        return Outcome("not applicable", "-", "The gradient is zero in double precision too.")
    cosine = torch.nn.functional.cosine_similarity(_scaled(rough[some]), _scaled(exact[some]), dim=1)
    lost = float((~(cosine >= 0.9)).double().mean())
    return Outcome.of(
        lost <= 0.1,
        f"{100 * lost:.0f} % of {len(cosine)} images, median cosine {float(cosine.nan_to_num(0).median()):.3g}",
        "Share of images whose gradient has a cosine below 0.9 with the one in double precision.",
        "The network's logits are too inexact in single precision: evaluate it in double precision.",
    )


def _scaled(gradient: Tensor) -> Tensor:
    """Rows divided by their largest entry, so that their squares do not underflow."""
    largest = gradient.abs().amax(1, keepdim=True)
    return torch.where(largest > 0, gradient / largest, gradient)


@check(_GROUP, "the loss rises along the gradient", "at least 90 % of the images")
def rises(context: SanityContext) -> Outcome:
    """A steepest step of eps / 10 against eight random corners of the same ball, on the margin, in double precision."""
    if context.eps == 0:
        return Outcome("not applicable", "-", "The ball of this evaluation is a point.")
    images = context.few(_FEW)
    x, y = images.x.double(), images.y
    radii = torch.full((len(x),), context.eps / 10, dtype=torch.float64, device=x.device)
    margin = Objective(context.double, "margin")
    gradient = _gradients(context, context.double, "margin", x, y)

    def gain(direction: Tensor) -> Tensor:
        moved = project(
            x, x + per_sample(radii, x) * steepest_step(direction, _dense(context.norm)), radii, context.norm
        )
        with torch.no_grad():
            return margin(moved, y) - margin(x, y)

    best = gain(gradient)
    noise = torch.stack(
        [gain(random_perturbation(x, radii, "L2", context.seed, (2, draw), images.numbers)) for draw in range(8)]
    )
    share = float(((best > 0) & (best > noise.amax(0))).double().mean())
    return Outcome.of(
        share >= 0.9,
        f"{100 * share:.0f} % of {len(x)} images",
        "Share of images whose loss a short step along the gradient raises, and more than eight random steps do.",
        "The gradient does not describe the loss at the scale of the ball: average it over noise (EOT), "
        "use a differentiable stand-in (BPDA), or queries.",
    )


def _dense(norm: Norm) -> Norm:
    """Steps in L1 move a few pixels only, a random one those of a random direction: compared as L2 steps."""
    return "L2" if norm == "L1" else norm


@check(_GROUP, "queries find nothing that gradients miss", f"Square alone {_ADDS_LITTLE}")
def black_box(context: SanityContext) -> Outcome:
    """Square Attack, which sees logits alone, against all gradient attacks of the evaluation and PGD-20 together."""
    pair = paired(context.white_box, context.square.success)
    return _adds(
        pair,
        f"Square-{context.queries}",
        "A black-box attack knows less than a white-box attack.",
        "They count as robust only because gradients do not lead to what a random search finds: add AutoAttack to the "
        "attacks, which searches too.",
    )


@check(_GROUP, "transfer finds nothing that gradients miss", f"transfer alone {_ADDS_LITTLE}")
def transfer(context: SanityContext) -> Outcome:
    """PGD-20 on a substitute, against all gradient attacks of the evaluation and PGD-20 together."""
    if context.data.images.ndim != 4:
        return Outcome("not applicable", "-", "A substitute is trained for images (n, C, H, W) only.")
    compared = context.compared
    substitute = context.substitute
    if substitute is None:
        substitute = train_substitute(context.model, context.few(1000).x, context.eps, context.norm, context.seed)
    attack = replace(context.pgd_attack, early_stop=False)
    pair = paired(context.white_box, transferred(context.model, substitute, compared.x, compared.y, attack))
    return _adds(
        pair,
        "transfer",
        "What fools another network fools this one less often than what was made for it.",
        "The network is vulnerable where its own gradients do not lead, and the substitute's do.",
    )


@check(_GROUP, "random search finds nothing that gradients miss", f"random points alone {_ADDS_LITTLE}")
def random_search(context: SanityContext) -> Outcome:
    """The best of 50 random points of the ball, against all gradient attacks of the evaluation and PGD-20 together."""
    attack = RandomNoise(context.eps, norm=context.norm, steps=_DRAWS, loss="margin", seed=context.seed)
    pair = paired(context.white_box, context.probe(f"noise-{_DRAWS}", attack).success)
    return _adds(
        pair,
        f"the best of {_DRAWS} random points",
        "Where blind trials succeed, a gradient that is worth its name leads there.",
        "The gradients do not show perturbations so common that chance finds them.",
    )


@check(_GROUP, "cross-entropy is no worse than the margin", f"the margin {_NOT_MORE}")
def loss_gap(context: SanityContext) -> Outcome:
    """PGD-20 on cross-entropy against PGD-20 on the margin from the same random start."""
    attack = replace(context.pgd_attack, loss="margin")
    pair = paired(context.pgd.success, context.probe("PGD-20 (margin)", attack).success)
    return _finds_more(
        pair,
        f"margin {pair} of cross-entropy",
        "Both losses grow where the classification fails.",
        "Cross-entropy saturates or points elsewhere on this network: attack the margin or the DLR loss too.",
    )


@check(
    _GROUP,
    "random starts are not decisive",
    f"five random starts do not fool {_RESTART_POINTS:g} points more than the image (sign test, p < {LEVEL})",
)
def random_starts(context: SanityContext) -> Outcome:
    """PGD-20 from the image against PGD-20 from five random points."""
    still = context.probe("PGD-20 from the image", replace(context.pgd_attack, random_start=False))
    tried = context.probe("PGD-20, 5 starts", replace(context.pgd_attack, restarts=5))
    pair = paired(still.success, tried.success)
    return _finds_more(
        pair,
        f"five starts {pair} of the image",
        "On a loss surface that gradients describe, the ascent ends in much the same place from everywhere.",
        "The surface around the images is flat or rough: use many restarts, more steps and queries.",
        _RESTART_POINTS,
    )


@check(_GROUP, "the attack has converged", f"PGD-100 {_NOT_MORE}")
def converged(context: SanityContext) -> Outcome:
    """PGD-20 against PGD-100 from the same random start."""
    pair = paired(context.pgd.success, context.probe("PGD-100", replace(context.pgd_attack, steps=100)).success)
    return _finds_more(
        pair,
        f"PGD-100 {pair} of PGD-20",
        "Five times as many iterations change little.",
        "Twenty iterations are not enough on this network: report attacks with more.",
    )


@check(_GROUP, "iterations raise the loss", "on some image, if the logits are not linear")
def iterations_help(context: SanityContext) -> Outcome:
    """The margin after PGD-20 and after a single step from the image, without early stop."""
    if context.eps == 0:
        return Outcome("not applicable", "-", "The ball of this evaluation is a point.")
    images = context.few(_FEW)
    attacks = [
        PGD(
            context.eps, norm=context.norm, steps=steps, loss="margin", random_start=False, early_stop=False,
            seed=context.seed,
        )
        for steps in (1, 20)
    ]  # fmt: skip
    one, many = (attack(context.model, images.x, images.y, index=images.numbers) for attack in attacks)
    gain = many.loss.double() - one.loss.double()
    helped = float((gain > 1e-4 * one.loss.double().abs().clamp_min(1)).double().mean())
    if helped == 0 and _is_linear(context, images.x, one.x_adv):
        return Outcome("not applicable", "-", "The logits are linear in the pixels: one step is the best there is.")
    return Outcome.of(
        helped > 0,
        f"raised on {100 * helped:.0f} % of {len(gain)} images, by {float(gain.mean()):.3g} in the mean",
        "Iterations follow the bends of the loss, which a single step cannot.",
        "Twenty steps reach no higher loss than one: the attack stands still.",
    )


def _is_linear(context: SanityContext, x: Tensor, moved: Tensor) -> bool:
    """Whether the logits half way between two points are the mean of theirs, and the points differ."""
    if torch.equal(x, moved):
        return False
    ends, middle = (context.logits(x) + context.logits(moved)) / 2, context.logits((x + moved) / 2)
    return torch.allclose(ends, middle, rtol=1e-4, atol=1e-4 * float(ends.abs().max()))


def _adds(pair: Paired, name: str, text: str, remedy: str) -> Outcome:
    share = 100 * pair.only_second / pair.images
    return Outcome.of(
        not pair.second_adds(_POINTS),
        f"{share:.1f} % of {pair.images} images fooled by {name} alone "
        f"({pair.second} fooled in all, by gradients {pair.first})",
        text,
        remedy,
    )


def _finds_more(pair: Paired, value: str, text: str, remedy: str, points: float = _POINTS) -> Outcome:
    return Outcome.of(not pair.second_finds_more(points), value, text, remedy)


def _gradients(context: SanityContext, model: torch.nn.Module, loss: LossName, x: Tensor, y: Tensor) -> Tensor:
    """Gradients like `x`, in parts of `batch_size`; zero where the network does not depend on the pixels."""
    objective = Objective(model, loss)
    parts = []
    with torch.enable_grad():
        for images, labels in zip(torch.split(x, context.batch_size), torch.split(y, context.batch_size), strict=True):
            points = images.detach().clone().requires_grad_()
            losses = objective(points, labels)
            parts.append(
                torch.autograd.grad(losses.sum(), points, allow_unused=True, materialize_grads=True)[0]
                if losses.requires_grad
                else torch.zeros_like(points)
            )
    return torch.cat(parts)


CHECKS: tuple[CheckFunction, ...] = (
    gives_logits,
    zero_gradients,
    rounded_gradients,
    rises,
    black_box,
    transfer,
    random_search,
    loss_gap,
    random_starts,
    converged,
    iterations_help,
)
