"""The attacks' cross-entropy: the usual function, and derivatives that keep their digits where it is nearly zero."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional as F

from soae_ext.attacks.losses import cross_entropy

LOGITS = arrays(np.float64, (4, 5), elements=st.floats(-60, 60))


@settings(max_examples=50, deadline=None)
@given(LOGITS, arrays(np.int64, 4, elements=st.integers(0, 4)))
def test_it_is_the_cross_entropy(logits, labels):
    z, y = torch.from_numpy(logits), torch.from_numpy(labels)
    torch.testing.assert_close(cross_entropy(z, y), F.cross_entropy(z, y, reduction="none"), rtol=1e-12, atol=1e-13)


def test_derivatives_of_both_orders_agree_with_differences():
    torch.manual_seed(0)
    z = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randint(5, (6,))
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, y), z)
    assert torch.autograd.gradgradcheck(lambda z: cross_entropy(z, y), z)


def test_single_precision_keeps_its_digits_where_the_network_is_certain():
    """Against the closed form in double precision: gradient p - e_y, Hessian diag(p) - p p^T, with p_y -> 1."""
    for gap in (5.0, 20.0, 60.0):
        z = torch.tensor([gap, 0.0, -1.0, 0.5])
        with np.errstate(under="ignore"):
            others = np.exp(np.float64([0.0, -1.0, 0.5]) - gap)
        p = others / (1 + others.sum())
        gradient = np.r_[-p.sum(), p]
        hessian = np.diag(np.r_[p.sum() * (1 - p.sum()), p])
        hessian[0, 1:] = hessian[1:, 0] = -p * (1 - p.sum())
        hessian[1:, 1:] -= np.outer(p, p)

        def loss(z):
            return cross_entropy(z[None], torch.tensor([0])).sum()

        np.testing.assert_allclose(torch.func.grad(loss)(z), gradient, rtol=1e-5)
        rows = torch.autograd.functional.hessian(loss, z)
        np.testing.assert_allclose(rows[0], hessian[0], rtol=1e-5)
        np.testing.assert_allclose(rows.diagonal(), hessian.diagonal(), rtol=1e-5)
