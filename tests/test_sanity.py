"""The sanity section passes a sound evaluation, and each check fails where its claim is false."""

import dataclasses

import pytest
import torch
from torch import nn

from soae_ext.attacks import FGSM, PGD, SOAE, AutoAttack
from soae_ext.evaluation.sanity import (
    Check,
    comparisons,
    curvature,
    invariants,
    masking,
    referee,
    sanity_section,
    solver,
)
from soae_ext.evaluation.sanity.check import Outcome, check, failures_first
from soae_ext.models import digits_network
from tests import sanity_cases as cases
from tests.sanity_cases import altered, context

FEW = {"n": 24}


def verdict(function, *args, **options):
    """What a check says, and that it says all that a report needs."""
    found = function(*args, **options)
    assert found.name
    assert found.limit
    assert found.text
    assert found.group

    return found.verdict


# --- the whole section -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound():
    pytest.importorskip("pyautoattack")
    return context(**FEW, queries=40, substitute=digits_network())


@pytest.fixture(scope="module")
def section(sound):
    return sanity_section(sound)


def test_a_sound_evaluation_passes(section):
    failed = [found for found in section if found.verdict == "fail"]
    assert not failed
    assert sum(found.verdict == "pass" for found in section) >= len(section) - 1
    assert [found.name for found in section if found.verdict == "not run"] == [
        "AutoAttack confirms the robust accuracy"
    ]


def test_every_line_is_complete_and_json(section):
    assert len({found.name for found in section}) == len(section)
    for found in section:
        assert found.as_json() == dataclasses.asdict(found)
        assert all(isinstance(value, str) for value in found.as_json().values())
        assert any(digit in found.value for digit in "0123456789") or found.verdict in ("not run", "not applicable")


def test_failures_come_first_and_keep_their_order():
    given = [
        Check(str(i), v, "1", "1", "t") for i, v in enumerate(["pass", "not applicable", "fail", "not run", "fail"])
    ]
    assert [found.name for found in failures_first(given)] == ["2", "4", "0", "3", "1"]


def test_a_check_that_raises_is_not_run_and_says_why():
    @check("group", "name", "limit")
    def broken(context):
        raise ValueError("the reason\nand a traceback")

    found = broken(None)
    assert (found.verdict, found.name, found.limit, found.group) == ("not run", "name", "limit", "group")


def test_a_failing_disk_is_no_verdict():
    @check("group", "name", "limit")
    def broken(context):
        raise OSError("no space left")

    with pytest.raises(OSError, match="space"):
        broken(None)


def test_a_remedy_belongs_to_failures_alone():
    assert Outcome.of(True, "1", "Meaning.", "Remedy.").text == "Meaning."
    assert Outcome.of(False, "1", "Meaning.", "Remedy.").text == "Meaning. Remedy."


def test_the_settings_of_cudnn_are_left_alone(sound, monkeypatch):
    monkeypatch.setattr("soae_ext.evaluation.sanity._CHECKS", (lambda c: _settings(),))
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    (found,) = sanity_section(sound)
    assert found.value == "(True, False)"
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before


def _settings():
    return Check("c", "pass", str((torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)), "", "")


def test_the_images_are_spread_over_the_data():
    ten = dataclasses.replace(context(n=20), images=10)
    assert ten.rows.tolist() == list(range(0, 20, 2))
    assert torch.equal(ten.subset.labels, ten.data.labels[::2])
    assert torch.equal(ten.fooled("PGD-5"), ten.results["PGD-5"].success[::2])
    assert len(dataclasses.replace(ten, images=1000).rows) == 20


# --- what holds for every attack ---------------------------------------------------------------------------------


