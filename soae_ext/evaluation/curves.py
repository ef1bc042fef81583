"""Robust accuracy as a function of one quantity at a time: radius, gradients, iterations, difference step, threshold.

Every point is one run of an attack under a job key of its own, so that an interrupted study resumes at its last batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from .._names import unknown_name
from ..attacks import APGD, PGD, SOAE, Attack
from ..data import ImageData
from .measure import Measurement
from .series import CURVE_KEYS, Curve, Series
from .variants import size_of, total_steps, with_budgets, with_eps, with_fd_step, with_steps

__all__ = [
    "CURVE_KEYS",
    "PRESETS",
    "Curve",
    "Preset",
    "Runs",
    "Series",
    "check_curves",
    "eps_curve",
    "fd_step_curve",
    "gradients_curve",
    "iterations_curve",
    "run_curves",
    "threshold_curve",
]

# Attacks whose iterations are alike, so that a number of them means something.
_STEPPED = (SOAE, PGD, APGD)


class Runs(Protocol):
    """What the curves need of a runner: one attack on a data set, its result stored under `job`."""

    def run(self, job: str, name: str, attack: Attack, data: ImageData, *, images: bool = True) -> Measurement: ...


@dataclass(frozen=True)
class Preset:
    """How finely the curves are sampled.

    Attributes:
        radii: multiples of the radius of each attack.
        budgets: gradients that an image may cost, for robust accuracy against gradients.
        iterations: numbers of iterations.
        fd_steps: finite-difference steps in pixel units.
        thresholds: relative residuals at which a solve ends.
        max_dim: largest Krylov dimension in the study of thresholds.
    """

    radii: tuple[float, ...]
    budgets: tuple[int, ...]
    iterations: tuple[int, ...]
    fd_steps: tuple[float, ...]
    thresholds: tuple[float, ...]
    max_dim: int


PRESETS: Mapping[str, Preset] = {
    "quick": Preset(
        radii=(0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
        budgets=(1, 10, 20, 40, 100),
        iterations=(1, 2, 4, 10, 20),
        fd_steps=tuple(10.0**power for power in range(-6, 1)),
        thresholds=(1e-4, 1e-3, 1e-2, 1e-1),
        max_dim=20,
    ),
    "full": Preset(
        radii=(0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0),
        budgets=(1, 2, 5, 10, 20, 40, 100, 200, 400),
        iterations=(1, 2, 3, 4, 5, 7, 10, 14, 20),
        fd_steps=tuple(10.0 ** (power / 2) for power in range(-12, 1)),
        thresholds=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 10**-0.5),
        max_dim=40,
    ),
}


def eps_curve(
    runner: Runs,
    data: ImageData,
    attacks: Mapping[str, Attack],
    radii: Sequence[float],
) -> Curve:
    """Robust accuracy of every attack against the radius of the ball.

    A step size that was given is scaled with the radius; one that follows from the radius does so by itself.

    Args:
        runner: attacks the network.
        data: the images.
        attacks: by the name that they are reported under.
        radii: in pixel units, at least 0.

    Raises:
        ValueError: an attack has one radius per image instead of one for all.
    """
    series = []
    for name, attack in attacks.items():
        points = [
            (radius, _run(runner, data, "eps", name, radius, with_eps(attack, radius))) for radius in sorted(set(radii))
        ]
        series.append(_series(name, points))
    norm = next(iter(attacks.values())).norm if attacks else "Linf"
    return Curve(
        "eps", "Robust accuracy against the radius", f"radius eps ({norm})", "robust accuracy", False, series,
        "Every attack keeps its number of steps; the step size grows with the radius.",
    )  # fmt: skip


def gradients_curve(
    runner: Runs,
    data: ImageData,
    attacks: Mapping[str, Attack],
    budgets: Sequence[int],
) -> Curve:
    """Robust accuracy of every attack against the gradients that it spent, measured, at several budgets.

    A budget B is spent by SOAE as its `gradients`, or, where it was given a number of steps, in as many second-order
    steps as B pays for at most; by the other iterative attacks in as many steps of all restarts. The attack as it was
    given is always among them. FGSM, and AutoAttack as the referee that it is, give one point. Arguments as in
    :func:`eps_curve`; `budgets` at least 1.
    """
    series = []
    for name, attack in attacks.items():
        runs = [
            (total_steps(each), _run(runner, data, "gradients", name, size_of(each), each))
            for each in with_budgets(attack, budgets)
        ]
        runs.sort(key=lambda run: run[1].gradients)
        line = _series(name, [(m.gradients, m) for _, m in runs])
        series.append(replace(line, extra={"steps": [float(count) for count, _ in runs], **line.extra}))
    return Curve(
        "gradients", "Robust accuracy against cost", "gradients per image (mean, measured)", "robust accuracy", True,
        series,
        "An exact Hessian-vector product counts as two gradients, a one-sided difference as one. Images that are "
        "fooled cost nothing further, so the mean lies below what an image may cost.",
    )  # fmt: skip


def iterations_curve(
    runner: Runs,
    data: ImageData,
    attacks: Mapping[str, Attack],
    iterations: Sequence[int],
) -> Curve:
    """Robust accuracy of SOAE, PGD and APGD against the number of iterations T; all those of SOAE are of second order.

    Every T is a run of its own, with the step size that the attack chooses for that T; where a step size was given, the
    run to T is the beginning of the run to any larger T, since random numbers do not depend on T. Arguments as in
    :func:`eps_curve`; `iterations` at least 1. Other attacks are left out.
    """
    series = []
    for name, attack in attacks.items():
        if isinstance(attack, _STEPPED):
            points = [
                (float(t), _run(runner, data, "iterations", name, t, with_steps(attack, t)))
                for t in sorted(set(iterations))
            ]
            series.append(_series(name, points))
    return Curve(
        "iterations", "Robust accuracy against iterations", "iterations T", "robust accuracy", False, series,
        "Each T is a run of its own with the step size for that T; those of SOAE are second-order steps. One of them "
        "costs several gradients, one of PGD one: for a comparison at equal cost see the curve against gradients.",
    )  # fmt: skip


def fd_step_curve(
    runners: Mapping[str, Runs],
    data: ImageData,
    soae: SOAE,
    steps: Sequence[float],
) -> Curve:
    """Robust accuracy of SOAE with finite-difference products against the difference step h, for several networks.

    The column `exact` of each series is the robust accuracy with exact products, the same at every h.

    Args:
        runners: one per network, by its name.
        data: the images.
        soae: the attack; its products are replaced, and a budget by 10 second-order steps.
        steps: lengths of the difference step in pixel units, positive.
    """
    series = []
    soae = soae.plain()
    exact = replace(soae, hvp="double-backward" if soae.hvp == "double-backward" else "traced", fd_step=None)
    for network, runner in runners.items():
        reference = _run(runner, data, "fd_step", network, "exact", exact)
        points = [(h, _run(runner, data, "fd_step", network, h, with_fd_step(soae, h))) for h in sorted(set(steps))]
        line = _series(network, points)
        series.append(replace(line, extra={"exact": [reference.robust.share] * len(points), **line.extra}))
    return Curve(
        "fd_step", "SOAE with finite differences against the difference step", "difference step h (pixel units)",
        "robust accuracy", True, series, "Dashed: the same attack with exact Hessian-vector products.",
    )  # fmt: skip


def threshold_curve(
    runner: Runs,
    data: ImageData,
    soae: SOAE,
    thresholds: Sequence[float],
    max_dim: int,
) -> Curve:
    """Robust accuracy of SOAE, its Krylov dimensions and its time against the threshold at which a solve ends.

    One series with exact and one with finite-difference products; the columns `krylov_mean`, `krylov_max` and
    `seconds` belong to the point.

    Args:
        runner: attacks the network.
        data: the images.
        soae: the attack; its threshold, products and largest dimension are replaced, a budget by 10 second-order
            steps, and a direction that solves no linear system by `"ascent"`.
        thresholds: as the field of :class:`soae_ext.attacks.SOAE`.
        max_dim: largest Krylov dimension, large enough not to end the solves before the threshold does.
    """
    direction = soae.direction if soae.direction in ("ascent", "paper", "auto") else "ascent"
    soae = soae.plain()
    base = replace(soae, direction=direction, max_dim=max_dim)
    exact = replace(base, hvp="double-backward" if soae.hvp == "double-backward" else "traced", fd_step=None)
    series = []
    for name, attack in (("exact products", exact), ("finite differences", with_fd_step(base, soae.fd_step))):
        points = [
            (tau, _run(runner, data, "threshold", name, tau, replace(attack, threshold=tau)))
            for tau in sorted(set(thresholds))
        ]
        series.append(_series(name, points))
    what = "relative residual" if soae.threshold_on == "residual" else "subdiagonal entry of the Hessenberg matrix"
    return Curve(
        "threshold", "SOAE against the threshold of its solves", f"threshold ({what})", "robust accuracy", True, series,
        f"Every image has its own system, with at most {max_dim} Krylov dimensions; m is the number that was used, per "
        "image and iteration.",
    )  # fmt: skip


def run_curves(
    keys: Iterable[str],
    runner: Runs,
    data: ImageData,
    attacks: Mapping[str, Attack],
    *,
    others: Mapping[str, Runs] | None = None,
    network: str = "this network",
    preset: str = "quick",
) -> list[Curve]:
    """The curves named by `keys`, in the order of `CURVE_KEYS`.

    Args:
        keys: among `CURVE_KEYS`.
        runner: attacks the network under study.
        data: the images.
        attacks: by the name that they are reported under. The first SOAE among them is the one whose difference step
            and threshold are studied.
        others: runners of further networks for the study of the difference step, by name.
        network: name of the network under study, for that curve.
        preset: `"quick"` or `"full"`.

    Raises:
        ValueError: unknown key or preset, no attack that a curve can be made of, or one radius per image.
    """
    keys = check_curves(keys, attacks, preset)
    sampling = PRESETS[preset]
    soae = next((attack for attack in attacks.values() if isinstance(attack, SOAE)), None)
    curves = []
    if "eps" in keys:
        curves.append(eps_curve(runner, data, attacks, _radii(attacks, sampling.radii)))
    if "gradients" in keys:
        curves.append(gradients_curve(runner, data, attacks, sampling.budgets))
    if "iterations" in keys:
        curves.append(iterations_curve(runner, data, attacks, sampling.iterations))
    if "fd_step" in keys and soae:
        runners = {network: runner, **(others or {})}
        curves.append(fd_step_curve(runners, data, soae, sampling.fd_steps))
    if "threshold" in keys and soae:
        curves.append(threshold_curve(runner, data, soae, sampling.thresholds, sampling.max_dim))
    return curves


def check_curves(keys: Iterable[str], attacks: Mapping[str, Attack], preset: str = "quick") -> tuple[str, ...]:
    """The keys without repetition, if every one of these curves can be made; see :func:`run_curves`."""
    keys = tuple(dict.fromkeys(keys))
    for key in keys:
        if key not in CURVE_KEYS:
            raise ValueError(f"curves: {unknown_name(key, CURVE_KEYS)}")
    if preset not in PRESETS:
        raise ValueError(f"preset: {unknown_name(preset, tuple(PRESETS))}")
    kinds = list(attacks.values())
    if keys and not kinds:
        raise ValueError("curves: there is no attack to draw; name at least one")
    if {"fd_step", "threshold"} & set(keys) and not any(isinstance(attack, SOAE) for attack in kinds):
        raise ValueError("curves: fd_step and threshold study SOAE, which is not among the attacks; add it")
    if "iterations" in keys and not any(isinstance(attack, _STEPPED) for attack in kinds):
        raise ValueError("curves: iterations needs SOAE, PGD or APGD among the attacks; add one")
    if "eps" in keys and any(isinstance(attack.eps, Tensor) for attack in kinds):
        raise ValueError("curves: eps needs one radius for all images, not one for each")
    return keys


def _run(
    runner: Runs,
    data: ImageData,
    study: str,
    name: str,
    at: float | str,
    attack: Attack,
) -> Measurement:
    where = at if isinstance(at, str) else f"{at:.6g}"
    return runner.run(f"curves/{study}/{name}/{where}", f"{study}: {name} at {where}", attack, data, images=False)


def _series(name: str, points: Sequence[tuple[float, Measurement]]) -> Series:
    runs = [measurement for _, measurement in points]
    intervals = [run.robust.interval for run in runs]
    extra = {
        "gradients": [run.gradients for run in runs],
        "forwards": [run.forwards for run in runs],
        "loss": [run.loss for run in runs],
        "seconds": [run.seconds for run in runs],
    }
    if any(run.krylov_mean is not None for run in runs):
        extra["krylov_mean"] = [math.nan if run.krylov_mean is None else run.krylov_mean for run in runs]
        extra["krylov_max"] = [math.nan if run.krylov_max is None else float(run.krylov_max) for run in runs]
    return Series(
        name,
        [float(x) for x, _ in points],
        [run.robust.share for run in runs],
        [low for low, _ in intervals],
        [high for _, high in intervals],
        extra,
    )


def _radii(attacks: Mapping[str, Attack], factors: Sequence[float]) -> list[float]:
    """Multiples of the largest radius; an Linf ball of radius 1 holds all images, so none is larger."""
    largest = max(float(attack.eps) for attack in attacks.values())
    limit = 1.0 if all(attack.norm == "Linf" for attack in attacks.values()) else math.inf
    return sorted({min(limit, factor * largest) for factor in factors})
