"""Options and arguments of the objectives: what they mean together, and what is refused in which words."""

import pytest
import torch
from torch import nn

from soae_ext.attacks import ASOD, PGD, SOAE
from soae_ext.training import (
    SCORPIO,
    SOAR,
    SOAT,
    STN,
    TRADES,
    ASODTraining,
    PGDTraining,
    Standard,
    TrainingObjective,
)
from tests.attack_cases import images
from tests.training_cases import OBJECTIVES, label, labels, tiny

every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=label)


# --- options ------------------------------------------------------------------------------------------------------


def test_scaled_radii():
    assert Standard().scaled(0.5) == Standard()
    assert STN().scaled(0.5) == STN()
    assert PGDTraining(0.2).scaled(0.5) == PGDTraining(0.1)
    assert PGDTraining(0.2, step_size=0.1).scaled(0.5) == PGDTraining(0.1, step_size=0.05)
    assert TRADES(0.2, norm="L2", step_size=0.1).scaled(0.5) == TRADES(0.1, norm="L2", step_size=0.05)
    assert SOAR(0.2).scaled(0.5) == SOAR(0.1)
    assert SCORPIO(0.2, steps=2).scaled(0.5) == SCORPIO(0.1, steps=2)
    assert SOAT(0.2).scaled(0.5) == SOAT(0.1)
    assert SOAT.paper(0.2).scaled(0.5) == SOAT.paper(0.1)
    assert ASODTraining(0.2, norm="L2").scaled(0.5) == ASODTraining(0.1, norm="L2")


def test_a_ball_may_be_given_by_itself_or_with_an_attack():
    attack = SOAE(0.2, norm="L2", steps=3)
    given = SOAT(attack=attack)
    assert (given.eps, given.norm, given.attack) == (0.2, "L2", SOAE(0.2, norm="L2", steps=3, early_stop=False))
    assert SOAT(0.2, norm="L2", attack=attack) == given
    assert SOAT(0.2).attack.norm == "Linf"
    assert SOAT(12.0, norm="L1").attack.direction == "trust-region"


def test_the_settings_of_the_paper():
    """Algorithm 1 with T = 4 and alpha = eps: no random point, but a random start of every solve."""
    attack = SOAT.paper(0.2).attack
    assert (attack.steps, attack.step_size, attack.plan().second_order_steps) == (4, 0.05, 4)
    assert (attack.hvp, attack.delta0, attack.plan().random_start) == ("finite-difference", "random", False)
    assert (attack.threshold, attack.threshold_on, attack.max_dim) == (1e-3, "residual", 9)
    assert (attack.direction, attack.normalize) == ("ascent", "sign")
    attack = SOAT.paper(0.2, norm="L2", direction="paper", max_dim=4).attack
    assert (attack.direction, attack.normalize, attack.max_dim) == ("paper", "L2", 4)
    assert SOAT.paper(0.0).attack.eps == 0


