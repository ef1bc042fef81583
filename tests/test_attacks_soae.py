"""The second-order attack against closed forms: quadratic losses, linear softmax models, NumPy's Krylov spaces."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from soae_ext.attacks import FGSM, PGD, SOAE
from soae_ext.attacks.systems import solve_to_subdiagonal
from soae_ext.data import load_digits, shipped_file
from soae_ext.gmres import gmres
from soae_ext.hvp import hessian_operator
from soae_ext.models.small_cnn import load_checkpoint
from tests.attack_cases import Counting

N = 12
X = torch.full((1, N), 0.5, dtype=torch.float64)
Y = torch.zeros(1, dtype=torch.int64)
G = torch.linspace(-1, 1.2, N, dtype=torch.float64)


@pytest.fixture(scope="module")
def network():
    return load_checkpoint(shipped_file("digits_cnn.safetensors"))


@pytest.fixture(scope="module")
def digits():
    return load_digits().first(40)


class Quadratic(nn.Module):
    """Two classes whose margin loss for class 0 is -1 + g'd + d'diag(h)d/2 with d = x - 1/2: gradient g, Hessian h."""

    def __init__(self, h):
        super().__init__()
        self.h = h

    def forward(self, x):
        d = x - 0.5
        rise = d @ G + (d * d) @ self.h / 2
        return torch.stack([torch.zeros_like(rise), rise - 1], 1)


POSITIVE = torch.linspace(1, 3, N, dtype=torch.float64)
# G'H^-1 G is negative for the first and for the second, positive for the third.
NEGATIVE = -POSITIVE
MOSTLY_NEGATIVE = torch.where(torch.arange(N) == N // 2, 1.0, -POSITIVE)
MOSTLY_POSITIVE = torch.where(torch.arange(N) == N // 2, -1.0, POSITIVE)


def step_of(h, **options):
    """(x_adv - x) / step of one un-normalised step that stays inside ball and box."""
    attack = SOAE(
        0.4, steps=1, loss="margin", normalize="identity", step_size=0.01, max_dim=N, threshold=1e-12, **options
    )
    return (attack(Quadratic(h), X, Y).x_adv - X)[0] / 0.01


@pytest.mark.parametrize("hvp", ["traced", "double-backward", "finite-difference"])
@pytest.mark.parametrize("h", [POSITIVE, MOSTLY_POSITIVE])
def test_ascent_is_the_newton_step_where_it_ascends(h, hvp):
    tolerance = 1e-4 if hvp == "finite-difference" else 1e-8
    for direction in ("ascent", "auto"):
        torch.testing.assert_close(step_of(h, direction=direction, hvp=hvp), G / h, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("h", [NEGATIVE, MOSTLY_NEGATIVE])
def test_where_the_newton_step_descends(h):
    """`ascent` follows the gradient, `auto` turns round, and `paper` happens to ascend."""
    assert float(G @ (G / h)) < 0
    torch.testing.assert_close(step_of(h), G, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(step_of(h, direction="auto"), -G / h, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(step_of(h, direction="paper"), -G / h, rtol=1e-8, atol=1e-8)


def test_paper_returns_the_image_where_its_step_lowers_the_loss():
    assert torch.equal(step_of(POSITIVE, direction="paper"), torch.zeros(N, dtype=torch.float64))


def test_without_curvature_the_step_is_the_gradient():
    torch.testing.assert_close(step_of(torch.zeros(N, dtype=torch.float64)), G, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        ("sign", G.sign()),
        ("Linf", G / POSITIVE / (G / POSITIVE).abs().max()),
        ("L2", G / POSITIVE / (G / POSITIVE).norm()),
        ("identity", G / POSITIVE),
    ],
)
def test_normalisers(normalize, expected):
    attack = SOAE(0.4, steps=1, loss="margin", normalize=normalize, step_size=0.01, max_dim=N, threshold=1e-12)
    model = Quadratic(POSITIVE)
    torch.testing.assert_close((attack(model, X, Y).x_adv - X)[0] / 0.01, expected, rtol=1e-8, atol=1e-8)
    if normalize == "sign":
        in_l2 = dataclasses.replace(attack, norm="L2")(model, X, Y).x_adv - X
        torch.testing.assert_close(in_l2[0], 0.01 * G.sign() / G.sign().norm(), rtol=1e-8, atol=1e-10)


def test_closed_form_of_a_linear_softmax_model():
    """H^+ g lowers the true logit by 1/p_y against all others alike: J H^+ g = -e_y / p_y up to a constant."""
    torch.manual_seed(0)
    layer = nn.Linear(N, 5, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), layer)
    x = 0.4 + 0.2 * torch.rand(8, N, dtype=torch.float64)
    logits = model(x).detach()
    y = logits.argmax(1)
    step = 1e-3
    attack = SOAE(0.4, steps=1, normalize="identity", step_size=step, max_dim=8, threshold=1e-11, early_stop=False)
    result = attack(model, x, y)
    moved = (model(result.x_adv).detach() - logits) / step
    p = logits.softmax(1)[torch.arange(8), y]
    expected = -nn.functional.one_hot(y, 5).double() / p[:, None]
    difference = moved - expected
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), rtol=0, atol=1e-6)
    assert int(result.krylov_dims.max()) <= 4


def test_one_krylov_dimension_is_the_gradient(network, digits):
    x, y = digits.images, digits.labels
    second = SOAE(0.3, steps=3, max_dim=1)(network, x, y)
    first = PGD(0.3, steps=3, random_start=False)(network, x, y)
    assert torch.equal(second.success, first.success)
    torch.testing.assert_close(second.x_adv, first.x_adv, rtol=0, atol=1e-5)


def test_a_loss_without_curvature_makes_it_pgd(network, digits):
    x, y = digits.images[:10], digits.labels[:10]
    second = SOAE(0.3, steps=3, loss="margin")(network, x, y)
    first = PGD(0.3, steps=3, loss="margin", random_start=False)(network, x, y)
    torch.testing.assert_close(second.x_adv, first.x_adv, rtol=0, atol=1e-6)


def test_a_relu_network_needs_at_most_one_dimension_less_than_classes(digits):
    model = load_checkpoint(shipped_file("digits_cnn.safetensors")).double()
    x, y = digits.images[:12].double(), digits.labels[:12]
    result = SOAE(0.3, steps=1, max_dim=20, threshold=1e-6, hvp="double-backward")(model, x, y)
    assert 1 < int(result.krylov_dims.max()) <= 9


def test_the_default_ascends_and_the_paper_direction_descends_on_digits(network, digits):
    """One short step along +H^-1 g raises the cross-entropy of every image, one along -H^-1 g lowers it."""
    model = load_checkpoint(shipped_file("digits_cnn.safetensors")).double()
    x, y = digits.images.double(), digits.labels
    right = model(x).argmax(1) == y
    x, y = x[right], y[right]

    def loss(points, labels):
        return nn.functional.cross_entropy(model(points), labels, reduction="none")

    operator = hessian_operator(loss, x, y, method="double-backward")
    solution = gmres(operator, operator.gradient, rtol=1e-4, restart=12, max_iters=12).x
    assert bool(((solution * operator.gradient).flatten(1).sum(1) > 0).all())
    with torch.no_grad():
        clean, up, down = (loss(x + s * solution.sign(), y) for s in (0.0, 1e-3, -1e-3))
        far = loss((x - 0.3 * solution.sign()).clamp(0, 1), y)
    assert bool((up > clean).all())
    assert bool((down < clean).all())
    assert float(far.mean()) < float(clean.mean())

    options = {"steps": 4, "max_dim": 12, "threshold": 1e-3, "hvp": "double-backward"}
    ascent = SOAE(0.3, **options)(model, x, y)
    paper = SOAE(0.3, direction="paper", **options)(model, x, y)
    assert bool((ascent.loss > clean).all())
    assert not paper.success.any()
    assert float((paper.loss - clean).mean()) < 0.01 * float((ascent.loss - clean).mean())


def test_the_default_ascends_on_a_smooth_network():
    """The Hessian of a tanh network is indefinite; no sample's first short step may lower the loss."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(N, 30), nn.Tanh(), nn.Linear(30, 4)).double()
    with torch.no_grad():
        model[0].weight.mul_(3)
    x = torch.rand(60, N, dtype=torch.float64)
    y = model(x).argmax(1)
    clean = nn.functional.cross_entropy(model(x), y, reduction="none").detach()
    operator = hessian_operator(lambda v, t: nn.functional.cross_entropy(model(v), t, reduction="none"), x, y)
    newton = gmres(operator, operator.gradient, rtol=1e-2, restart=N).x
    assert bool(((newton * operator.gradient).sum(1) < 0).any())
    for direction in ("ascent", "auto"):
        result = SOAE(0.3, steps=1, step_size=1e-5, max_dim=N, direction=direction, normalize="L2")(model, x, y)
        assert bool((result.loss > clean).all())