def test_a_ball_of_radius_zero():
    attacks = {"good": FGSM(0.2), "bad": cases.Escaping(0.2, steps=2)}
    found = invariants.zero_radius(context(attacks=attacks, **FEW))
    assert found.verdict == "fail"
    assert "bad (16)" in found.text
    assert "good" not in found.text


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_distances_are_measured_in_the_norm_of_the_attack(norm):
    eps = {"Linf": 0.1, "L2": 1.0, "L1": 10.0}[norm]
    good = context(attacks={"PGD": PGD(eps, norm=norm, steps=2)}, eps=eps, norm=norm, **FEW)
    assert verdict(invariants.inside, good) == "pass"
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    x = good.data.images
    step = torch.where(x < 0.5, 1.0, -1.0)
    length = torch.linalg.vector_norm(step.flatten(1), ord=order, dim=1).reshape(-1, 1, 1, 1)
    for factor, expected in ((1.0 - 1e-6, "pass"), (1.0 + 1e-4, "fail")):
        assert verdict(invariants.inside, altered(good, "PGD", x_adv=x + factor * eps * step / length)) == expected


def test_images_that_are_none_are_found():
    good = context(attacks={"PGD": PGD(0.2, steps=1)}, **FEW)
    images = good.measurements[0].x_adv
    for bad in (images.clone().fill_(torch.nan), images.double(), images - 0.01):
        assert verdict(invariants.inside, altered(good, "PGD", x_adv=bad)) == "fail"
    assert verdict(invariants.inside, altered(good, "PGD", x_adv=images[:0])) == "not applicable"


def test_success_that_the_network_does_not_confirm():
    good = context(attacks={"PGD": PGD(0.2, steps=1)}, **FEW)
    assert verdict(invariants.real_success, good) == "pass"
    success = good.measurements[0].success.clone()
    success[3] = ~success[3]
    found = invariants.real_success(altered(good, "PGD", success=success))
    assert (found.verdict, found.value) == ("fail", "1 of 24 verdicts differ")


def test_an_image_that_is_wrong_without_attack_is_not_robust():
    model = cases.Wrapped(after=lambda z: z.roll(1, dims=1)).eval()
    good = context(model, {"PGD": PGD(0.2, steps=1)}, **FEW)
    assert verdict(invariants.worst_case_bound, good) == "pass"
    lenient = altered(good, "PGD", success=torch.zeros(24, dtype=torch.bool))
    assert verdict(invariants.worst_case_bound, lenient) == "fail"


def test_an_attack_that_stands_still_leaves_the_whole_box_robust():
    broken = context(cases.quantised(), {"PGD": PGD(0.2, steps=1)}, **FEW)
    found = invariants.whole_box(broken)
    assert found.verdict == "fail"
    assert int(found.value.split()[0]) > 0


def test_a_larger_ball_must_not_find_less():
    """Everything is fooled a little way off, nothing further away: attacks that go all the way find nothing."""

    class Ring(nn.Module):
        def __init__(self, images):
            super().__init__()
            self.images = images

        def forward(self, x):
            distance = torch.cdist(x.flatten(1), self.images.flatten(1).to(x.dtype), p=torch.inf).amin(1)
            wrong = torch.where((distance > 0.01) & (distance < 0.12), 1.0, -1.0).to(x.dtype)
            return torch.stack([x.flatten(1).sum(1) * 1e-3, x.flatten(1).sum(1) * 1e-3 + wrong], 1)

    one = context(attacks={"FGSM": FGSM(0.05)}, **FEW)
    model = Ring(one.data.images)
    data = dataclasses.replace(one.data, labels=torch.zeros(24, dtype=torch.int64))

    def run(job, name, attack, images):
        return dataclasses.replace(one.measurements[0], success=attack(model, images.images, images.labels).success)

    ring = dataclasses.replace(one, model=model, data=data, run=run, eps=0.4)
    # From a random start: within 0.1 all iterates lie in the ring, within 0.4 none does.
    assert verdict(invariants.falls_with_radius, ring) == "fail"
    assert verdict(invariants.falls_with_radius, one) == "pass"


def test_the_best_iterate_must_be_returned():
    bad = context(attacks={"bad": cases.Careless(0.2, steps=3)}, **FEW)
    found = invariants.more_restarts(bad)
    assert found.verdict == "fail"
    assert "bad" in found.text
    assert verdict(invariants.more_restarts, context(attacks={"good": PGD(0.2, steps=3)}, **FEW)) == "pass"