@every_objective
def test_a_ball_of_radius_zero_holds_the_image(objective):
    if not hasattr(objective, "eps") or isinstance(objective, SOAR):
        return  # SOAR bounds 1/2 |M z| - 1/2 there
    model, x, y = tiny(), images(6), labels(6)
    still = objective.scaled(1e-300)
    torch.testing.assert_close(still(model, x, y), Standard()(model, x, y), rtol=1e-12, atol=1e-12)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PGDTraining(-0.1), ValueError, "^eps: "),
        (lambda: PGDTraining("0.1"), TypeError, "^eps: "),
        (lambda: PGDTraining(0.1, norm="L1"), ValueError, "^norm: .*choose from Linf, L2"),
        (lambda: PGDTraining(0.1, steps=0), ValueError, "^steps: "),
        (lambda: PGDTraining(0.1, step_size=0.0), ValueError, "^step_size: "),
        (lambda: TRADES(0.1, beta=-1.0), ValueError, "^beta: "),
        (lambda: TRADES(0.1, steps=1.5), TypeError, "^steps: "),
        (lambda: SOAR(0.1, hvp="traced"), ValueError, "^hvp: .*finite-difference, double-backward"),
        (lambda: SOAR(0.1, fd_step=0.0), ValueError, "^fd_step: "),
        (lambda: STN(sigma=-1.0), ValueError, "^sigma: "),
        (lambda: STN(gamma=float("nan")), ValueError, "^gamma: "),
        (lambda: STN(target="softmx"), ValueError, "^target: .*did you mean 'softmax'"),
        (lambda: SCORPIO(0.1, steps=0), ValueError, "^steps: "),
        (lambda: SCORPIO(0.1, weight=-1.0), ValueError, "^weight: "),
        (lambda: SCORPIO(0.1, hvp="exact"), ValueError, "^hvp: "),
        (lambda: SCORPIO(0.1, fd_step=-1.0), ValueError, "^fd_step: "),
        (lambda: SOAT(), ValueError, "^eps: SOAT needs the radius"),
        (lambda: SOAT(0.1, attack=SOAE(0.2)), ValueError, "^eps: 0.1, but the attack's is 0.2"),
        (lambda: SOAT(0.1, norm="L2", attack=SOAE(0.1)), ValueError, "^norm: 'L2', but the attack's is 'Linf'"),
        (lambda: SOAT(attack=PGD(0.1)), TypeError, "^attack: SOAT trains on SOAE, got PGD"),
        (lambda: SOAT(attack=SOAE(torch.ones(3))), ValueError, "^eps: .*give a float"),
        (lambda: SOAT(attack=SOAE(0.1, targeted=True)), ValueError, "^attack: .*targeted=False"),
        (lambda: SOAT(0.1, norm="L3"), ValueError, "^norm: "),
        (lambda: ASODTraining(0.1, norm="L1"), ValueError, "^norm: "),
        (lambda: ASODTraining(attack=SOAE(0.1)), TypeError, "^attack: ASOD trains on ASOD, got SOAE"),
    ],
)
def test_options_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


@every_objective
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": images(4) * 255}, ValueError, "^x: images must lie in "),
        ({"x": (images(4) * 255).byte()}, TypeError, "^x: must be float32 or float64"),
        ({"x": images(4) + torch.nan}, ValueError, "^x: images must lie in "),
        ({"x": images(0), "y": labels(0)}, ValueError, "^x: holds no images"),
        ({"y": labels(3)}, ValueError, "^y: must hold one label per image"),
        ({"y": labels(4).float()}, TypeError, "^y: labels must be int64"),
        ({"y": labels(4).clamp_min(1) + 1}, ValueError, "^y: labels must be below the number of classes, 3; got 3"),
        ({"y": labels(4) - 3}, ValueError, "^y: labels must not be negative"),
        ({"seed": -1}, ValueError, "^seed: "),
        ({"index": torch.arange(3)}, ValueError, "^index: "),
        ({"index": torch.arange(4) - 1}, ValueError, "^index: "),
        ({"model": nn.Flatten(0)}, ValueError, "^model: must map images"),
    ],
)
def test_arguments_are_refused_by_name(objective, changed, error, message):
    arguments = {"model": tiny(), "x": images(4), "y": labels(4), "seed": 0, "index": None, **changed}
    with pytest.raises(error, match=message):
        objective(arguments["model"], arguments["x"], arguments["y"], seed=arguments["seed"], index=arguments["index"])


def test_a_network_that_has_diverged_is_an_error_of_arithmetic():
    """Attacks refuse logits that are not finite; in training that is no fault of an argument."""
    model = tiny()
    model[1].weight.data[0, 0] = torch.nan
    for objective in (SOAT(0.1), ASODTraining(attack=ASOD(0.1, steps=1, samples=1))):
        with pytest.raises(FloatingPointError, match=r"^model: its parameter '1\.weight' is not finite any more"):
            objective(model, images(4), labels(4))
    assert bool(PGDTraining(0.1)(model, images(4), labels(4)).isnan())
    overflowing = tiny()
    overflowing[-1].weight.data.fill_(torch.finfo(torch.float64).max)
    with pytest.raises(FloatingPointError, match=r"^model: its logits are not finite any more$"):
        SOAT(0.1)(overflowing, images(4), labels(4))


def test_objectives_are_values():
    assert all(isinstance(objective, TrainingObjective) for objective in OBJECTIVES)
    assert len(set(OBJECTIVES)) == len(OBJECTIVES)
    assert PGDTraining(0.1) == PGDTraining(eps=0.1)
    with pytest.raises(TypeError):
        PGDTraining(0.1, 7)