# --- cost, dimensions, random numbers -----------------------------------------------------------------------------


def test_one_sample_costs_what_is_counted_for_it(network, digits):
    """Alone in its batch, so that the passes through the network are its own; with differences, which refute claims."""
    for row, delta0 in ((0, "zero"), (1, "random"), (2, "random")):
        counting = Counting(network)
        options = {"hvp": "finite-difference", "threshold": 1e-1, "max_dim": 9, "delta0": delta0, "early_stop": False}
        x, y = digits.images[row : row + 1], digits.labels[row : row + 1]
        result = SOAE(0.3, steps=3, **options)(counting, x, y)
        assert (result.krylov_dims < 9).any() or row
        assert result.gradient_calls.tolist() == [counting.with_gradient]


@pytest.mark.parametrize(("hvp", "cost"), [("traced", 2), ("double-backward", 2), ("finite-difference", 1)])
def test_gradients_are_one_per_iteration_and_the_products(network, digits, hvp, cost):
    x, y = digits.images, digits.labels
    result = SOAE(0.35, steps=3, hvp=hvp)(network, x, y)
    dims = result.krylov_dims
    assert dims.shape == (40, 3)
    made = (dims > 0).sum(1)
    assert torch.equal(result.gradient_calls, made + cost * (dims.sum(1) + made))
    stopped = made < 3
    assert result.success[stopped].all()
    by_subdiagonal = SOAE(0.35, steps=3, hvp=hvp, threshold_on="subdiagonal")(network, x, y)
    dims = by_subdiagonal.krylov_dims
    assert torch.equal(by_subdiagonal.gradient_calls, (dims > 0).sum(1) + cost * dims.sum(1))


