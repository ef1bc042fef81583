"""Every objective against a slow transcription of its formula: image by image, dense Hessians, in double precision."""

import math

import pytest
import torch

from soae_ext.attacks import ASOD, SOAE
from soae_ext.attacks.geometry import gaussian_noise, random_start
from soae_ext.training import SCORPIO, SOAR, SOAT, STN, TRADES, ASODTraining, PGDTraining, Standard
from tests.attack_cases import images
from tests.training_cases import OBJECTIVES, N, label, labels, parameter_gradient, tiny

COUNT, SEED = 6, 3
INDEX = torch.arange(COUNT) + 40


def loss_of(model, image, y):
    """-log softmax(z)_y of one image."""
    z = model(image[None])[0]
    return torch.log(torch.exp(z).sum()) - z[y]


def slope(function, image):
    point = image.clone().requires_grad_(True)
    return torch.autograd.grad(function(point), point)[0]


def dense(model, image, y):
    """Loss, gradient (N,) and Hessian (N, N) of one image; they may be differentiated."""
    flat = image.flatten().clone().requires_grad_(True)
    loss = loss_of(model, flat.reshape(image.shape), y)
    (g,) = torch.autograd.grad(loss, flat, create_graph=True)
    rows = [torch.autograd.grad(entry, flat, create_graph=True)[0] for entry in g]
    return loss, g, torch.stack(rows)


def climb(function, image, start, eps, step, steps, norm):
    point = start
    for _ in range(steps):
        g = slope(function, point)
        if norm == "Linf":
            point = torch.minimum(torch.maximum(point + step * g.sign(), image - eps), image + eps)
        else:
            moved = point + step * g / g.norm() - image
            point = image + moved * min(1.0, eps / float(moved.norm()))
        point = point.clamp(0, 1)
    return point


def assert_same(objective, model, transcription, **tolerance):
    """Value and gradient with respect to the parameters."""
    x, y = images(COUNT), labels(COUNT)
    result = objective.step(model, x, y, seed=SEED, index=INDEX)
    expected = torch.stack([transcription(row, image, int(y[row])) for row, image in enumerate(x)]).mean()
    torch.testing.assert_close(result.loss, expected, **tolerance)
    mine, theirs = parameter_gradient(model, result.loss), parameter_gradient(model, expected)
    scale = float(theirs.abs().max())
    torch.testing.assert_close(mine / scale, theirs / scale, **tolerance)
    return result


EXACT = {"rtol": 1e-9, "atol": 1e-9}
# The L2 ball of the package is smaller by 2^-20 of its radius.
BALL = {"Linf": EXACT, "L2": {"rtol": 1e-5, "atol": 1e-5}}


def test_standard():
    model = tiny()
    assert_same(Standard(), model, lambda row, image, y: loss_of(model, image, y), **EXACT)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.2), ("L2", 0.7)])
@pytest.mark.parametrize("options", [{}, {"steps": 2, "step_size": 0.13}, {"random_start": False}])
def test_pgd(norm, eps, options):
    model, x = tiny(), images(COUNT)
    radius = torch.full((COUNT,), eps, dtype=torch.float64)
    starts = random_start(x, radius, norm, SEED, 0, INDEX) if options.get("random_start", True) else x
    steps = options.get("steps", 7)
    step = options.get("step_size", 2.5 / steps * eps)

    def transcription(row, image, y):
        found = climb(lambda point: loss_of(model, point, y), image, starts[row], eps, step, steps, norm)
        assert float((found - image).abs().max()) > 0.1 * eps / (1 if norm == "Linf" else math.sqrt(N))
        return loss_of(model, found, y)

    assert_same(PGDTraining(eps, norm=norm, **options), model, transcription, **BALL[norm])


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.2), ("L2", 0.7)])
@pytest.mark.parametrize("options", [{}, {"steps": 2, "step_size": 0.05, "beta": 1.0}])
def test_trades(norm, eps, options):
    model, x = tiny(), images(COUNT)
    noise = gaussian_noise(x, 0.001, SEED, (0,), INDEX)[0]
    steps = options.get("steps", 10)
    step = options.get("step_size", 2.5 / steps * eps)

    def divergence(p, q):
        return sum(p[k] * (torch.log(p[k]) - torch.log(q[k])) for k in range(3))

    def probabilities(image):
        z = torch.exp(model(image[None])[0])
        return z / z.sum()

    def transcription(row, image, y):
        p = probabilities(image)
        found = climb(
            lambda point: divergence(p.detach(), probabilities(point)),
            image,
            image + noise[row],
            eps,
            step,
            steps,
            norm,
        )
        return loss_of(model, image, y) + options.get("beta", 6.0) * divergence(p, probabilities(found))

    # Near the image the divergence is a difference of nearly equal numbers.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if norm == "L2" else {"rtol": 1e-8, "atol": 1e-8}
    assert_same(TRADES(eps, norm=norm, **options), model, transcription, **tolerance)


