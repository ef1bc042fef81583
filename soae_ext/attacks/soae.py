"""The second-order attack: steps along the solution of a Hessian system that GMRES finds without forming a matrix.

Flow of one outer iteration, for the whole batch at once:

    images (B, C, H, W) -> operator v |-> H v -> solver on (B, C, H, W) -> direction -> step, projection -> x_adv

**The sign.** The quadratic model of the loss, Q(d) = g'd + d'Hd/2, has its stationary point at d = -H^-1 g, which is
what the derivation of the second-order attack sets out to use. For a cross-entropy loss on a ReLU network H equals its
Gauss-Newton part almost everywhere and is positive semi-definite, so this point is the *minimum* of Q: literally
applied, -H^-1 g is the step that lowers the loss fastest (`direction="paper"`, kept to show just that). The default,
`"ascent"`, steps along +H^-1 g. It does raise the loss, but the more accurately the system is solved the weaker the
attack becomes: +H^-1 g lowers the true logit against all others alike, while the gradient (one Krylov dimension) aims
at the class that is close. PGD with as many gradients is stronger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..gmres import Workspace, gmres
from ..hvp import HessianOperator, hessian_operator
from .base import Attack
from .checks import check_choice, check_count, check_positive
from .geometry import random_perturbation, unit
from .subdiagonal import solve_to_subdiagonal
from .task import Task

__all__ = ["SOAE"]

Direction = Literal["ascent", "paper", "auto"]
Normalize = Literal["sign", "identity", "L2", "Linf"]
ThresholdOn = Literal["residual", "subdiagonal"]
Product = Literal["traced", "double-backward", "finite-difference"]
Start = Literal["zero", "random"]

# Gradients that one Hessian-vector product costs.
_PRODUCT_COST = {"traced": 2, "double-backward": 2, "finite-difference": 1}


@dataclass(frozen=True)
class SOAE(Attack):
    """Second-order adversarial examples: x <- P(x + a * N(d)) with H d = +-g solved by GMRES.

    Each outer iteration takes the gradient g, builds a Krylov space of the Hessian H of the per-sample loss from
    Hessian-vector products alone, and moves along the normalised solution. It costs each image 1 gradient and
    (m + 1) products for m Krylov dimensions: one per dimension and one for the true residual.

    The solution is not used where it is zero, not finite or orthogonal to g, nor, with `"ascent"`, where it does not
    ascend (<d, g> <= 0, possible where H is indefinite): the step then follows the gradient, and where that is zero
    too, the gradient of the margin loss.

    Args, beyond those of :class:`soae_ext.attacks.base.Attack`:
        steps: outer iterations, 10 by default.
        direction: `"ascent"` is +H^-1 g; `"auto"` is +H^-1 g or -H^-1 g, per sample, whichever ascends; `"paper"` is
            -H^-1 g, which lowers the loss wherever H is positive definite on the Krylov space (see the module).
        normalize: N(d). `"sign"` is sign(d), in an L2 ball divided by its 2-norm; `"Linf"` and `"L2"` scale d to unit
            norm; `"identity"` leaves it as long as it is.
        max_dim: largest Krylov dimension of one solve, 5 by default. On a ReLU network with C classes the exact
            solution needs at most C - 1.
        threshold: a solve ends when the residual is below `threshold * |g|` (1e-2 is about what one-sided differences
            in single precision resolve), or with
        threshold_on: `"subdiagonal"` when h_{j+1,j} < `threshold`, in the units of H. No true residual is computed
            then, and m dimensions cost m products.
        hvp: `"traced"` or `"double-backward"` (exact, 2 gradients each), or `"finite-difference"` (1 gradient each).
        fd_step: length of the finite-difference step in pixel units; `None` is 1e-3 * sqrt(n / 784).
        delta0: start of each solve, `"zero"` or `"random"`: uniform in the ball of radius eps. The part of a random
            start that H maps to zero stays in the solution, as noise.
    """

    steps: int = 10
    direction: Direction = "ascent"
    normalize: Normalize = "sign"
    max_dim: int = 5
    threshold: float = 1e-2
    threshold_on: ThresholdOn = "residual"
    hvp: Product = "traced"
    fd_step: float | None = None
    delta0: Start = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("direction", self.direction, get_args(Direction))
        check_choice("normalize", self.normalize, get_args(Normalize))
        check_choice("threshold_on", self.threshold_on, get_args(ThresholdOn))
        check_choice("hvp", self.hvp, get_args(Product))
        check_choice("delta0", self.delta0, get_args(Start))
        check_count("max_dim", self.max_dim, 1)
        check_positive("threshold", self.threshold, zero=True)
        if self.fd_step is not None:
            check_positive("fd_step", self.fd_step)
            if self.hvp != "finite-difference":
                raise ValueError(f"fd_step: hvp='{self.hvp}' takes no step; use hvp='finite-difference'")

    def _run(self, task: Task) -> Tensor:
        dims = torch.zeros(len(task.x), self.restarts, self.steps, dtype=torch.int64, device=task.x.device)
        workspace = Workspace()
        for restart in range(self.restarts):
            task.begin(restart, self.random_start)
            for step in range(self.steps):
                if restart + step > 0 or self.random_start:
                    task.evaluate()
                if not task.active.numel():
                    break
                operator = hessian_operator(
                    task.objective, task.points, task.labels, method=self.hvp, step=self.fd_step
                )
                task.charge(1)
                gradient = operator.gradient.detach()
                solution, used = self._solve(task, operator, gradient, (restart, step + 1), workspace)
                dims[task.active, restart, step] = used
                direction = self._orient(solution, task.or_margin_gradient(gradient))
                task.move(self._lengths(task) * self._normalized(direction))
            task.evaluate()
        return dims.flatten(1)

    def _solve(
        self, task: Task, operator: HessianOperator, gradient: Tensor, stream: tuple[int, int], workspace: Workspace
    ) -> tuple[Tensor, Tensor]:
        """The solution d of H d = +-g, and the Krylov dimensions `(A,)`; charges the products."""
        b = -gradient if self.direction == "paper" else gradient
        start = None
        if self.delta0 == "random":
            rows = task.active
            start = random_perturbation(b, task.eps[rows], self.norm, self.seed, stream, task.index[rows.cpu()])
        if self.threshold_on == "subdiagonal":
            solution, used = solve_to_subdiagonal(operator, b, start, self.max_dim, self.threshold)
            checks = torch.zeros_like(used)
        else:
            m = self.max_dim
            result = gmres(operator, b, start, restart=m, rtol=self.threshold, max_iters=m, workspace=workspace)
            solution, used = result.x, result.iterations.long()
            # The true residual of a system that has made an iteration costs one more product.
            checks = (used > 0).long()
        products = used + checks + (0 if start is None else 1)
        task.charge(products * _PRODUCT_COST[self.hvp])
        return solution, used

    def _orient(self, solution: Tensor, gradient: Tensor) -> Tensor:
        """The solution with the sign that `direction` asks for, or the gradient where it is of no use."""
        # In double precision the products of single-precision numbers do not underflow.
        slope = (solution.double() * gradient.double()).flatten(1).sum(1)
        usable = slope > 0 if self.direction == "ascent" else slope != 0
        usable = usable & solution.flatten(1).isfinite().all(1)
        sign = slope.sign() if self.direction == "auto" else torch.ones_like(slope)
        shape = (-1,) + (1,) * (solution.ndim - 1)
        return torch.where(usable.reshape(shape), solution * sign.to(solution.dtype).reshape(shape), gradient)

    def _normalized(self, direction: Tensor) -> Tensor:
        if self.normalize == "sign":
            return direction.sign() if self.norm == "Linf" else unit(direction.sign())
        if self.normalize == "L2":
            return unit(direction)
        if self.normalize == "Linf":
            largest = direction.flatten(1).abs().amax(1).reshape((-1,) + (1,) * (direction.ndim - 1))
            return torch.where(largest > 0, direction / largest, direction)
        return direction
