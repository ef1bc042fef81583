"""The second-order attack: steps along the solution of a Hessian system that GMRES finds without forming a matrix.

Flow of one outer iteration, for the whole batch at once:

    images (B, C, H, W) -> operator v |-> H v -> solver on (B, C, H, W) -> direction -> step, projection -> x_adv

**The sign.** The quadratic model of the loss, Q(d) = g'd + d'Hd/2, has its stationary point at d = -H^-1 g, which is
what the derivation of the second-order attack sets out to use. For a cross-entropy loss on a ReLU network H equals its
Gauss-Newton part almost everywhere and is positive semi-definite, so this point is the *minimum* of Q: literally
applied, -H^-1 g is the step that lowers the loss fastest (`direction="paper"`, kept to show just that). The default,
`"ascent"`, steps along +H^-1 g. It does raise the loss, but the more accurately it is solved the weaker the attack:
+H^-1 g lowers the true logit against all others alike, the gradient (one Krylov dimension) aims at the close ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..gmres import Workspace
from ..hvp import HessianOperator, JacobianOperator, hessian_operator, is_piecewise_linear, jacobian_operator
from ..krylov import Arnoldi, arnoldi
from .base import Attack
from .checks import check_choice, check_count, check_positive
from .directions import damped, largest_curvature, maximize_in_ball, maximize_in_box
from .geometry import per_sample, random_perturbation, steepest_step, unit
from .losses import LossName, Objective
from .plan import DEFAULT_GRADIENTS, Plan, Schedule, SecondOrderSteps, count_steps
from .systems import solve_to_residual, solve_to_subdiagonal
from .task import Task

__all__ = ["SOAE"]

Direction = Literal["ascent", "paper", "auto", "damped", "trust-region", "frank-wolfe", "power"]
Normalize = Literal["sign", "identity", "L2", "Linf"]
ThresholdOn = Literal["residual", "subdiagonal"]
Product = Literal["traced", "double-backward", "finite-difference", "jacobian", "auto"]
Start = Literal["zero", "random"]

# Gradients that one Hessian-vector product costs.
_PRODUCT_COST = {"traced": 2, "double-backward": 2, "finite-difference": 1, "jacobian": 0, "auto": 2}
# Directions that solve a system, to a threshold.
_SOLVES = ("ascent", "auto", "paper")


@dataclass(frozen=True)
class SOAE(Attack):
    """Second-order adversarial examples: x <- P(x + a_t N(d)), where d comes from the quadratic model of the loss.

    A second-order step takes the gradient g, builds a Krylov space of the Hessian H of the per-sample loss from
    Hessian-vector products alone, and costs each image 1 gradient and m products for m Krylov dimensions, with
    `threshold_on="residual"` one more for the true residual. The other steps follow the gradient and cost 1.

    There are two ways to use it. With `steps` it makes that many second-order steps of constant length from the image,
    as the paper's algorithm does. Without, it spends a budget of `gradients` for each image (100) in the way that was
    measured to be the strongest: short runs from random points, whose steps get shorter, every second run on the margin
    loss, and one second-order step at the start; see docs/results for the measurements and what the curvature adds.

    A solution is not used where it is zero, not finite or orthogonal to g, nor, with `"ascent"` and `"damped"`, where
    it does not ascend (<d, g> <= 0, if H is indefinite): the step follows the gradient, or that of the margin loss.

    Args, beyond those of :class:`soae_ext.attacks.base.Attack`:
        steps: outer iterations of each restart; 0 leaves it to `gradients`.
        gradients: a budget for each image, which decides on `steps` and `restarts`; never exceeded. What is left
            where a solve ends early, or is not enough for one more step of every restart, is not spent.
        step_size: `None` is eps with the linear schedule, and min(1, 2.5 / steps) * eps with the constant one.
        random_start, second_order_steps, schedule, rotate_loss, max_dim: `None` is what the table says.
            |                      | with `steps`, or `"paper"` | with a budget, `"ascent"` or `"auto"` | others |
            |----------------------|---|---|---|
            | `random_start`       | False | True | True |
            | `second_order_steps` | `"all"` | 1 | `"all"` |
            | `schedule`           | `"constant"` | `"linear"` | `"linear"` |
            | `rotate_loss`        | False | True | True |
            | `max_dim`            | 5 | 2 | 2 |
        direction: where a second-order step goes, d =
            `"ascent"`: +H^-1 g; `"auto"`: +H^-1 g or -H^-1 g, per sample, whichever ascends; `"paper"`: -H^-1 g, which
            lowers the loss wherever H is positive definite on the Krylov space (see the module);
            `"damped"`: (H + mu I)^-1 g; `"power"`: the direction of largest curvature in the space, turned to ascend;
            `"trust-region"`: the maximiser of the model over an L2 ball of the step's length, exact in the space (in a
            Linf ball of radius a, the L2 ball of radius a sqrt(n), normalised);
            `"frank-wolfe"`: the maximiser of the model over the part of the feasible box (an L2 ball: over the ball)
            within the step's length. `"frank-wolfe"`, and `"trust-region"` in an L2 ball, are not normalised.
        normalize: N(d). `"sign"` is sign(d), in an L2 ball divided by its 2-norm; `"Linf"` and `"L2"` scale d to unit
            norm; `"identity"` leaves it as long as it is. An L1 ball takes the sparse step along d whatever it says.
        second_order_steps: the first so many steps, counted over all restarts, are second-order ones.
        schedule: `"linear"` lets the step length fall, a_t = step_size * (1 - t / steps); `"constant"` keeps it.
        rotate_loss: every second restart climbs the margin loss instead (the cross-entropy where `loss` is the margin).
            Which iterate is best is decided by `loss` all the same.
        max_dim: largest Krylov dimension. On a ReLU network with C classes the exact solution needs at most C - 1.
        threshold: a solve ends when the residual is below `threshold * |g|` (1e-2 is about what one-sided differences
            in single precision resolve), or with
        threshold_on: `"subdiagonal"` when h_{j+1,j} < `threshold`, in the units of H. No true residual is computed
            then. Both are for `"ascent"`, `"auto"` and `"paper"`; the other directions build `max_dim` dimensions.
        damping: mu of `"damped"`, in multiples of the largest |eigenvalue| of H on the space.
        inner_steps: iterations of `"frank-wolfe"` on the model; they cost no products.
        hvp: `"traced"` or `"double-backward"` (exact, 2 gradients each), `"finite-difference"` (1 gradient each), or
            `"jacobian"`: the gradients of all logits, C - 1 for each step with `classes` C, and products for nothing.
            Those are of the Gauss-Newton matrix, which on a ReLU network is H. `"auto"` is `"jacobian"` where it costs
            less and the network is seen to be piecewise linear, for which the first image is passed once more, and
            `"traced"` elsewhere; a budget is cut as for `"traced"`.
        classes: C, for the cost of `"jacobian"` alone.
        fd_step: length of the finite-difference step in pixel units; `None` is 1e-3 * sqrt(n / 784).
        delta0: start of each solve of `"ascent"`, `"auto"` and `"paper"`, `"zero"` or `"random"`: uniform in the ball
            of radius eps. The part of a random start that H maps to zero stays in the solution, as noise.
    """

    _least_steps: ClassVar[int] = 0

    steps: int = 0
    gradients: int | None = None
    direction: Direction = "ascent"
    normalize: Normalize = "sign"
    random_start: bool | None = None
    second_order_steps: SecondOrderSteps | None = None
    schedule: Schedule | None = None
    rotate_loss: bool | None = None
    max_dim: int | None = None
    threshold: float = 1e-2
    threshold_on: ThresholdOn = "residual"
    damping: float = 1.0
    inner_steps: int = 20
    hvp: Product = "traced"
    classes: int | None = None
    fd_step: float | None = None
    delta0: Start = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("direction", self.direction, get_args(Direction))
        check_choice("normalize", self.normalize, get_args(Normalize))
        check_choice("threshold_on", self.threshold_on, get_args(ThresholdOn))
        check_choice("hvp", self.hvp, get_args(Product))
        check_choice("delta0", self.delta0, get_args(Start))
        if self.max_dim is not None:
            check_count("max_dim", self.max_dim, 1)
        check_count("inner_steps", self.inner_steps, 1)
        check_positive("threshold", self.threshold, zero=True)
        check_positive("damping", self.damping, zero=True)
        if self.schedule is not None:
            check_choice("schedule", self.schedule, get_args(Schedule))
        if isinstance(self.second_order_steps, str):
            check_choice("second_order_steps", self.second_order_steps, ("all",))
        elif self.second_order_steps is not None:
            check_count("second_order_steps", self.second_order_steps, 0)
        if self.fd_step is not None:
            check_positive("fd_step", self.fd_step)
            if self.hvp != "finite-difference":
                raise ValueError(f"fd_step: hvp='{self.hvp}' takes no step; use hvp='finite-difference'")
        if (self.classes is None) == (self.hvp == "jacobian"):
            raise ValueError("classes: give the number of classes with hvp='jacobian', and with it alone")
        if self.classes is not None:
            check_count("classes", self.classes, 2)
        if self.direction == "frank-wolfe" and self.norm == "L1":
            raise ValueError("direction: 'frank-wolfe' needs norm Linf or L2; in L1 use 'ascent' or 'trust-region'")
        if self.delta0 == "random" and self.direction not in _SOLVES:
            raise ValueError(f"delta0: direction='{self.direction}' solves no system; leave delta0='zero'")
        if self.gradients is not None:
            check_count("gradients", self.gradients, 1)
            if self.steps:
                raise ValueError(f"gradients: a budget decides on the steps; leave out steps={self.steps}")
        if not self.steps and self.restarts != 1:
            raise ValueError("restarts: a budget decides on them; give steps as well")
        self.plan()

    @property
    def budget(self) -> int | None:
        """Gradients that each image may cost; `None` where `steps` decides."""
        if self.steps:
            return None
        return DEFAULT_GRADIENTS if self.gradients is None else self.gradients

    @property
    def step_cost(self) -> int:
        """Gradients that a second-order step costs at most."""
        return self._step_cost(self.plan().max_dim)

    def plain(self, steps: int = 10) -> SOAE:
        """This attack with as many second-order steps, where it spends a budget; otherwise itself."""
        return self if self.steps else replace(self, steps=steps, gradients=None, second_order_steps="all")

    def plan(self) -> Plan:
        """What the attack will do: as the options say, or what fits into the budget.

        Raises:
            ValueError: the budget does not pay for the second-order steps that were asked for.
        """
        plain = bool(self.steps) or self.direction == "paper"
        few = not plain and self.direction in ("ascent", "auto")
        second = self.second_order_steps
        if second is None:
            second = 1 if few else "all"
        max_dim = self.max_dim or (5 if plain else 2)
        restarts, steps, count = count_steps(self.budget, self.restarts, self.steps, second, self._step_cost(max_dim))
        return Plan(
            restarts=restarts,
            steps=steps,
            second_order_steps=count,
            random_start=not plain if self.random_start is None else self.random_start,
            rotate_loss=not plain if self.rotate_loss is None else self.rotate_loss,
            schedule=self.schedule or ("constant" if plain else "linear"),
            max_dim=max_dim,
        )

    def _step_cost(self, max_dim: int) -> int:
        """Gradients that a second-order step costs at most: at the point, and for products with H."""
        checked = self.direction in _SOLVES and self.threshold_on == "residual"
        products = max_dim + checked + (self.delta0 == "random")
        return self._point_cost + products * _PRODUCT_COST[self.hvp]

    @property
    def _point_cost(self) -> int:
        return 1 if self.classes is None else self.classes - 1

    def _check_fit(self, x: Tensor, classes: int) -> None:
        if self.classes not in (None, classes):
            raise ValueError(f"classes: {self.classes}, but the model has {classes}")

    def _bytes_per_image(self, gradient: int, image: int) -> int:
        # An exact product keeps the graph of the gradient besides that of the loss; a Krylov basis is built in scratch
        # memory and copied out of it.
        graphs = 2 if _PRODUCT_COST[self.hvp] == 2 else 1
        vectors = 2 * (self.plan().max_dim + 1) + 2 * (self.classes or 0)
        return super()._bytes_per_image(graphs * gradient, image) + vectors * image

    def _run(self, task: Task) -> Tensor:
        plan = self.plan()
        task.limit = self.budget
        return self._resolved(plan, task)._follow(plan, task)

    def _resolved(self, plan: Plan, task: Task) -> SOAE:
        """This attack with the products that `hvp="auto"` stands for on this network."""
        if self.hvp != "auto":
            return self
        classes = task.logits.shape[1]
        if plan.second_order_steps and classes - 1 < self._step_cost(plan.max_dim):
            task.forward_calls[:1] += 1
            if is_piecewise_linear(task.objective.model, task.x):
                return replace(self, hvp="jacobian", classes=classes)
        return replace(self, hvp="traced")

    def _follow(self, plan: Plan, task: Task) -> Tensor:
        dims = torch.zeros(len(task.x), plan.restarts, plan.steps, dtype=torch.int64, device=task.x.device)
        workspace = Workspace()
        for restart in range(plan.restarts):
            task.begin(restart, plan.random_start)
            objective = self._objective(task, restart % 2 == 1 and plan.rotate_loss)
            for step in range(plan.steps):
                second = restart * plan.steps + step < plan.second_order_steps
                task.retire(self.step_cost if second else 1)
                if second:
                    if restart + step > 0 or plan.random_start:
                        task.evaluate()
                    if task.active.numel():
                        used = self._second_order_step(task, objective, (restart, step), plan, workspace)
                        dims[task.active, restart, step] = used
                else:
                    gradient = task.gradient(None if objective is task.objective else _loss_of(objective, task))
                    way = steepest_step(gradient, self.norm, task.points)
                    task.move(per_sample(self._length(task, step, plan), way) * way)
            task.evaluate()
        return dims.flatten(1)

    def _objective(self, task: Task, rotated: bool) -> Objective:
        """What a restart climbs."""
        if not rotated:
            return task.objective
        other: LossName = "ce" if self.loss == "margin" else "margin"
        return Objective(task.objective.model, other, self.targeted)

    def _length(self, task: Task, step: int, plan: Plan) -> Tensor:
        """Step lengths of the active samples, `(A,)`."""
        eps = task.eps[task.active]
        if plan.schedule == "constant":
            return eps * min(1.0, 2.5 / plan.steps) if self.step_size is None else torch.full_like(eps, self.step_size)
        return (eps if self.step_size is None else torch.full_like(eps, self.step_size)) * (1 - step / plan.steps)

    def _second_order_step(
        self, task: Task, objective: Objective, at: tuple[int, int], plan: Plan, workspace: Workspace
    ) -> Tensor:
        """Move the active samples; the Krylov dimensions used, `(A,)`."""
        operator = self._operator(objective, task.points, task.labels)
        task.charge(self._point_cost)
        gradient = operator.gradient.detach()
        length = self._length(task, at[1], plan)
        if self.direction in _SOLVES:
            solution, used = self._solve(task, operator, gradient, at, plan.max_dim, workspace)
        else:
            space = arnoldi(operator, gradient, steps=plan.max_dim, workspace=workspace)
            used = space.dims.to(task.active.device)
            task.charge(used * _PRODUCT_COST[self.hvp])
            solution = self._from_space(space, gradient, task, length)
        gradient = task.or_margin_gradient(gradient)
        solution, usable = self._orient(solution, gradient)
        if self.direction == "frank-wolfe" or (self.direction == "trust-region" and self.norm == "L2"):
            # As long as the model says.
            fallback = per_sample(length, gradient) * steepest_step(gradient, self.norm)
            task.move(torch.where(per_sample(usable, solution), solution, fallback))
        else:
            chosen = torch.where(per_sample(usable, solution), solution, gradient)
            task.move(per_sample(length, chosen) * self._normalized(chosen, task))
        return used

    def _operator(self, objective: Objective, points: Tensor, labels: Tensor) -> HessianOperator | JacobianOperator:
        if self.hvp == "jacobian":
            return jacobian_operator(objective.model, objective.of_logits, labels, points)
        return hessian_operator(objective, points, labels, method=self.hvp, step=self.fd_step)

    def _solve(
        self,
        task: Task,
        operator: HessianOperator | JacobianOperator,
        gradient: Tensor,
        at: tuple[int, int],
        m: int,
        workspace: Workspace,
    ) -> tuple[Tensor, Tensor]:
        """The solution d of H d = +-g, and the Krylov dimensions `(A,)`; charges the products."""
        b = -gradient if self.direction == "paper" else gradient
        start = None
        if self.delta0 == "random":
            rows = task.active
            stream = (at[0], at[1] + 1)
            start = random_perturbation(b, task.eps[rows], self.norm, self.seed, stream, task.index[rows.cpu()])
        if self.threshold_on == "subdiagonal":
            solution, used = solve_to_subdiagonal(operator, b, start, m, self.threshold)
            checks = torch.zeros_like(used)
        else:
            solution, used = solve_to_residual(operator, b, start, m, self.threshold, workspace)
            # The true residual of a system that has made an iteration costs one more product.
            checks = (used > 0).long()
        products = used + checks + (0 if start is None else 1)
        task.charge(products * _PRODUCT_COST[self.hvp])
        return solution, used

    def _from_space(self, space: Arnoldi, gradient: Tensor, task: Task, length: Tensor) -> Tensor:
        """What the direction asks of the Krylov space of (H, g), for steps of these lengths `(A,)`."""
        if self.direction == "damped":
            return damped(space, self.damping)
        if self.direction == "power":
            return largest_curvature(space)
        if self.direction == "trust-region":
            n = gradient[0].numel()
            return space.trust_region(length * math.sqrt(n) if self.norm == "Linf" else length)
        if self.norm == "L2":
            return maximize_in_ball(space, gradient, length, self.inner_steps)
        low, high = task.room(length)
        return maximize_in_box(space, gradient, low, high, self.inner_steps)

    def _orient(self, solution: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The solution with the sign that `direction` asks for, and where it is of use, `(A,)` bool."""
        # In double precision the products of single-precision numbers do not underflow.
        slope = (solution.double() * gradient.double()).flatten(1).sum(1)
        usable = slope > 0 if self.direction in ("ascent", "damped") else slope != 0
        usable = usable & solution.flatten(1).isfinite().all(1)
        sign = slope.sign() if self.direction in ("auto", "power") else torch.ones_like(slope)
        return per_sample(sign, solution).to(solution.dtype) * solution, usable

    def _normalized(self, direction: Tensor, task: Task) -> Tensor:
        if self.norm == "L1":
            return steepest_step(direction, "L1", task.points)
        if self.normalize == "sign":
            return direction.sign() if self.norm == "Linf" else unit(direction.sign())
        if self.normalize == "L2":
            return unit(direction)
        if self.normalize == "Linf":
            largest = per_sample(direction.flatten(1).abs().amax(1), direction)
            return torch.where(largest > 0, direction / largest, direction)
        return direction


def _loss_of(objective: Objective, task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda logits, rows: objective.of_logits(logits, task.y[rows])