@pytest.mark.parametrize("target", ["softmax", "logits"])
def test_stn(target):
    model, x = tiny(), images(COUNT)
    noise = gaussian_noise(x, 0.3, SEED, (0,), INDEX)[0]

    def transcription(row, image, y):
        z, noisy = model(image[None])[0], model(image[None] + noise[row])[0]
        aim = torch.exp(z) / torch.exp(z).sum() if target == "softmax" else z.detach()
        log_q = noisy - torch.log(torch.exp(noisy).sum())
        return loss_of(model, image, y) - 0.7 * sum(aim[k] * log_q[k] for k in range(3))

    assert_same(STN(0.3, gamma=0.7, target=target), model, transcription, **EXACT)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.5)])
@pytest.mark.parametrize("hvp", ["double-backward", "finite-difference"])
def test_soar(norm, eps, hvp):
    model, x = tiny(), images(COUNT)
    half = torch.full((COUNT,), eps / 2, dtype=torch.float64)
    starts = random_start(x, half, norm, SEED, 0, INDEX)
    z_n = gaussian_noise(x, 1.0, SEED, (1,), INDEX)[0].flatten(1)
    z_1 = gaussian_noise(torch.zeros(COUNT, 1, dtype=torch.float64), 1.0, SEED, (2,), INDEX)[0]
    h = 0.02

    def transcription(row, image, y):
        found = climb(lambda p: loss_of(model, p, y), starts[row], starts[row], eps / 2, eps / 2, 1, norm)
        loss, g, hessian = dense(model, found, y)
        if hvp == "double-backward":
            m = torch.cat([torch.cat([hessian, g[:, None]], 1), torch.cat([g, torch.ones(1)])[None]])
            product = m @ torch.cat([z_n[row], z_1[row]])
        else:
            _, moved, _ = dense(model, found + h * z_n[row].reshape(found.shape), y)
            product = torch.cat([(moved - g) / h + z_1[row] * g, (g @ z_n[row])[None] + z_1[row]])
        squared_radius = N * eps**2 if norm == "Linf" else eps**2
        return loss + (squared_radius + 1) / 2 * torch.sqrt((product**2).sum()) - 0.5

    objective = SOAR(eps, norm=norm, hvp=hvp, fd_step=h)
    assert_same(objective, model, transcription, **(BALL[norm] if norm == "L2" else {"rtol": 1e-8, "atol": 1e-8}))


def test_soar_moves_away_from_the_image_within_the_ball():
    """The point is one step of half the radius away from a point of half the ball; the L2 start is uniform there."""
    model, x, seen = tiny(), images(200, 0.3, 0.7), []
    handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    for norm, eps in (("Linf", 0.1), ("L2", 0.5)):
        seen.clear()
        SOAR(eps, norm=norm)(model, x, labels(200))
        start, point = (seen[0] - x).flatten(1), (seen[1] - x).flatten(1)
        order = math.inf if norm == "Linf" else 2
        assert float(start.norm(order, dim=1).max()) <= eps / 2
        assert float(start.norm(order, dim=1).mean()) > 0.4 * eps
        assert float(point.norm(order, dim=1).max()) <= eps * (1 + 1e-12)
        moved = (point - start).norm(order, dim=1)
        torch.testing.assert_close(moved, torch.full_like(moved, eps / 2), rtol=1e-5, atol=0)
    handle.remove()


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.2), ("L2", 0.8)])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("hvp", ["double-backward", "finite-difference"])
def test_scorpio(norm, eps, steps, hvp):
    model, h = tiny(), 0.03

    def transcription(row, image, y):
        loss, g, hessian = dense(model, image, y)

        def product(d):
            if hvp == "double-backward":
                return hessian @ d
            return (dense(model, image + h * d.reshape(image.shape), y)[1] - g) / h

        d = torch.zeros(N, dtype=torch.float64)
        for k in range(steps):
            rise = (g + product(d)).detach()
            corner = eps * rise.sign() if norm == "Linf" else eps * rise / rise.norm()
            d = d + 2 / (k + 2) * (corner - d)
        assert float(d.norm()) > 0.1 * eps
        return loss + 0.7 * (g @ d + d @ product(d) / 2)

    objective = SCORPIO(eps, norm=norm, steps=steps, weight=0.7, hvp=hvp, fd_step=h)
    assert_same(objective, model, transcription, rtol=1e-8, atol=1e-8)


