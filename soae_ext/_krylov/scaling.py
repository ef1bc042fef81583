"""Powers of two: exact factors that keep every intermediate result inside the range of float64."""

from __future__ import annotations

import torch
from torch import Tensor

_REACH = 2040  # beyond it a float64 is zero or infinite, whatever it was


def _power(exponent: Tensor) -> Tensor:
    """2^exponent in float64, exactly, for -1022 <= exponent <= 1023."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """x `(B, …)` float64 times 2^exponent `(B,)`, in two exact steps, so that neither factor leaves the range."""
    exponent = exponent.clamp(-_REACH, _REACH)
    half = torch.div(exponent, 2, rounding_mode="floor")
    shape = (-1, *[1] * (x.ndim - 1))
    return x * _power(half).view(shape) * _power(exponent - half).view(shape)


def split_power(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mantissas in [0.5, 1) and exponents int64 of `x` `(B,)` float64; zero has the exponent 0."""
    mantissa, exponent = torch.frexp(x)
    return mantissa, exponent.to(torch.int64)
