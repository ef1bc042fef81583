"""Attacks on a GPU against the same attacks on the CPU."""

import pytest
import torch

from soae_ext.attacks import APGD, FGSM, PGD, SOAE
from soae_ext.data import load_digits
from soae_ext.models import digits_network

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]

ATTACKS = {
    "FGSM": FGSM(0.3),
    "PGD": PGD(0.35, steps=10),
    "APGD": APGD(0.35, steps=10),
    "SOAE": SOAE(0.35, gradients=40),
    "frank-wolfe": SOAE(0.35, steps=3, direction="frank-wolfe", max_dim=3),
    "trust-region": SOAE(2.0, norm="L2", steps=3, direction="trust-region", max_dim=3),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_gpu_finds_what_the_cpu_finds(name):
    """In float64, where the order of sums does not decide on signs."""
    data = load_digits().first(40)
    x, y = data.images.double(), data.labels
    attack = ATTACKS[name]
    here = attack(digits_network().double(), x, y)
    there = attack(digits_network().double().cuda(), x.cuda(), y.cuda())
    assert there.x_adv.device.type == "cuda"
    assert int((here.success != there.success.cpu()).sum()) <= 1
    assert torch.equal(here.gradient_calls, there.gradient_calls.cpu()) or not torch.equal(
        here.success, there.success.cpu()
    )
    moved = (there.x_adv - x.cuda()).flatten(1)
    size = moved.abs().amax(1) if attack.norm == "Linf" else moved.norm(dim=1)
    assert float(size.max()) <= attack.eps + 1e-6
