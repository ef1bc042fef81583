"""AutoAttack (Croce and Hein, 2020): its authors' code, run attack by attack so that every pass is counted.

The attacks are those of the package `pyautoattack`; here are the loops over restarts, target classes and still robust
images around them. A loop of ours knows which images it hands over, so every forward and backward pass is put down to
the image that it was made for. Random numbers, order, settings and what counts as a success are the authors'.

What the loops also keep from happening: the authors' code seeds PyTorch's global generators, runs into an error with
fewer than ten classes, casts images to single precision in some attacks only, prints warnings, and leaves a trace
function of its own instead of a debugger's or a coverage tool's.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .base import Attack
from .checks import check_choice, check_count
from .geometry import Norm, project
from .losses import Model
from .task import Task

__all__ = ["AutoAttack"]

Version = Literal["standard", "plus", "rand"]
SubAttack = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]

_VERSIONS: dict[str, tuple[SubAttack, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
# Classes that a loss of the authors' needs, as the DLR losses in `losses`.
_CLASSES_NEEDED = {"apgd-dlr": 3, "apgd-t": 4}

_SILENT = logging.Logger("soae_ext.attacks.autoattack")
_SILENT.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class AutoAttack(Attack):
    """The attacks of a `version` in turn, each on the images that are still robust, by their authors' code.

    Needs the package `pyautoattack`: `pip install "soae-ext[full]"`.

    Every attack starts from `seed` on every batch, as in the authors' code: the result is a function of the seed and of
    the images that come together in a batch, `batch_size` included, and does not depend on the global generators,
    which are left as they were. Within a batch the random numbers are not independent of the other images; `index` is
    not used. FAB without restarts draws none.

    An image that one attack, restart or target class has fooled is left out of the next; within a run of APGD or FAB
    the authors' code keeps it. Candidates for `x_adv` are the points that the authors' attacks return, moved into the
    ball as it is defined here, where their rounding leaves it. A tensor of radii is one run for every distinct radius.
    Images are attacked in single precision.

    Args, beyond those of :class:`soae_ext.attacks.base.Attack`:
        version: `"standard"`, `"plus"` (more attacks, five restarts) or `"rand"` (for randomised networks: APGD with
            gradients averaged over 20 passes).
        attacks: `None` is all of the version, or some of `"apgd-ce"`, `"apgd-dlr"`, `"apgd-t"`, `"fab"`, `"fab-t"`,
            `"square"` in the order to run, with the settings of the version. Target classes are at most C - 1 of 9.
        steps: iterations of APGD and FAB, the authors' 100.
        n_queries: of Square, the authors' 5,000.
        loss: of `AttackResult.loss` alone; every attack has its own.
        step_size, targeted, random_start, restarts, early_stop: as they are; the version decides.

    Raises:
        ImportError: `pyautoattack` is not installed.
    """

    steps: int = 100
    random_start: bool = True
    version: Version = "standard"
    attacks: tuple[SubAttack, ...] | None = None
    n_queries: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("version", self.version, get_args(Version))
        if self.attacks is not None:
            if isinstance(self.attacks, str) or not self.attacks:
                raise ValueError(f"attacks: must be a tuple of names such as ('apgd-ce',), got {self.attacks!r}")
            for name in self.attacks:
                check_choice("attacks", name, get_args(SubAttack))
        check_count("n_queries", self.n_queries, 1)
        fixed = {"step_size": None, "targeted": False, "random_start": True, "restarts": 1, "early_stop": True}
        for option, value in fixed.items():
            if getattr(self, option) != value:
                raise ValueError(f"{option}: AutoAttack decides this by its version; leave it at {value}")
        if self.norm == "L1" and self.steps < 3:
            raise ValueError(f"steps: in L1 APGD makes three rounds and needs at least 3, got {self.steps}")
        _authors_code()

    def _names(self) -> tuple[SubAttack, ...]:
        return _VERSIONS[self.version] if self.attacks is None else tuple(self.attacks)

    def _check_fit(self, x: Tensor, classes: int) -> None:
        for name in self._names():
            needed = _CLASSES_NEEDED.get(name, 2)
            if classes < needed:
                usable = tuple(other for other in self._names() if _CLASSES_NEEDED.get(other, 2) <= classes)
                raise ValueError(
                    f"attacks: the loss of {name} needs at least {needed} classes, the model has {classes}; "
                    f"use attacks={usable}"
                )
        height, width = _as_images(x[:1]).shape[2:]
        if "square" in self._names() and not _square_fits(height, width, self.norm):
            usable = tuple(other for other in self._names() if other != "square")
            raise ValueError(
                f"attacks: the authors' square in {self.norm} cannot tile images of {height} x {width}; "
                f"use attacks={usable}"
            )

    def _run(self, task: Task) -> None:
        # The authors' code computes with the radius as it is written; the result is projected onto the rounded one.
        radii = [self.eps] if not isinstance(self.eps, Tensor) else torch.unique(task.eps[task.active]).tolist()
        groups = [
            (_Authors(self, task, float(radius)), task.eps == radius if isinstance(self.eps, Tensor) else task.eps > 0)
            for radius in radii
        ]
        for name in self._names():
            for authors, members in groups:
                rows = task.active[members[task.active]]
                if not rows.numel():
                    continue
                with _seeded(self.seed), torch.no_grad():
                    found = authors.run(name, rows).reshape(task.x[rows].shape).to(task.x.dtype)
                task.current[rows] = project(task.x[rows], found, task.eps[rows], self.norm)
            task.evaluate()


class _Ledger:
    """The network as the authors' code calls it; puts every pass down to the images `rows` that it was handed.

    A smaller batch than that is what FAB makes of it: the images that its first pass classified correctly.
    """

    def __init__(self, task: Task, model: Model) -> None:
        self.task, self.model = task, model
        self.rows = self.correct = task.active
        self.counting = True

    def __call__(self, x: Tensor) -> Tensor:
        task = self.task
        # A copy: Square writes into the logits.
        logits = self.model(x.reshape(-1, *task.x.shape[1:]).to(task.x.dtype)).float().clone()
        if not self.counting:
            return logits
        whole = len(x) == len(self.rows)
        rows = self.rows if whole else self.correct
        if whole:
            self.correct = self.rows[logits.argmax(1) == task.y[self.rows]]
        if logits.requires_grad:
            # Torch has no types for hooks.
            logits.register_hook(lambda _: self._charge(task.gradient_calls, rows))  # type: ignore[no-untyped-call]  # no types in torch
        else:
            self._charge(task.forward_calls, rows)
        return logits

    def _charge(self, calls: Tensor, rows: Tensor) -> None:
        calls[rows] += 1


class _Authors:
    """The authors' attacks with the settings of a version, for one radius."""

    def __init__(self, options: AutoAttack, task: Task, eps: float) -> None:
        code = _authors_code()
        self.task, self.eps, self.norm, self.steps = task, eps, options.norm, options.steps
        self.ledger = _Ledger(task, task.objective.model)
        common: dict[str, Any] = {"norm": options.norm, "eps": eps, "seed": options.seed, "device": task.x.device}
        self.settings = code.AutoAttack(self.ledger, version=options.version, **common)
        targets = task.logits.shape[1] - 1
        apgd, targeted, fab = self.settings.apgd, self.settings.apgd_targeted, self.settings.fab
        common.update(n_iter=options.steps, logger=_SILENT)
        self.apgd, self.apgd_targeted = (
            type(kind)(
                self.ledger, eot_iter=kind.eot_iter, rho=kind.thr_decr, use_largereps=kind.use_largereps, **common
            )
            for kind in (apgd, targeted)
        )
        self.apgd.n_restarts = apgd.n_restarts
        self.apgd_targets = min(targeted.n_target_classes, targets)
        fab.n_iter, self.fab_targets = options.steps, min(fab.n_target_classes, targets)
        self.settings.square.n_queries = options.n_queries

    def run(self, name: SubAttack, rows: Tensor) -> Tensor:
        """What the attack makes of the images `rows`: adversarial images, or the images where it finds none."""
        if name == "square":
            return self._square(rows)
        if name in ("fab", "fab-t"):
            return self._fab(rows, targeted=name == "fab-t")
        attack = self.apgd_targeted if name == "apgd-t" else self.apgd
        if name != "apgd-t":
            attack.loss = name.removeprefix("apgd-")
            return self._loop(rows, [lambda x, y: self._apgd(attack, x, y)] * attack.n_restarts)

        def aimed(rank: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
            def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
                attack.y_target = self.ledger(x).sort(dim=1)[1][:, -rank]
                return self._apgd(attack, x, y)

            return run

        return self._loop(rows, [aimed(rank) for rank in range(2, self.apgd_targets + 2)])

    def _loop(self, rows: Tensor, runs: list[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]) -> Tensor:
        """Each run (images, labels) -> (candidates, successes) on the images that no run before has fooled."""
        x, y = _as_images(self.task.x[rows]).float(), self.task.y[rows]
        found, left = x.clone(), torch.arange(len(rows), device=rows.device)
        for run in runs:
            if not left.numel():
                break
            self.ledger.rows = rows[left]
            candidates, fooled = run(x[left].clone(), y[left].clone())
            found[left[fooled]] = candidates[fooled]
            left = left[~fooled]
        return found

    def _apgd(self, attack: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        attack.init_hyperparam(x)
        if attack.use_largereps:
            first = math.ceil(0.3 * self.steps)
            lengths = [first, first, self.steps - 2 * first]
            _, robust, _, found = attack.decr_eps_pgd(x, y, [3.0 * self.eps, 2.0 * self.eps, self.eps], lengths)
        else:
            _, robust, _, found = attack.attack_single_run(x, y)
        return found, robust == 0

    def _fab(self, rows: Tensor, targeted: bool) -> Tensor:
        fab = self.settings.fab
        restarts = 1 if targeted else fab.n_restarts

        def attempt(number: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
            def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
                fab.target_class = number + 2
                found = fab.attack_single_run(x, y, use_rand_start=not targeted and number > 0, is_targeted=targeted)
                wrong = self.ledger(found).argmax(1) != y
                return found, wrong & (_distance(found - x, self.norm) <= self.eps)

            return run

        return self._loop(rows, [attempt(number) for number in range(self.fab_targets if targeted else restarts)])

    def _square(self, rows: Tensor) -> Tensor:
        square = self.settings.square
        x = _as_images(self.task.x[rows]).float()
        square.init_hyperparam(x)
        self.ledger.counting = False
        try:
            queries, found = square.attack_single_run(x, self.task.y[rows])
        finally:
            self.ledger.counting = True
        self.task.forward_calls[rows] += queries.long()
        return torch.as_tensor(found)


def _authors_code() -> Any:
    try:
        return importlib.import_module("pyautoattack")
    except ImportError as error:
        raise ImportError(
            'AutoAttack: needs the package pyautoattack; install it with pip install "soae-ext[full]"'
        ) from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """PyTorch's global generators seeded inside, and afterwards as they were."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _as_images(x: Tensor) -> Tensor:
    """`x` `(B, *shape)` as `(B, channels, height, width)`, with ones for what is missing."""
    if x.ndim > 4:
        return x.flatten(1, -3)
    return x.reshape(len(x), *[1] * (4 - x.ndim), *x.shape[1:])


def _square_fits(height: int, width: int, norm: Norm) -> bool:
    """Whether the tiles of the authors' Square in L2 and L1 fit: a fifth of the height, from a centred start."""
    if norm == "Linf":
        return True
    tile = height // 5
    if tile == 0:
        return False
    start = (height - 5 * tile) // 2
    return tile == 1 or all(start + side // tile * tile <= side for side in (height, width))


def _distance(difference: Tensor, norm: Norm) -> Tensor:
    order = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]
    distance: Tensor = torch.linalg.vector_norm(difference.flatten(1), ord=order, dim=1)
    return distance
