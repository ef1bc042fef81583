"""Attacks written as text: `NAME[-STEPS][:key=value[,key=value...]]`."""

import contextlib
import re
from dataclasses import fields
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soae_ext import attacks
from soae_ext.attacks import APGD, ASOD, FGSM, PGD, SOAE
from soae_ext.attacks.names import ATTACKS, number, option_types, parse_attack


def test_every_attack_has_a_name():
    classes = {name for name in dir(attacks) if isinstance(getattr(attacks, name), type)}
    assert set(ATTACKS) == {name for name in classes if issubclass(getattr(attacks, name), attacks.Attack)} - {"Attack"}


@pytest.mark.parametrize(
    ("spec", "name", "expected"),
    [
        ("FGSM", "FGSM", FGSM(0.1)),
        ("pgd", "PGD-20", PGD(0.1)),
        ("PGD-40", "PGD-40", PGD(0.1, steps=40)),
        ("PGD:steps=40", "PGD-40", PGD(0.1, steps=40)),
        ("PGD-100:loss=dlr,restarts=4", "PGD-100:loss=dlr,restarts=4", PGD(0.1, steps=100, loss="dlr", restarts=4)),
        ("PGD:step_size=2/255", "PGD-20:step_size=2/255", PGD(0.1, step_size=2 / 255)),
        ("PGD:step-size=none", "PGD-20:step_size=none", PGD(0.1)),
        ("PGD:batch_size=auto,seed=9", "PGD-20:batch_size=auto,seed=9", PGD(0.1, batch_size="auto", seed=9)),
        ("PGD:batch_size=7", "PGD-20:batch_size=7", PGD(0.1, batch_size=7)),
        ("SOAE-4:direction=paper", "SOAE-4:direction=paper", SOAE(0.1, steps=4, direction="paper")),
        ("SOAE", "SOAE", SOAE(0.1)),
        ("SOAE:gradients=40", "SOAE:gradients=40", SOAE(0.1, gradients=40)),
        ("soae:steps=4", "SOAE-4", SOAE(0.1, steps=4)),
        (
            "SOAE:direction=trust-region,gradients=40",
            "SOAE:direction=trust-region,gradients=40",
            SOAE(0.1, direction="trust-region", gradients=40),
        ),
        (
            "SOAE:second_order_steps=all,rotate_loss=false,schedule=none",
            "SOAE:second_order_steps=all,rotate_loss=false,schedule=none",
            SOAE(0.1, second_order_steps="all", rotate_loss=False),
        ),
        ("SOAE-4:early_stop=False", "SOAE-4:early_stop=False", SOAE(0.1, steps=4, early_stop=False)),
        ("ASOD:sigma=1e-1", "ASOD-20:sigma=1e-1", ASOD(0.1, sigma=0.1)),
        ("APGD-40", "APGD-40", APGD(0.1, steps=40)),
    ],
)
def test_specs(spec, name, expected):
    assert parse_attack(spec, 0.1) == (name, expected)


def test_autoattack_keeps_its_own_number_of_steps():
    pytest.importorskip("pyautoattack")
    name, attack = parse_attack("AutoAttack:version=rand,attacks=apgd-ce+square", 0.1, steps=7)
    assert name == "AutoAttack:version=rand,attacks=apgd-ce+square"
    assert (attack.version, attack.attacks, attack.steps) == ("rand", ("apgd-ce", "square"), 100)
    assert parse_attack("AutoAttack-5", 0.1)[1].steps == 5


