"""Curvature of a loss with respect to its input, as operators for the solvers.

``hessian_operator`` gives v -> H v, ``gauss_newton_operator`` v -> J^T (diag(p) - p p^T) J v; neither forms a matrix.
``jacobian_operator`` is the latter for few classes, from J itself; ``is_piecewise_linear`` tells where both are equal.

How a compiled product (``method="traced"``) is kept: the loss is run under a tracer once for every loss, autocast
setting, train/eval mode and kind of input (dtype, device, shape). Whatever values the tensors have is free to change:
``x``, the tensors in ``args`` (also inside dicts, lists and tuples), and every parameter, buffer and other tensor that
the loss reaches through closures, globals, attributes and modules, whether it was updated in place or replaced. Python
numbers and strings that the loss's code refers to are constants of the trace; when one has changed the loss is traced
again. Equal functions share a trace, so a ``lambda`` may be written anew in a loop. What Python code cannot be followed
to (NumPy arrays, compiled extensions, library state) must not change. At most 32 traces are kept; they hold no
parameters and no data.

A batch that shrinks from call to call would be traced again for every size, so a trace for up to 1.5 times as many
samples is used with copies of the first sample, provided that a sample's loss did not change when its neighbours did.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from soae_ext._hvp import jacobian
from soae_ext._hvp.curvature import Autocast, GaussNewtonProblem, HessianProblem
from soae_ext._hvp.jacobian import JacobianOperator, LossOfLogits
from soae_ext._hvp.linearize import Linearization, double_backward, finite_difference, traced
from soae_ext._hvp.loss_arguments import take
from soae_ext._hvp.piecewise import is_piecewise_linear

__all__ = [
    "METHODS",
    "HessianOperator",
    "JacobianOperator",
    "gauss_newton_operator",
    "hessian_operator",
    "is_piecewise_linear",
    "jacobian_operator",
]

METHODS = ("double-backward", "finite-difference", "traced", "inductor")

_Problem = HessianProblem | GaussNewtonProblem
_Build = Callable[[_Problem, Tensor, tuple[Any, ...]], Linearization]
_EXACT: dict[str, _Build] = {
    "double-backward": double_backward,
    "traced": traced,
    "inductor": functools.partial(traced, inductor=True),
}


class HessianOperator:
    """A curvature product ``v (B, *shape) -> (B, *shape)`` at one point; made by the functions of this module.

    The operator belongs to the point, arguments and weights that it was made with; products are detached and own
    their memory, ``v`` is not written to, and the module's mode, ``requires_grad`` flags and ``.grad`` are left alone.
    It may be called under ``torch.no_grad()`` and ``torch.inference_mode()``.

    Attributes:
        gradient: (B, *shape), gradient of each sample's loss at ``x``.
        loss: (B,), the losses at ``x``.
        method: the method in use: one of ``METHODS``, or ``"input-only"`` when ``"traced"`` or ``"inductor"`` was asked
            for and the loss could not be traced.
    """

    def __init__(
        self, problem: _Problem, build: _Build, x: Tensor, args: tuple[Any, ...], parent: HessianOperator | None = None
    ) -> None:
        self._problem, self._build, self._x, self._args, self._parent = problem, build, x, args, parent
        self._calls = 0
        self._linearization = _linearize(problem, build, x, args)
        self._count(1)
        with torch.inference_mode(False), torch.no_grad():  # copies: the product may still need the originals
            self.gradient = torch.empty_like(x).copy_(self._linearization.gradient)
            self.loss = self._linearization.losses.clone()
        self.method = self._linearization.method

    @property
    def gradient_calls(self) -> int:
        """Cost so far in gradients of the batch.

        The linearisation at ``x`` counts 1 (it yields ``.gradient``), every exact product 2, a one-sided difference 1,
        a central one 2. Compiling is not counted. What operators made by ``restrict`` spend is included.
        """
        return self._calls

    @property
    def adjoint(self) -> HessianOperator:
        """The operator itself: curvature matrices are symmetric."""
        return self

    def __call__(self, v: Tensor) -> Tensor:
        """The product with ``v`` (B, *shape), in the dtype and on the device of ``x``.

        Raises ``TypeError`` if ``v`` is no tensor or has another dtype, ``ValueError`` for another shape or device, and
        ``RuntimeError`` if weights were changed in place since the operator was made.
        """
        _check_direction(v, self._x)
        if self._x.numel() == 0:
            return torch.zeros_like(self._x)
        self._count(self._linearization.product_cost)
        with torch.inference_mode(False), torch.no_grad():
            direction = _same_layout(v.clone() if v.is_inference() else v.detach(), self._x)
            # a copy: the product may be v itself, a constant of the trace, or autograd's zero without memory
            return torch.empty_like(direction).copy_(self._linearization.product(direction))

    def restrict(self, index: Tensor | Sequence[int]) -> HessianOperator:
        """The operator on the samples ``index``: positions (k,), or a mask (B,) of dtype bool.

        Arguments of the loss are narrowed along with ``x`` if they are plain tensors, passed directly, whose leading
        dimension is B. Parameters, tensors that require grad, and whatever is inside a list, tuple or dict are shared
        by the batch: to pass a shared tensor that happens to have leading dimension B, wrap it in a tuple.
        The samples are linearised anew, which counts as one gradient; all counts go to this operator too.

        Raises ``TypeError`` or ``ValueError`` for a bad index, and ``ValueError`` if the restricted loss differs from
        this operator's: then the loss couples its samples or a shared argument was narrowed.
        """
        rows = _as_rows(index, self._x)
        part = HessianOperator(self._problem, self._build, self._x[rows], take(self._args, rows, len(self._x)), self)
        expected = self.loss[rows]
        scale = torch.where(expected.isfinite(), expected.abs(), 0).max() if len(rows) else expected.sum()
        if not torch.allclose(part.loss, expected, rtol=1e-2, atol=1e-2 * scale.item(), equal_nan=True):
            raise ValueError(
                "restrict: the loss of the chosen samples differs from their loss in the whole batch: wrap arguments "
                "that the batch shares in a tuple, and use a loss that treats samples independently (model.eval())"
            )
        return part

    def __repr__(self) -> str:
        return f"HessianOperator(shape={tuple(self._x.shape)}, dtype={self._x.dtype}, method={self.method!r})"

    def _count(self, gradients: int) -> None:
        self._calls += gradients
        if self._parent is not None:
            self._parent._count(gradients)


def hessian_operator(
    loss: Callable[..., Tensor],
    x: Tensor,
    *args: Any,
    method: str = "traced",
    step: float | None = None,
    central: bool = False,
) -> HessianOperator:
    """The Hessian of ``loss`` at ``x``, one block per sample, as a ``HessianOperator``.

    Args:
        loss: ``loss(x, *args) -> (B,)``, one loss per sample (``reduction="none"``). It may close over modules.
        x: (B, *shape), floating point, any device and strides. Copied.
        args: labels, parameters (for ``torch.func.functional_call``), ...; dicts, lists and tuples are looked into.
        method: ``"traced"`` compiles the product once and runs only what it needs (see the module's text);
            ``"inductor"`` has ``torch.compile`` fuse the operators of that, which takes it seconds to minutes the first
            time and needs its compiler. ``"double-backward"`` is plain autograd. All are exact: d<gradient, v>/dx
            (Pearlmutter 1994).
            ``"finite-difference"`` is (g(x + h u) - g(x)) |v| / h with the unit vector u = v / |v| of each sample.
        step: h of the finite difference, in units of ``x``; default 1e-3 sqrt(n / 784) for n pixels per sample.
            The quotient is divided by the step actually taken, <(x + h u) - x, u>.
        central: use (g(x + h u) - g(x - h u)) |v| / 2h: twice the cost, error of second order in h.

    A loss that does not depend on ``x``, or is piecewise linear, has zero products. Where autograd gives a kink a
    derivative (ReLU: 0 at 0), the exact methods follow it. If the loss cannot be traced, one warning says why and
    autograd without weight gradients takes over.

    Raises ``TypeError`` or ``ValueError`` naming the argument: an ``x`` that is not floating point or has no batch
    dimension, a loss that does not return (B,), an unknown method, a step that is not positive, half precision with
    finite differences, ``step`` or ``central`` with an exact method.
    """
    if not callable(loss):
        raise TypeError(f"loss must be callable, got {type(loss).__name__}")
    _check_point(x)
    if method not in METHODS:
        raise ValueError(f"method: unknown {method!r}; choose one of {', '.join(map(repr, METHODS))}")
    if method == "finite-difference":
        build = _difference(x, step, central)
    elif step is not None or central:
        raise ValueError(f"step and central belong to method='finite-difference', got method={method!r}")
    else:
        build = _EXACT[method]
    return HessianOperator(HessianProblem(loss, Autocast.current(x.device)), build, _copy(x), _usable(args))


def gauss_newton_operator(
    logits_fn: Callable[[Tensor], Tensor], y: Tensor, x: Tensor, *, method: str = "traced"
) -> HessianOperator:
    """The Gauss-Newton matrix of cross-entropy at ``x``, one block per sample: v -> J^T (diag(p) - p p^T) J v.

    J is the Jacobian of ``logits_fn(x) -> (B, C)`` and p its softmax (Schraudolph 2002). It is positive semi-definite
    of rank at most C - 1, and equals the Hessian where the logits are piecewise linear in ``x``. ``y`` (B,) int64
    holds the labels: they enter ``.loss`` and ``.gradient`` only. ``method`` is ``"traced"`` or ``"double-backward"``.
    A product costs 2 gradients.

    Raises ``TypeError`` or ``ValueError`` as ``hessian_operator`` does, and for labels not (B,) int64 in [0, C).
    """
    if method not in _EXACT:
        raise ValueError(f"method: unknown {method!r}; choose one of {', '.join(map(repr, _EXACT))}")
    _check_classified(logits_fn, y, x)
    problem = GaussNewtonProblem(logits_fn, Autocast.current(x.device))
    try:
        return HessianOperator(problem, _EXACT[method], _copy(x), _usable((y,)))
    except IndexError as error:
        raise ValueError(f"y must hold labels below the number of classes: {error}") from error


def jacobian_operator(
    logits_fn: Callable[[Tensor], Tensor], loss: LossOfLogits, y: Tensor, x: Tensor
) -> JacobianOperator:
    """The Gauss-Newton matrix of ``loss`` at ``x`` from the Jacobian of the logits, as a ``JacobianOperator``.

    What ``gauss_newton_operator`` gives for cross-entropy, for C - 1 gradients at the point and none for a product. On
    networks whose logits are piecewise linear in ``x`` (ReLU, max pooling) it is the Hessian, and with C classes three
    or four exact products cost as much.

    Args:
        logits_fn: ``logits_fn(x) -> (B, C)``, C >= 2.
        loss: ``loss(logits, y) -> (B,)``, twice differentiable, of differences of logits alone: adding a number to all
            logits of an image must not change it. It is called with float64 logits.
        y: (B,) int64 labels, in [0, C).
        x: (B, *shape), floating point.

    Raises ``TypeError`` or ``ValueError`` naming the argument, as ``gauss_newton_operator`` does, and for a loss that
    depends on more than differences.
    """
    _check_classified(logits_fn, y, x)
    return jacobian.build(logits_fn, loss, y, x)


def _check_classified(logits_fn: object, y: object, x: Tensor) -> None:
    if not callable(logits_fn):
        raise TypeError(f"logits_fn must be callable, got {type(logits_fn).__name__}")
    _check_point(x)
    if not isinstance(y, Tensor) or y.dtype != torch.int64:
        raise TypeError(f"y must be a tensor of int64 labels, got {getattr(y, 'dtype', type(y).__name__)}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape (B,) = ({x.shape[0]},), got {tuple(y.shape)}")
    if y.numel() and y.min() < 0:
        raise ValueError(f"y must not be negative, got {y.min().item()}")


def _difference(x: Tensor, step: float | None, central: bool) -> _Build:
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x: finite differences need float32 or float64, got {x.dtype}: use an exact method")
    if step is None:
        step = 1e-3 * math.sqrt(max(1, math.prod(x.shape[1:])) / 784)
    if isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step < math.inf:
        raise ValueError(f"step must be a positive number, got {step!r}")
    h = float(step)
    return lambda problem, point, args: finite_difference(problem, point, args, h, central)


def _linearize(problem: _Problem, build: _Build, x: Tensor, args: tuple[Any, ...]) -> Linearization:
    if x.numel() == 0:
        return Linearization(x.new_zeros(len(x)), torch.zeros_like(x), torch.zeros_like, "empty")
    try:
        return build(problem, x, args)
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise RuntimeError(
            "hvp: the loss uses tensors that were made under torch.inference_mode() and cannot be differentiated: "
            "make the model and its inputs outside of it, or use torch.no_grad()"
        ) from error


def _check_point(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}: use torch.as_tensor")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}: use x.float()")
    if x.ndim < 2:
        raise ValueError(f"x must have shape (B, *shape), got {tuple(x.shape)}: add a batch dimension: x[None]")


def _check_direction(v: Tensor, x: Tensor) -> None:
    if not isinstance(v, Tensor):
        raise TypeError(f"v must be a tensor, got {type(v).__name__}")
    if v.shape != x.shape:
        raise ValueError(f"v must have the shape of x {tuple(x.shape)}, got {tuple(v.shape)}: use v.reshape(x.shape)")
    if v.dtype != x.dtype:
        raise TypeError(f"v must have the dtype of x {x.dtype}, got {v.dtype}: use v.to(x.dtype)")
    if v.device != x.device:
        raise ValueError(f"v must be on the device of x {x.device}, got {v.device}: use v.to(x.device)")


def _as_rows(index: Tensor | Sequence[int], x: Tensor) -> Tensor:
    rows = torch.as_tensor(index, device=x.device)
    if rows.dtype == torch.bool and rows.shape == x.shape[:1]:
        rows = rows.nonzero()[:, 0]
    if rows.ndim != 1 or (len(rows) and (rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool)):
        raise TypeError(f"index must be positions (k,) or a boolean mask (B,), got {rows.dtype} {tuple(rows.shape)}")
    rows = rows.long()
    if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < len(x)):
        raise ValueError(f"index must lie in [0, {len(x)}), got {rows.tolist()}")
    return rows


def _same_layout(tensor: Tensor, x: Tensor) -> Tensor:
    """Contiguous, or channels-last where ``x`` is: traces depend on strides."""
    if x.is_contiguous():
        return tensor.contiguous()
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[x.ndim])


def _copy(x: Tensor) -> Tensor:
    """A private copy of ``x`` in one of the standard layouts, free of autograd and inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        for layout in {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(x.ndim, []):
            if x.is_contiguous(memory_format=layout) and not x.is_contiguous():
                return x.clone(memory_format=layout)
        return x.clone(memory_format=torch.contiguous_format)


def _usable(args: Any) -> Any:
    """Arguments whose tensors autograd may save: those made in inference mode are copied."""
    if isinstance(args, Tensor):
        with torch.inference_mode(False):
            return args.clone() if args.is_inference() else args
    if isinstance(args, dict):
        return type(args)((key, _usable(value)) for key, value in args.items())
    if isinstance(args, list | tuple):
        items = [_usable(value) for value in args]
        return type(args)(*items) if hasattr(args, "_fields") else type(args)(items)
    return args
