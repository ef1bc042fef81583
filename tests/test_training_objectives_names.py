"""Objectives written as text: `NAME[-STEPS][:key=value[,key=value...]]`."""

import pytest

from soae_ext import training
from soae_ext.attacks import ASOD, SOAE
from soae_ext.training import SCORPIO, SOAR, SOAT, STN, TRADES, ASODTraining, PGDTraining, Standard, TrainingObjective
from soae_ext.training.names import OBJECTIVES, parse_objective


def test_every_objective_has_a_name():
    classes = [getattr(training, name) for name in training.__all__ if isinstance(getattr(training, name), type)]
    kinds = {kind for kind in classes if issubclass(kind, TrainingObjective)} - {TrainingObjective}
    assert {kind.name for kind in kinds} | {"SOAT-paper"} == set(OBJECTIVES)
    for name in OBJECTIVES:
        assert isinstance(parse_objective(name, eps=0.1)[1], TrainingObjective)


@pytest.mark.parametrize(
    ("spec", "name", "expected"),
    [
        ("standard", "Standard", Standard()),
        ("PGD", "PGD", PGDTraining(0.1)),
        ("pgd-10", "PGD-10", PGDTraining(0.1, steps=10)),
        ("PGD:steps=10,step_size=2/255", "PGD-10:step_size=2/255", PGDTraining(0.1, steps=10, step_size=2 / 255)),
        ("PGD:eps=8/255,norm=L2", "PGD:eps=8/255,norm=L2", PGDTraining(8 / 255, norm="L2")),
        ("PGD:random-start=false", "PGD:random_start=false", PGDTraining(0.1, random_start=False)),
        ("TRADES-3:beta=1", "TRADES-3:beta=1", TRADES(0.1, steps=3, beta=1.0)),
        ("SOAR:hvp=double-backward", "SOAR:hvp=double-backward", SOAR(0.1, hvp="double-backward")),
        ("STN:sigma=100/255,target=logits", "STN:sigma=100/255,target=logits", STN(100 / 255, target="logits")),
        ("SCORPIO-1:weight=2", "SCORPIO-1:weight=2", SCORPIO(0.1, steps=1, weight=2.0)),
        ("SOAT", "SOAT", SOAT(0.1)),
        ("SOAT:eps=0.3", "SOAT:eps=0.3", SOAT(0.3)),
        ("SOAT:norm=L2", "SOAT:norm=L2", SOAT(0.1, norm="L2")),
        (
            "SOAT:gradients=20,hvp=traced",
            "SOAT:gradients=20,hvp=traced",
            SOAT(
                attack=SOAE(0.1, gradients=20, hvp="traced", direction="frank-wolfe", max_dim=2, second_order_steps=1)
            ),
        ),
        ("SOAT-4", "SOAT-4", SOAT(attack=SOAE(0.1, steps=4))),
        (
            "SOAT:steps=4,direction=damped,norm=L2",
            "SOAT-4:direction=damped,norm=L2",
            SOAT(attack=SOAE(0.1, steps=4, direction="damped", norm="L2", normalize="L2")),
        ),
        ("SOAT-paper", "SOAT-paper", SOAT.paper(0.1)),
        (
            "soat-PAPER:direction=paper,max_dim=3",
            "SOAT-paper:direction=paper,max_dim=3",
            SOAT.paper(0.1, direction="paper", max_dim=3),
        ),
        ("ASOD-7:samples=1", "ASOD-7:samples=1", ASODTraining(attack=ASOD(0.1, steps=7, samples=1))),
    ],
)
def test_specs(spec, name, expected):
    assert parse_objective(spec, eps=0.1, norm=None) == (name, expected)


def test_defaults_fill_what_the_spec_leaves_open():
    assert parse_objective("PGD:eps=0.3", eps=0.1, norm="L2")[1] == PGDTraining(0.3, norm="L2")
    assert parse_objective("SOAT-paper", eps=0.1, norm="L2")[1] == SOAT.paper(0.1, norm="L2")
    assert parse_objective("ASOD", eps=0.1, norm="L2")[1] == ASODTraining(0.1, norm="L2")
    assert parse_objective("STN", eps=0.1, norm="L2")[1] == STN()


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("", "objective: unknown name ''; choose from"),
        ("TRADE", "objective: unknown name 'TRADE'; did you mean 'TRADES'?"),
        ("PGD:stepz=3", "objective: 'PGD:stepz=3': unknown name 'stepz'; did you mean 'steps'?"),
        ("PGD:steps", "objective: 'PGD:steps': expected key=value after the colon, got 'steps'"),
        ("PGD-3:steps=4", "objective: 'PGD-3:steps=4': steps is given twice"),
        ("PGD:norm=L1", "objective: 'PGD:norm=L1': norm: "),
        ("PGD:eps=-1", "objective: 'PGD:eps=-1': eps: must be finite and not negative, got -1.0"),
        ("STN-4", "objective: 'STN-4': unknown name 'steps'; choose from sigma, gamma, target"),
        ("SOAT:early_stop=true", "objective: 'SOAT:early_stop=true': early_stop: the examples of training are"),
        ("SOAT:seed=3", "objective: 'SOAT:seed=3': seed: every step of training has a seed of its own"),
        ("SOAT:gradients=1", "objective: 'SOAT:gradients=1': gradients: 1 are too few"),
        ("ASOD:targeted=true", "objective: 'ASOD:targeted=true': targeted: the labels are what is learnt"),
        ("SOAT-paper:gradients=3", "objective: 'SOAT-paper:gradients=3': unknown name 'gradients'"),
    ],
)
def test_refusals(spec, complaint):
    with pytest.raises(ValueError, match=r"^objective: ") as error:
        parse_objective(spec, eps=0.1)
    assert str(error.value).startswith(complaint)


def test_defaults_are_blamed_by_their_own_name():
    with pytest.raises(ValueError, match=r"^eps: SOAR needs the radius of the ball, for example eps=8/255$"):
        parse_objective("SOAR")
    with pytest.raises(ValueError, match=r"^eps: must be finite and not negative, got -1$"):
        parse_objective("SOAR", eps=-1)
    with pytest.raises(ValueError, match=r"^norm: .*choose from Linf, L2 for PGD$"):
        parse_objective("PGD", eps=0.1, norm="L1")
    assert parse_objective("Standard") == ("Standard", Standard())
