"""The ways to obtain a curvature product at a point, and the cache of compiled ones.

Each function returns a ``Linearization``: losses (B,), gradient like ``x`` and the product. Arguments are checked by
``soae_ext.hvp``.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from soae_ext._hvp.curvature import Problem, Product, differentiable, gradient
from soae_ext._hvp.fingerprint import Fingerprint, TooManyObjects, describe, survey, tensor_token
from soae_ext._hvp.input_conv import input_only_convolutions
from soae_ext._hvp.loss_arguments import Args, LossArguments, pad
from soae_ext._hvp.trace import CompiledProduct, Untraceable, compile_product

_LARGEST_CACHE = 32  # compiled products and refusals; the least recently used is dropped
_TOO_MANY = 8  # recompilations of one loss for one kind of input before a warning names the cause
_PADDING = 1.5  # a compiled product is used for fewer samples while it is at most this many times too large


@dataclass(frozen=True)
class Linearization:
    """``method`` is the way in use: a loss that cannot be compiled is reported as ``"input-only"``."""

    losses: Tensor
    gradient: Tensor
    product: Product
    method: str
    product_cost: int = 2


def double_backward(problem: Problem, x: Tensor, args: Args, method: str = "double-backward") -> Linearization:
    """Ordinary autograd: one graph is kept, every product is one more backward pass through it."""
    with differentiable(x.device):
        leaf = x.detach().requires_grad_()
        if method == "input-only":
            with input_only_convolutions(leaf):
                losses, slope, product = problem.expand(leaf, *args)
        else:
            losses, slope, product = problem.expand(leaf, *args)

    def apply(v: Tensor) -> Tensor:
        with differentiable(v.device):
            return product(v)

    return Linearization(losses.detach(), slope.detach(), apply, method)


def finite_difference(problem: Problem, x: Tensor, args: Args, step: float, central: bool) -> Linearization:
    """Difference of gradients along the unit vector of each sample's direction.

    ``x + h u`` is rounded, so the quotient is divided by the step that was taken, measured along u: the sum over the
    pixels of ((x + h u) - x) u. The part of the rounding that is orthogonal to u stays as noise of relative size
    eps |x| / h. A step that rounds away altogether gives NaN.
    """
    losses, slope = gradient(problem, x, args)

    def apply(v: Tensor) -> Tensor:
        flat = v.flatten(1)
        # dividing by the largest entry first keeps the sum of squares in range
        largest = flat.abs().amax(dim=1, keepdim=True)
        scaled = flat / torch.where(largest > 0, largest, torch.ones_like(largest))
        norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
        unit = scaled / torch.where(norm > 0, norm, torch.ones_like(norm))
        h_unit = (step * unit).reshape(v.shape)
        ahead = x + h_unit
        behind = x - h_unit if central else x
        rise = gradient(problem, ahead, args)[1] - (gradient(problem, behind, args)[1] if central else slope)
        taken = ((ahead - behind).flatten(1) * unit).sum(dim=1, keepdim=True)
        result = rise.flatten(1) / taken * norm * largest
        return torch.where(largest == 0, torch.zeros_like(result), result).reshape(v.shape)

    return Linearization(losses, slope, apply, "finite-difference", 2 if central else 1)


# linearize and apply of a CompiledProduct.
Functions = tuple[Callable[..., tuple[Tensor, ...]], Callable[..., Tensor] | None]


@dataclass
class _Entry:
    """A compiled product, or the reason why there is none, and what it is valid for."""

    key: Hashable
    fingerprint: Fingerprint
    volatile: frozenset[str]  # paths that the loss itself changes when it runs, such as call counters
    batch: int
    compiled: CompiledProduct | None
    refusal: str = ""
    independent: bool = False  # no sample's loss depends on another sample, so the batch may be padded
    fused: Functions | None = None  # the graphs as inductor compiles them, once they were asked for

    def fits(self, key: Hashable, fingerprint: Fingerprint) -> bool:
        same_code = self.fingerprint.tokens["loss"] == fingerprint.tokens["loss"]
        return same_code and self.key == key and not fingerprint.difference(self.fingerprint, self.volatile)


@dataclass
class _Cache:
    """Entries, most recently used last. Tensors of the loss are referred to by path, so none is kept alive."""

    entries: list[_Entry] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, entry: _Entry) -> None:
        self.entries = [*self.entries, entry][-_LARGEST_CACHE:]

    def drop(self, entry: _Entry) -> None:
        self.entries = [e for e in self.entries if e is not entry]

    def find(self, key: Hashable, fingerprint: Fingerprint, batch: int) -> _Entry | None:
        """An entry for this loss and these inputs that has room for ``batch`` samples and is not much too large."""
        fitting = [e for e in self.entries if e.batch >= batch and e.fits(key, fingerprint)]
        exact = [e for e in fitting if e.batch == batch or not e.compiled]
        roomy = [e for e in fitting if e.independent and e.batch <= _PADDING * batch]
        found = exact[-1] if exact else min(roomy, key=lambda e: e.batch, default=None)
        if found is not None:
            self.drop(found)
            self.add(found)
        return found


_cache = _Cache()


def traced(problem: Problem, x: Tensor, args: Args, *, inductor: bool = False) -> Linearization:
    """Compiled product; compiles on the first use of a loss with a kind of input, else reuses what there is.

    `inductor`: the recorded graphs are compiled once more, by `torch.compile`.
    """
    parts = LossArguments(args, x.shape[0])
    layout = tensor_token(x[0])
    key = (type(problem), problem.autocast, layout, parts.specification(), torch.get_default_dtype())
    roots = {"loss": problem.function, **parts.constants}
    try:
        with _cache.lock:
            found = survey(roots)
            entry = _cache.find(key, found, x.shape[0])
            if entry is not None and entry.compiled is not None:
                try:
                    return _run(entry, entry.compiled, x, parts, found, inductor)
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError:  # the graph no longer suits: something that no path leads to has changed
                    _cache.drop(entry)
                    entry = None
            if entry is None:
                entry = _compile(problem, x, parts, key, roots, found)
            if entry.compiled is not None:
                _cache.add(entry)
                return _run(entry, entry.compiled, x, parts, found, inductor)
    except TooManyObjects as error:
        entry = _Entry(key, Fingerprint(), frozenset(), x.shape[0], None, str(error))
    result = double_backward(problem, x, args, method="input-only")
    if not any(e is entry for e in _cache.entries):
        if entry.fingerprint.tokens:
            _cache.add(entry)
        warnings.warn(
            f"hvp: the loss {describe(problem.function)!r} cannot be compiled: {entry.refusal}. Its exact products "
            "come from autograd instead, with input-only convolutions",
            stacklevel=5,
        )
    return result


def _compile(
    problem: Problem, x: Tensor, parts: LossArguments, key: Hashable, roots: dict[str, Any], before: Fingerprint
) -> _Entry:
    batch = x.shape[0]
    relatives = [e for e in _cache.entries if e.key == key and e.compiled and e.batch == batch]
    relatives = [e for e in relatives if e.fingerprint.tokens["loss"] == before.tokens["loss"]]
    if len(relatives) == _TOO_MANY:
        path = before.difference(relatives[-1].fingerprint, relatives[-1].volatile)[0]
        warnings.warn(
            f"hvp: the loss {describe(problem.function)!r} has been compiled {_TOO_MANY} times for inputs of one "
            f"shape because {path!r} keeps changing: pass it to the loss as a tensor argument",
            stacklevel=6,
        )
    siblings = [e for e in _cache.entries if e.independent and e.fits(key, before)]
    size = _bucket(batch) if siblings else batch
    points, tensors = pad(x, size), parts.padded(size)
    entry = _Entry(key, Fingerprint(before.tokens), frozenset(), size, None)
    try:
        compiled = compile_product(problem, points, tensors, parts.rebuild, before.tensors)
        inputs = [points, *tensors, *_captured(compiled, before)]
        entry.independent = _verify(compiled, problem, inputs, parts)
        entry.volatile = frozenset(survey(roots).difference(before))
        if not entry.volatile.isdisjoint(c for c in compiled.captured if isinstance(c, str)):
            raise Untraceable("it replaces a tensor that it uses")
        entry.compiled = compiled
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the loss did while it was traced: autograd will run it, or raise it again
        entry.refusal = _reason(error)
        entry.volatile = frozenset(survey(roots).difference(before))
    return entry


def _reason(error: Exception) -> str:
    if isinstance(error, Untraceable):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _bucket(batch: int) -> int:
    """The next larger of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: a shrinking batch meets few sizes."""
    power = 1 << (batch - 1).bit_length()
    return 3 * power // 4 if batch <= 3 * power // 4 and power >= 4 else power


def _verify(compiled: CompiledProduct, problem: Problem, inputs: list[Tensor], parts: LossArguments) -> bool:
    """Compare the graph with the loss on a batch whose second half has been replaced by samples of the first.

    Raises ``Untraceable`` if they differ; tells whether the first half's losses stayed what they were.
    """
    x, batch = inputs[0], inputs[0].shape[0]
    half = batch - batch // 2
    index = torch.cat([torch.arange(half), torch.arange(batch // 2).flip(0)])
    given = inputs[: 1 + len(parts.tensors)]
    changed = [t[index.to(t.device)] if s else t for t, s in zip(given, [True, *parts.per_sample], strict=True)]
    with differentiable(x.device):
        expected = problem.losses(changed[0].requires_grad_(), *parts.rebuild(changed[1:])).detach()
    with static(x.device):
        losses = compiled.linearize(*changed, *inputs[len(given) :])[0]
        unchanged = compiled.linearize(*inputs)[0]
    if not _agree(losses, expected):
        raise Untraceable("it does not give the same losses twice, or it depends on values that the trace cannot see")
    return _agree(unchanged[:half], losses[:half])


def _agree(a: Tensor, b: Tensor) -> bool:
    """Equal to rounding, relative to the largest loss of the batch; a NaN equals a NaN."""
    scale = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0.0
    tolerance = min(1e3 * torch.finfo(b.dtype).eps, 0.05)
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _captured(compiled: CompiledProduct, fingerprint: Fingerprint) -> list[Tensor]:
    return [c if isinstance(c, Tensor) else fingerprint.tensors[c] for c in compiled.captured]


@contextmanager
def static(device: torch.device) -> Iterator[None]:
    """Run a recorded graph as it is: no autograd, and no autocast, whose casts are in the graph already."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _fused(entry: _Entry, compiled: CompiledProduct) -> Functions:
    if entry.fused is None:
        linearize = torch.compile(compiled.linearize, dynamic=False)
        entry.fused = linearize, compiled.apply and torch.compile(compiled.apply, dynamic=False)
    return entry.fused


def _run(
    entry: _Entry, compiled: CompiledProduct, x: Tensor, parts: LossArguments, found: Fingerprint, inductor: bool
) -> Linearization:
    batch, size = x.shape[0], entry.batch
    inputs = [pad(x, size), *parts.padded(size), *_captured(compiled, found)]
    linearize, apply = _fused(entry, compiled) if inductor else (compiled.linearize, compiled.apply)
    with static(x.device):
        losses, slope, *state = linearize(*inputs)
    state.extend(inputs[i] for i in compiled.direct)
    watched = [(t, _version(t)) for t in inputs[1:]]

    def product(v: Tensor) -> Tensor:
        if apply is None:
            return torch.zeros_like(v)
        if any(_version(t) != version for t, version in watched):
            raise RuntimeError(
                "HessianOperator: a tensor that the loss uses was changed in place after the operator was built "
                "(an optimizer step?): build a new operator, it reuses the compiled product"
            )
        with static(v.device):
            return apply(pad(v, size), *state)[:batch]

    return Linearization(losses[:batch], slope[:batch], product, "inductor" if inductor else "traced")
