"""Whether a network is piecewise linear in its images, read off the operators that it runs."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from soae_ext._hvp.trace import guarded

__all__ = ["is_piecewise_linear"]

_aten = torch.ops.aten

# Linear, or linear on pieces, in all of their tensors together.
_PIECEWISE = {
    _aten.abs, _aten.adaptive_avg_pool2d, _aten._adaptive_avg_pool2d, _aten.add, _aten.add_, _aten.alias, _aten.amax,
    _aten.amin, _aten.avg_pool2d, _aten.cat, _aten.clamp, _aten.clamp_max, _aten.clamp_min, _aten.clone,
    _aten.constant_pad_nd, _aten.copy, _aten.detach, _aten.expand, _aten.flatten, _aten.flip, _aten.hardtanh,
    _aten.hardtanh_, _aten.leaky_relu, _aten.leaky_relu_, _aten.lift_fresh_copy, _aten.max, _aten.maximum,
    _aten.max_pool2d_with_indices, _aten.mean, _aten.min, _aten.minimum, _aten.neg, _aten.permute,
    _aten.reflection_pad2d, _aten.relu, _aten.relu_, _aten.replication_pad2d, _aten.reshape, _aten.roll, _aten.select,
    _aten.slice, _aten.split, _aten.squeeze, _aten.stack, _aten.sub, _aten.sub_, _aten.sum, _aten.t, _aten._to_copy,
    _aten.threshold, _aten.transpose, _aten.unbind, _aten.unsqueeze, _aten._unsafe_view,
    _aten.upsample_bilinear2d, _aten.upsample_nearest2d, _aten.view,
}  # fmt: skip
# Linear in each of these arguments; only one of them may depend on the image, and nothing else may.
_FACTORS = {
    _aten.addmm: (1, 2), _aten.baddbmm: (1, 2), _aten.batch_norm: (0,), _aten.bmm: (0, 1), _aten.convolution: (0,),
    _aten.cudnn_batch_norm: (0,), _aten.div: (0,), _aten.div_: (0,), _aten.linear: (0,), _aten.mm: (0, 1),
    _aten.mul: (0, 1), _aten.mul_: (0, 1), _aten.native_batch_norm: (0,),
    _aten._native_batch_norm_legit_no_training: (0,), _aten.prelu: (0,), _aten._prelu_kernel: (0,),
}  # fmt: skip
# Made from the shape of the image alone.
_CONSTANT = {
    _aten.empty_like, _aten.full_like, _aten.new_empty, _aten.new_full, _aten.new_ones, _aten.new_zeros,
    _aten.ones_like, _aten.zeros_like,
}  # fmt: skip
_SUMMED = {_aten.addmm, _aten.baddbmm}  # argument 0 is added to the product


def is_piecewise_linear(logits_fn: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether every operator between the image and the logits is known to be linear on pieces.

    `True` is a proof for such images: the Hessian of a loss of the logits is its Gauss-Newton part wherever it exists.
    `False` says nothing: an operator may be unknown here, or the function may not be traceable. Costs one forward pass.

    Args:
        logits_fn: maps images to logits; in eval mode, as dropout and batch statistics are not linear.
        x: images `(B, *shape)`, of which the first is passed.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def traced(x: Tensor) -> Tensor:
        with guarded(), torch.no_grad():
            return logits_fn(x)

    try:
        graph = make_fx(traced)(x[:1].detach().clone()).graph
    except Exception:  # whatever the function did while it was traced
        return False
    depends: set[fx.Node] = {next(node for node in graph.nodes if node.op == "placeholder")}
    for node in graph.nodes:
        constant = getattr(node.target, "overloadpacket", None) in _CONSTANT
        if node.op != "call_function" or constant or depends.isdisjoint(node.all_input_nodes):
            continue
        if not _keeps_pieces(node, depends):
            return False
        depends.add(node)
    return True


def _keeps_pieces(node: fx.Node, depends: set[fx.Node]) -> bool:
    """Whether the node is linear on pieces if the nodes `depends` are."""
    target: Any = node.target
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False
    packet = target.overloadpacket
    if target._schema.is_mutable and node.args[0] not in depends:
        return False  # what else refers to the memory that is written to would now depend on the image too
    if packet in _PIECEWISE:
        return True
    if packet not in _FACTORS or ("batch_norm" in str(packet) and _training(node)):
        return False
    factors = _FACTORS[packet]
    allowed = (*factors, 0) if packet in _SUMMED else factors
    positions = [i for i, argument in enumerate(node.args) if argument in depends]
    others = [argument for argument in node.kwargs.values() if argument in depends]
    return not others and set(positions) <= set(allowed) and sum(i in factors for i in positions) <= 1


def _training(node: fx.Node) -> bool:
    schema = node.target._schema.arguments  # type: ignore[union-attr]  # an operator: the caller has looked
    given = {argument.name: value for argument, value in zip(schema, node.args, strict=False)} | node.kwargs
    return bool(given.get("training", False))