def test_iterations_are_held_against_each_other(monkeypatch):
    good = context(attacks={"FGSM": FGSM(0.2)}, **FEW)
    assert verdict(invariants.more_iterations, good) == "pass"
    monkeypatch.setattr(invariants, "PGD", cases.Careless)
    broken = dataclasses.replace(good, model=cases.rough())
    assert verdict(invariants.more_iterations, broken) == "fail"


@pytest.mark.parametrize(
    ("model", "attack", "culprit"),
    [(None, cases.Unseeded(0.2, steps=2), "PGD"), (cases.Random().eval(), FGSM(0.2), "the network itself")],
)
def test_chance_is_found(model, attack, culprit):
    found = invariants.same_seed(context(model, {"PGD": attack}, **FEW))
    assert found.verdict == "fail"
    assert culprit in found.text


def test_images_that_influence_each_other_are_found():
    mixing = context(cases.Mixing().eval(), {"PGD": PGD(0.2, steps=2)}, **FEW)
    assert verdict(invariants.batch_size, mixing) == "fail"
    assert verdict(solver.batched, mixing) == "fail"


def test_a_network_that_is_changed_is_found():
    found = invariants.left_alone(context(attacks={"bad": cases.Forgetful(0.2, steps=1)}, **FEW))
    assert found.verdict == "fail"
    assert "bad" in found.text


# --- curvature and solver ----------------------------------------------------------------------------------------


def test_gradients_that_are_no_derivatives_are_found():
    wrong = context(cases.one_way(), {"FGSM": FGSM(0.2)}, **FEW)
    assert verdict(curvature.difference_single, wrong) == "fail"
    assert verdict(curvature.difference_double, wrong) == "fail"


def test_a_matrix_that_is_not_symmetric_is_found(monkeypatch):
    good = context(attacks={"FGSM": FGSM(0.2)}, **FEW)
    here = curvature.setting(good)
    skew = _Altered(here.hessian, lambda v, Hv: Hv + 1e-3 * v.cumsum(-1))
    monkeypatch.setattr(curvature, "setting", lambda context: here._replace(hessian=skew))
    assert verdict(curvature.symmetric, good) == "fail"


def test_a_matrix_that_is_not_semidefinite_is_found(monkeypatch):
    good = context(attacks={"FGSM": FGSM(0.2)}, **FEW)
    here = curvature.setting(good)
    negative = _Altered(here.hessian, lambda v, Hv: -Hv)
    monkeypatch.setattr(curvature, "setting", lambda context: here._replace(hessian=negative))
    monkeypatch.setattr(curvature, "_smoothness", lambda here: 0.0)
    for function in (curvature.semidefinite, curvature.closed_form):
        assert verdict(function, good) == "fail"
    more = _Altered(here.hessian, lambda v, Hv: Hv + 1e-2 * v.flip(-1).flip(-2))
    monkeypatch.setattr(curvature, "setting", lambda context: here._replace(hessian=more))
    assert verdict(curvature.krylov_steps, good) == "fail"


class _Altered:
    """A curvature product with a mistake."""

    def __init__(self, operator, change):
        self.operator, self.change = operator, change
        self.gradient = operator.gradient

    def __call__(self, v):
        return self.change(v, self.operator(v))


def test_closed_forms_do_not_apply_to_smooth_networks():
    smooth = context(cases.Wrapped(before=lambda x: x + 0.05 * (6 * x).sin()).eval(), {"FGSM": FGSM(0.2)}, **FEW)
    for function in (curvature.gauss_newton, curvature.semidefinite, curvature.krylov_steps, curvature.closed_form):
        assert verdict(function, smooth) == "not applicable"
    for function in (curvature.symmetric, curvature.difference_double, solver.residual, solver.batched):
        assert verdict(function, smooth) == "pass"