def test_restarts_have_their_own_columns(network, digits):
    x, y = digits.images[:6], digits.labels[:6]
    result = SOAE(0.1, steps=2, restarts=3, max_dim=2)(network, x, y)
    assert result.krylov_dims.shape == (6, 6)


def test_a_random_start_of_the_solve_is_reproducible(network, digits):
    x, y = digits.images[:9], digits.labels[:9]
    attack = SOAE(0.3, steps=2, delta0="random", seed=3)
    whole, chunked = attack(network, x, y), dataclasses.replace(attack, batch_size=4)(network, x, y)
    torch.testing.assert_close(chunked.loss, whole.loss, rtol=1e-2, atol=1e-4)
    other = dataclasses.replace(attack, seed=4)(network, x, y)
    assert not torch.equal(other.x_adv, whole.x_adv)
    plain = SOAE(0.3, steps=2)(network, x, y)
    # One product more per solve: the residual of the start.
    extra = (whole.krylov_dims >= 0).sum(1) + (whole.krylov_dims > 0).sum(1) + 2 * whole.krylov_dims.sum(1)
    assert (whole.gradient_calls >= extra).all()
    assert not torch.equal(plain.x_adv, whole.x_adv)


# --- the subdiagonal criterion ------------------------------------------------------------------------------------