def test_defaults_fill_what_the_spec_leaves_open():
    shared = {"norm": "L2", "seed": 3, "steps": 5, "direction": "auto", "hvp": None}
    assert parse_attack("PGD", 0.1, **shared)[1] == PGD(0.1, norm="L2", seed=3, steps=5)
    assert parse_attack("PGD-6:seed=4", 0.1, **shared)[1] == PGD(0.1, norm="L2", seed=4, steps=6)
    assert parse_attack("FGSM", 0.1, **shared)[1] == FGSM(0.1, norm="L2", seed=3)
    soae = parse_attack("SOAE:direction=paper", 0.1, **shared)[1]
    assert (soae.direction, soae.steps, soae.hvp) == ("paper", 5, SOAE(0.1).hvp)
    budget = parse_attack("SOAE:gradients=40", 0.1, **shared)[1]
    assert (budget.gradients, budget.steps) == (40, 0)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("", "attack: unknown name ''; choose from"),
        ("PDG", "attack: unknown name 'PDG'; did you mean 'PGD'?"),
        ("PGD-", "attack: unknown name 'PGD-'; did you mean 'PGD'?"),
        ("PGD:", "attack: 'PGD:': expected key=value after the colon, got ''"),
        ("PGD:loss", "attack: 'PGD:loss': expected key=value after the colon, got 'loss'"),
        ("PGD:los=ce", "attack: 'PGD:los=ce': unknown name 'los'; did you mean 'loss'?"),
        ("PGD:loss=dlx", "attack: 'PGD:loss=dlx': loss: unknown name 'dlx'; did you mean 'dlr'?"),
        ("PGD:loss=ce,loss=ce", "attack: 'PGD:loss=ce,loss=ce': loss is given twice"),
        ("PGD-4:steps=4", "attack: 'PGD-4:steps=4': steps is given twice"),
        ("PGD-0", "attack: 'PGD-0': steps: must be at least 1, got 0"),
        ("PGD:restarts=1.5", "attack: 'PGD:restarts=1.5': restarts: expected a whole number, got '1.5'"),
        ("PGD:early_stop=1", "attack: 'PGD:early_stop=1': early_stop: expected true or false, got '1'"),
        ("PGD:step_size=1/0", "attack: 'PGD:step_size=1/0': step_size: expected a number, got '1/0'"),
        ("PGD:step_size=-1", "attack: 'PGD:step_size=-1': step_size: must be finite and positive"),
        ("PGD:eps=0.1", "attack: 'PGD:eps=0.1': eps: all attacks share one ball: use --eps"),
        ("PGD:norm=L2", "attack: 'PGD:norm=L2': norm: all attacks share one ball: use --norm"),
        ("PGD:targeted=true", "attack: 'PGD:targeted=true': targeted: the labels of the data"),
        ("SOAE-4:gradients=9", "attack: 'SOAE-4:gradients=9': gradients: a budget decides on the steps; leave out"),
        ("SOAE:restarts=3", "attack: 'SOAE:restarts=3': restarts: a budget decides on them; give steps as well"),
        ("SOAE:gradients=3", "attack: 'SOAE:gradients=3': gradients: 3 are too few for second-order steps of 7"),
        ("SOAE:second_order_steps=al", "attack: 'SOAE:second_order_steps=al': second_order_steps: "),
        ("FGSM-2", "attack: 'FGSM-2': steps: FGSM makes one step"),
    ],
)
def test_bad_specs_say_what_is_wrong(spec, complaint):
    with pytest.raises((TypeError, ValueError)) as found:
        parse_attack(spec, 0.1)
    assert str(found.value).startswith(complaint)


def test_what_all_attacks_share_is_blamed_by_its_own_name():
    with pytest.raises(ValueError, match=r"^eps: must be finite"):
        parse_attack("PGD", -1.0)
    with pytest.raises(ValueError, match=r"^seed: must be at least 0"):
        parse_attack("PGD", 0.1, seed=-1)
    with pytest.raises(ValueError, match=r"^norm: unknown name 'L1'; .* choose from Linf, L2 for ASOD"):
        parse_attack("ASOD", 0.1, norm="L1")


@given(st.data())
@settings(deadline=None, max_examples=80)
def test_every_option_of_a_literal_can_be_written(data):
    """Whatever name a class allows for an option is understood, or refused by the class and with its reason."""
    kind = getattr(attacks, data.draw(st.sampled_from([name for name in ATTACKS if name != "AutoAttack"])))
    types = {key: hint for key, hint in option_types(kind).items() if get_origin(hint) is Literal and key != "norm"}
    assert set(option_types(kind)) == {field.name for field in fields(kind) if field.init}
    key = data.draw(st.sampled_from(sorted(types)))
    value = data.draw(st.sampled_from(get_args(types[key])))
    spec = f"{kind.__name__}:{key}={value}"
    try:
        expected, reason = kind(0.1, **{key: value}), ""
    except ValueError as error:
        expected, reason = None, str(error)
    if expected is None:
        with pytest.raises(ValueError, match=re.escape(f"attack: '{spec}': {reason}")):
            parse_attack(spec, 0.1)
    else:
        assert parse_attack(spec, 0.1)[1] == expected


@given(st.floats(allow_nan=False), st.integers(1, 10**6))
@settings(deadline=None)
def test_numbers_are_read_as_they_are_written(value, below):
    assert number(repr(value)) == value
    assert number(f"{value!r}/{below}") == value / below


@given(st.text(max_size=30))
@settings(deadline=None)
def test_no_text_does_anything_but_give_an_attack_or_a_reason(text):
    with contextlib.suppress(TypeError, ValueError):
        name, attack = parse_attack(text, 0.1)
        assert isinstance(attack, attacks.Attack)
        assert name.upper().startswith(text[:3].upper())