def test_an_estimate_that_is_not_the_residual_is_found(monkeypatch):
    good = context(attacks={"FGSM": FGSM(0.2)}, **FEW)
    real = solver.gmres

    def optimistic(*args, **options):
        result = real(*args, **options)
        history = None if result.residual_history is None else result.residual_history * 0.5
        return dataclasses.replace(result, residual_history=history)

    monkeypatch.setattr(solver, "gmres", optimistic)
    assert verdict(solver.residual, good) == "fail"


def test_a_direction_that_descends_is_found(monkeypatch):
    good = context(attacks={"FGSM": FGSM(0.2)}, **FEW)
    assert verdict(solver.ascends, good) == "pass"
    assert verdict(solver.one_dimension, good) == "pass"
    real = SOAE
    monkeypatch.setattr(solver, "SOAE", lambda *args, **options: real(*args, **{**options, "direction": "paper"}))
    assert verdict(solver.ascends, good) == "fail"
    assert verdict(solver.one_dimension, good) == "fail"


# --- comparisons and the referee ---------------------------------------------------------------------------------


def test_an_attack_that_does_nothing_is_beaten():
    """On a network that a little noise fools."""
    model = cases.Wrapped(after=lambda z: z).eval()
    lazy = context(model, {"lazy": cases.Lazy(0.9, steps=3), "SOAE": SOAE(0.9, steps=1)}, eps=0.9, **FEW)
    for function in (comparisons.noise, comparisons.single_step):
        found = function(lazy)
        assert found.verdict == "fail"
        assert "lazy" in found.text
        assert "SOAE" not in found.text


def test_soae_is_compared_at_equal_gradients():
    even = context(attacks={"SOAE": SOAE(0.2, steps=3, direction="ascent", max_dim=2)}, **FEW)
    robust = ~even.measurements[0].success
    steps = -(-int(even.measurements[0].gradient_calls[robust].sum()) // int(robust.sum()))
    jobs = []
    watched = dataclasses.replace(even, run=lambda job, *args: jobs.append(job) or even.run(job, *args))
    assert verdict(comparisons.equal_pgd, watched) == "pass"
    assert verdict(comparisons.equal_apgd, watched) == "pass"
    assert jobs == [f"sanity/PGD-{steps} (ce)", f"sanity/APGD-{steps} (ce)"]
    beaten = context(attacks={"SOAE": SOAE(0.5, steps=3, direction="paper")}, eps=0.5, **FEW)
    assert verdict(comparisons.equal_pgd, beaten) == "fail"
    assert verdict(comparisons.equal_pgd, context(attacks={"FGSM": FGSM(0.2)}, **FEW)) == "not applicable"


def test_the_referee_runs_when_asked_for():
    pytest.importorskip("pyautoattack")
    asked = {"referee": True, "n": 12}
    whistle = context(attacks={"lazy": cases.Lazy(0.5)}, eps=0.5, **asked)
    real = whistle.run

    def run(job, name, attack, data):
        assert (attack.version, attack.attacks, attack.eps, len(data)) == ("standard", None, 0.5, 12)
        return real(job, name, dataclasses.replace(attack, attacks=("apgd-ce",), steps=10), data)

    found = referee.autoattack(dataclasses.replace(whistle, run=run))
    assert found.verdict == "fail"
    assert "0.0 %" in found.value
    assert verdict(referee.autoattack, dataclasses.replace(whistle, referee=False)) == "not run"


def test_the_referee_uses_what_the_evaluation_has_run():
    pytest.importorskip("pyautoattack")
    base = context(attacks={"PGD": PGD(0.2, steps=2)}, referee=True, n=12)
    shown = dataclasses.replace(base.measurements[0], name="AutoAttack")
    both = dataclasses.replace(
        base,
        attacks={**base.attacks, "AutoAttack": AutoAttack(0.2)},
        measurements=[*base.measurements, shown],
        run=None,
    )
    assert verdict(referee.autoattack, both) == "pass"
    assert verdict(masking.gives_logits, both) == "pass"
