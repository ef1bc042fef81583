"""Convolutions that are differentiable in their input only, to any order.

PyTorch's double backward of a convolution always computes the gradient of the weight too, wanted or not: one extra
convolution per layer with image-sized filters, a third of the cost of a Hessian-vector product with respect to the
image. A convolution is linear in its input, so the pair below (the map and its adjoint, each the derivative of the
other) needs no weight gradient at any order. Inside ``input_only_convolutions()`` every convolution whose weight does
not depend on the input takes this path; results are those of the ordinary operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Geometry(NamedTuple):
    """The arguments of ``aten::convolution`` after input, weight and bias."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        result: Tensor = torch.ops.aten.convolution.default(x, weight, bias, *geometry)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight = ctx.saved_tensors
        return _apply(_Adjoint, grad, x.detach(), weight, ctx.geometry), None, None, None


class _Adjoint(torch.autograd.Function):
    """grad -> the gradient of the input; ``x`` lends its shape and layout alone."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry = geometry
        result: Tensor = torch.ops.aten.convolution_backward.default(
            grad, x, weight, None, *geometry, [True, False, False]
        )[0]
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return _apply(_Convolution, grad, weight, None, ctx.geometry), None, None, None


def _apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    result: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]  # no types in torch
    return result


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_SIGNATURES: dict[Any, tuple[str, ...]] = {
    torch.conv1d: _CONV,
    torch.conv2d: _CONV,
    torch.conv3d: _CONV,
    torch.conv_transpose1d: _CONV_TRANSPOSE,
    torch.conv_transpose2d: _CONV_TRANSPOSE,
    torch.conv_transpose3d: _CONV_TRANSPOSE,
}


def _per_dimension(value: int | Sequence[int], dimensions: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values


def _constant(tensor: Tensor | None) -> bool:
    """Whether a tensor cannot depend on the input: no history, or a leaf of the graph."""
    return tensor is None or tensor.is_leaf


class input_only_convolutions(TorchFunctionMode):
    """Context manager; ``x`` is the leaf that is differentiated, so it is never taken for a constant weight."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self._x = x

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        names = _SIGNATURES.get(func)
        if names is not None:
            given = dict(zip(names, args, strict=False)) | dict(kwargs or {})
            if self._applies(given):
                geometry = _geometry(given, transposed="output_padding" in names)
                return _apply(_Convolution, given["input"], given["weight"], given.get("bias"), geometry)
        return func(*args, **(kwargs or {}))

    def _applies(self, given: Mapping[str, Any]) -> bool:
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        return (
            x.dim() == weight.dim()  # a batch of images, not a single one
            and weight is not self._x
            and bias is not self._x
            and _constant(weight)
            and _constant(bias)
            and not isinstance(given.get("padding"), str)
            and not torch.is_autocast_enabled(x.device.type)  # autocast would have to cast the weight first
        )


def _geometry(given: Mapping[str, Any], transposed: bool) -> _Geometry:
    dimensions = given["weight"].dim() - 2
    return _Geometry(
        _per_dimension(given.get("stride", 1), dimensions),
        _per_dimension(given.get("padding", 0), dimensions),
        _per_dimension(given.get("dilation", 1), dimensions),
        transposed,
        _per_dimension(given.get("output_padding", 0), dimensions),
        given.get("groups", 1),
    )
