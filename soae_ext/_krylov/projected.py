"""The two small dense problems on a Krylov space, for all systems at once and in float64.

Both see A through H alone (A V_m = V_{m+1} H) and v as ‖v‖ e_1. H is `(B, m+1, m)`; of system i only the first dims_i
columns exist. Everything is scaled by powers of two first: no threshold here is absolute, and no intermediate result
leaves the range.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from soae_ext._krylov.scaling import split_power, times_power

_SUBNORMAL = 1e-290  # of scaled numbers: below it a quotient has too few digits to be solved for
_RATIO = 400  # log2 of the ratio of two scaled terms beyond which the smaller one adds nothing to the larger
_SWEEPS = 100  # the secular iteration takes 1 to 15, near the hard case too


class Coefficients(NamedTuple):
    """A vector of the Krylov space: V y 2^exponent."""

    y: Tensor  # (B, m) float64, zero beyond dims
    exponent: Tensor  # (B,) int64


def _existing(dims: Tensor, m: int) -> Tensor:
    """`(B, m)` bool: the columns that were built."""
    return torch.arange(m, device=dims.device) < dims[:, None]


def least_squares(hessenberg: Tensor, dims: Tensor, shift: Tensor, eps: float) -> Coefficients:
    """argmin ‖e_1 − (H − shift·I) y‖ by singular values, the shortest such y.

    Singular values of at most 16·eps·max_j ‖H e_j‖ count as zero: what A and the basis carry of rounding errors cannot
    be told from them. So ‖y‖ ≤ 1/(16·eps·max_j ‖H e_j‖), and H − shift·I = 0 gives y = 0.

    Args:
        hessenberg: `(B, m+1, m)` float64, zero beyond dims.
        dims: `(B,)` int64.
        shift: `(B,)` float64.
        eps: of the precision that A and the basis have.
    """
    m = hessenberg.shape[2]
    largest = torch.maximum(hessenberg.abs().amax((1, 2)), shift.abs())
    _, power = split_power(largest)
    h, shift = times_power(hessenberg, -power), times_power(shift, -power)
    size = torch.linalg.vector_norm(h, dim=1).amax(1)
    h.diagonal(dim1=1, dim2=2).sub_(shift[:, None] * _existing(dims, m))

    left, singular, right = torch.linalg.svd(h, full_matrices=False)
    kept = singular > 16 * eps * size[:, None]
    weights = (left[:, 0] / singular).where(kept, 0.0)
    y = (weights[:, None] @ right)[:, 0].where(_existing(dims, m), 0.0)
    return Coefficients(y, -power)


class _Spectrum(NamedTuple):
    """T = Q Λ Qᵀ of every system, the top eigenvalue last. Padding comes first, with first components of zero."""

    vectors: Tensor  # (B, m, m) in columns
    gaps: Tensor  # (B, m) top eigenvalue minus eigenvalue, infinite for padding
    top: Tensor  # (B,)
    first: Tensor  # (B, m) first component of every eigenvector
    exponent: Tensor  # (B,) the eigenvalues are those of T times 2^-exponent, less than 1 in magnitude


def _spectrum(hessenberg: Tensor, dims: Tensor) -> _Spectrum:
    """Of the symmetric part of the square H. Directions beyond dims get an eigenvalue below all others."""
    m = hessenberg.shape[2]
    # Without the row of the vector that comes after the space.
    square = hessenberg[:, :m].where(_existing(dims, m)[:, :, None], 0.0)
    _, exponent = split_power(square.abs().amax((1, 2)))
    square = times_power(square, -exponent)
    symmetric = (square + square.mT) / 2
    _, more = split_power(torch.linalg.matrix_norm(symmetric))
    symmetric, exponent = times_power(symmetric, -more), exponent + more
    # Not zero, which would be the top eigenvalue of a negative definite T, or share its eigenvectors with those of T.
    symmetric.diagonal(dim1=1, dim2=2).masked_fill_(~_existing(dims, m), -2.0)
    values, vectors = torch.linalg.eigh(symmetric)
    padding = ~_existing(dims, m).flip(1)  # -2 sorts below all the others
    top = values[:, -1].masked_fill(dims == 0, 0.0)
    gaps = (top[:, None] - values).masked_fill(padding, torch.inf)
    return _Spectrum(vectors, gaps, top, vectors[:, 0].masked_fill(padding, 0.0), exponent)


def trust_region(hessenberg: Tensor, dims: Tensor, beta: Tensor, scale: Tensor, radius: Tensor) -> Coefficients:
    """argmax over ‖y‖ ≤ radius of β e_1ᵀ y + ½ yᵀ T y for T = (H + Hᵀ)/2 and β = beta·2^scale.

    A maximiser is y = β (λI − T)⁻¹ e_1 with λ ≥ max(λ_max, 0) and λ (radius − ‖y‖) = 0 (Moré & Sorensen, SIAM J. Sci.
    Stat. Comput. 4, 1983). In the eigenbasis of T, with t = λ − λ_max and c = Qᵀ β e_1, y_i = c_i / (t + gap_i): no
    difference of close numbers is left, so t may be as small as it likes. In the hard case, c_top = 0 and ‖y‖ < radius
    at t = 0, the top eigenvector fills y up to the radius; either sign gives the same value.

    Args:
        hessenberg: `(B, m+1, m)` float64, zero beyond dims.
        dims, scale: `(B,)` integers.
        beta, radius: `(B,)` float64, not negative; a beta of zero gives zero.
    """
    spectrum = _spectrum(hessenberg, dims)
    beta, beta_power = split_power(beta)
    beta_power = beta_power + scale
    radius, radius_power = split_power(radius)

    # Where T is negative definite, the maximum of the whole space: β c_i / −λ_i.
    newton = _divide(spectrum.first, spectrum.gaps - spectrum.top[:, None]) * beta[:, None]
    room = times_power(radius, (radius_power + spectrum.exponent - beta_power).clamp(-1000, 1000))
    interior = (spectrum.top <= 0) & (torch.linalg.vector_norm(newton, dim=1) <= room)

    # In units of the radius: z = y / radius solves (μI − K) z = α e_1 with ‖K‖ and α less than 1, one of them near it.
    t_power = radius_power + spectrum.exponent
    common = torch.maximum(t_power, beta_power)
    k_factor = times_power(radius, (t_power - common).clamp(min=-_RATIO))[:, None]
    alpha = times_power(beta, (beta_power - common).clamp(min=-_RATIO))[:, None]
    z = _boundary(spectrum.first * alpha, spectrum.gaps * k_factor)

    y = newton.where(interior[:, None], z * radius[:, None])
    y = (y[:, None] @ spectrum.vectors.mT)[:, 0]
    wanted = _existing(dims, y.shape[1]) & ((beta > 0) & (radius > 0))[:, None]
    return Coefficients(y.where(wanted, 0.0), (beta_power - spectrum.exponent).where(interior, radius_power))


def _divide(c: Tensor, by: Tensor) -> Tensor:
    """c / by, and zero where c is, whatever it is divided by."""
    return (c / by).masked_fill(c == 0, 0.0)


def _boundary(c: Tensor, gaps: Tensor) -> Tensor:
    """z of length 1 with z_i = c_i / (t + gap_i) for a t ≥ 0, or with a top component of its own at t = 0.

    1/‖z‖ is concave in t, so Newton's method for it never passes the root from below, and lands below it from above
    (Conn, Gould & Toint, Trust-Region Methods, 2000, section 7.3). Near the hard case it would creep; there all but the
    top component hardly depend on t, and solving for that one alone jumps to the root from above.
    """
    c = c.masked_fill(c.abs() < _SUBNORMAL, 0.0)
    last = c[:, -1].abs()
    t = (c.abs() - gaps).amax(1)  # below the root: some |z_i| is 1, and none is larger
    for _ in range(_SWEEPS):
        below, others = _newton(c, gaps, t)
        jump = last / (1 - others).sqrt()
        above, _ = _newton(c, gaps, jump.where((others < 1) & (last > 0), t))
        closer = torch.fmax(below, above)
        moved = closer > t * (1 + 4 * torch.finfo(t.dtype).eps)
        t = closer.where(moved, t)
        if not bool(moved.any()):
            break
    z = _divide(c, t[:, None] + gaps)
    missing = (1 - z.square().sum(1)).clamp(min=0.0).sqrt()
    hard = (t == 0) & (c[:, -1] == 0)
    z[:, -1] = missing.where(hard, z[:, -1])
    length: Tensor = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return z / length


def _newton(c: Tensor, gaps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The next t by Newton's method for 1/‖z(t)‖ = 1, and the square of all but the last component at this one."""
    shifted = t[:, None] + gaps
    z = _divide(c, shifted)
    squares = z.square()
    others = squares[:, :-1].sum(1)
    total = others + squares[:, -1]
    step: Tensor = total / _divide(squares, shifted).sum(1) * (total.sqrt() - 1)
    return t + step, others