def test_soat_trains_on_the_best_iterate_along_the_solution():
    """Two steps x <- P(x + a sign(+-H^-1 g)) with dense solves; fooled counts first, then the loss."""
    model, eps = tiny(), 0.15

    def transcription(row, image, y):
        candidates = [image]
        for _ in range(2):
            _, g, hessian = dense(model, candidates[-1], y)
            # Six hidden units: the Hessian has rank 6, and the gradient lies in its range.
            d = (torch.linalg.pinv(hessian, rtol=1e-10) @ g).detach()
            d = (d * torch.sign(d @ g.detach())).reshape(image.shape)
            moved = candidates[-1] + 0.1 * d.sign()
            candidates.append(torch.minimum(torch.maximum(moved, image - eps), image + eps).clamp(0, 1).detach())
        losses = [loss_of(model, point, y) for point in candidates]
        fooled = [int(model(point[None]).argmax()) != y for point in candidates]
        chosen.append(max(range(3), key=lambda k: (fooled[k], float(losses[k].detach()))))
        return losses[chosen[-1]]

    chosen = []
    attack = SOAE(
        eps,
        steps=2,
        direction="auto",
        step_size=0.1,
        max_dim=N,
        threshold=1e-13,
        threshold_on="subdiagonal",
        hvp="double-backward",
    )
    result = assert_same(SOAT(attack=attack), model, transcription, rtol=1e-7, atol=1e-7)
    assert len(set(chosen)) > 1
    assert result.krylov_dims.shape == (COUNT, 2)
    assert int(result.krylov_dims.max()) >= 6


@pytest.mark.parametrize(
    "objective", [SOAT(0.2), SOAT.paper(0.2), ASODTraining(0.2), ASODTraining(attack=ASOD(0.2, steps=3, samples=2))]
)
def test_training_on_an_attack_is_cross_entropy_on_what_it_finds(objective):
    model, x, y = tiny(), images(COUNT), labels(COUNT)
    kind = type(objective.attack)
    options = {name: value for name, value in vars(objective.attack).items() if name not in ("seed", "early_stop")}
    found = kind(**options, seed=SEED, early_stop=False)(model, x, y, index=INDEX)
    assert_same(objective, model, lambda row, image, y: loss_of(model, found.x_adv[row], y), **EXACT)
    result = objective.step(model, x, y, seed=SEED, index=INDEX)
    assert torch.equal(result.gradients, found.gradient_calls + 1)
    assert torch.equal(result.adversarial_correct, ~found.success)


# Perturbations made of signs are constants between the points where a sign flips, so that the gradient is that of the
# whole objective, as it is called. STN with logits as target is no gradient of what it returns.
PIECEWISE = [
    Standard(),
    PGDTraining(0.1, steps=3),
    TRADES(0.1, steps=3),
    SOAR(0.05, hvp="double-backward"),
    SOAR(0.05),
    STN(0.2),
    SCORPIO(0.1),
    SCORPIO(0.1, steps=2, hvp="double-backward"),
    SOAT(attack=SOAE(0.1, steps=2, direction="auto", max_dim=3, hvp="double-backward")),
    ASODTraining(attack=ASOD(0.1, steps=2, samples=2, sigma=0.1)),
]


@pytest.mark.parametrize("objective", PIECEWISE, ids=label)
def test_the_gradient_is_the_slope_of_the_objective(objective):
    """Central differences along random directions in the space of the parameters."""
    model, x, y = tiny(1), images(COUNT), labels(COUNT)
    gradient = parameter_gradient(model, objective(model, x, y, seed=SEED))
    point = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    generator = torch.Generator().manual_seed(0)

    def value(where):
        torch.nn.utils.vector_to_parameters(where, model.parameters())
        return objective(model, x, y, seed=SEED).detach()

    for _ in range(4):
        v = torch.randn(len(point), generator=generator, dtype=torch.float64)
        h = 1e-5
        difference = (value(point + h * v) - value(point - h * v)) / (2 * h)
        torch.testing.assert_close(gradient @ v, difference, rtol=1e-5, atol=1e-7)


def test_every_objective_is_transcribed():
    assert {objective.name for objective in OBJECTIVES} == {o.name for o in PIECEWISE}