def krylov(a, b, steps):
    """Orthonormal Krylov basis by QR of the power basis, and h_{j+1,j}, in NumPy."""
    powers = [b]
    for _ in range(steps):
        powers.append(a @ powers[-1])
    q, _ = np.linalg.qr(np.stack(powers, 1))
    return q, np.abs(np.diag(q.T @ a @ q, -1))


@pytest.mark.parametrize("with_start", [False, True])
def test_subdiagonal_solve_against_numpy(with_start):
    rng = np.random.default_rng(0)
    batch, n, m, threshold = 6, 9, 5, 0.9
    a = rng.standard_normal((batch, n, n))
    a = a + a.transpose(0, 2, 1)
    a *= np.linspace(0.1, 1, batch)[:, None, None]
    b, start = rng.standard_normal((2, batch, n))
    matrix = torch.from_numpy(a)
    x0 = torch.from_numpy(start) if with_start else None
    solution, dims = solve_to_subdiagonal(
        lambda v: torch.einsum("bij,bj->bi", matrix, v), torch.from_numpy(b), x0, m, threshold
    )
    for i in range(batch):
        r0 = b[i] - a[i] @ start[i] if with_start else b[i]
        q, subdiagonal = krylov(a[i], r0, m)
        below = np.nonzero(subdiagonal[:m] < threshold)[0]
        dim = int(below[0]) + 1 if len(below) else m
        assert int(dims[i]) == dim
        coordinates = np.linalg.lstsq(a[i] @ q[:, :dim], r0, rcond=None)[0]
        expected = q[:, :dim] @ coordinates + (start[i] if with_start else 0)
        np.testing.assert_allclose(solution[i].numpy(), expected, rtol=1e-6, atol=1e-6)
    assert len(set(dims.tolist())) > 1


def test_subdiagonal_solve_of_zero_is_zero():
    b = torch.zeros(2, 4)
    b[1, 0] = 1
    solution, dims = solve_to_subdiagonal(lambda v: 2 * v, b, None, 3, 1e-3)
    torch.testing.assert_close(solution, b / 2)
    assert dims.tolist() == [0, 1]


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"direction": "ascend"}, ValueError, "^direction: .*did you mean 'ascent'"),
        ({"direction": "trustregion"}, ValueError, "^direction: .*did you mean 'trust-region'"),
        ({"normalize": "signs"}, ValueError, "^normalize: .*did you mean 'sign'"),
        ({"threshold_on": "residuals"}, ValueError, "^threshold_on: .*'residual'"),
        ({"hvp": "double_backward"}, ValueError, "^hvp: .*'double-backward'"),
        ({"delta0": "zeros"}, ValueError, "^delta0: .*'zero'"),
        ({"max_dim": 0}, ValueError, "^max_dim: "),
        ({"threshold": -1.0}, ValueError, "^threshold: "),
        ({"threshold": float("nan")}, ValueError, "^threshold: "),
        ({"fd_step": 0.0, "hvp": "finite-difference"}, ValueError, "^fd_step: "),
        ({"fd_step": 0.1}, ValueError, "^fd_step: .*finite-difference"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        SOAE(0.3, **options)


def test_order_of_the_attacks_on_digits(network, digits):
    """At these settings: clean >= SOAE(m=1 is the gradient, more dimensions are weaker) and PGD the strongest."""
    x, y = digits.images, digits.labels
    eps = 0.35
    options = {"steps": 4, "threshold": 1e-4, "early_stop": False}
    losses = [float(SOAE(eps, max_dim=m, **options)(network, x, y).loss.mean()) for m in (1, 3, 9)]
    assert losses[0] > losses[1] > losses[2]
    pgd = float(PGD(eps, steps=12, early_stop=False)(network, x, y).loss.mean())
    fgsm = float(FGSM(eps, early_stop=False)(network, x, y).loss.mean())
    assert pgd > fgsm
    assert pgd > losses[2]
