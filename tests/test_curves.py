"""Curves: what is run for each point, and that real ones say what the runs say."""

import json
from dataclasses import dataclass, field, replace

import pytest
import torch

from soae_ext.attacks import APGD, ASOD, FGSM, PGD, SOAE, AutoAttack
from soae_ext.data import load_digits
from soae_ext.evaluation import Runner, Store
from soae_ext.evaluation.curves import (
    CURVE_KEYS,
    PRESETS,
    Curve,
    Series,
    eps_curve,
    fd_step_curve,
    gradients_curve,
    iterations_curve,
    run_curves,
    threshold_curve,
)
from soae_ext.models import digits_network

ATTACKS = {"FGSM": FGSM(0.3), "PGD": PGD(0.3, steps=3), "SOAE": SOAE(0.3, steps=2)}


@dataclass
class Recorder:
    """Passes the runs on and notes them."""

    runner: Runner
    jobs: dict = field(default_factory=dict)
    results: dict = field(default_factory=dict)

    def run(self, job, name, attack, data, *, images=True):
        assert job not in self.jobs, "two points share a job"
        assert not images, "curves need no images: they would only fill the disk"
        self.jobs[job] = attack
        self.results[job] = self.runner.run(job, name, attack, data, images=images)
        return self.results[job]


@pytest.fixture
def data():
    return load_digits().first(12)


@pytest.fixture
def recorder():
    return Recorder(Runner(digits_network(), batch_size=12))


def test_against_the_radius(recorder, data):
    attacks = {**ATTACKS, "fixed": PGD(0.3, steps=2, step_size=0.15)}
    curve = eps_curve(recorder, data, attacks, [0.6, 0.0, 0.3])
    assert [line.name for line in curve.series] == list(attacks)
    for line in curve.series:
        assert line.x == [0, 0.3, 0.6]
        results = [recorder.results[f"curves/eps/{line.name}/{x:g}"] for x in line.x]
        assert line.y == [result.robust.share for result in results]
        assert list(zip(line.low, line.high, strict=True)) == [result.robust.interval for result in results]
        assert line.extra["gradients"] == [result.gradients for result in results]
    assert recorder.jobs["curves/eps/fixed/0.6"] == PGD(0.6, steps=2, step_size=0.3)
    assert recorder.jobs["curves/eps/fixed/0"] == PGD(0.0, steps=2)
    assert recorder.jobs["curves/eps/PGD/0.3"] == ATTACKS["PGD"]
    clean = recorder.runner.clean(data).accuracy.share
    assert all(line.y[0] == clean for line in curve.series)


def test_against_gradients(recorder, data):
    attacks = {
        **ATTACKS,
        "two": PGD(0.3, steps=3, restarts=2),
        "ASOD": ASOD(0.3, steps=1, samples=3),
        "budget": SOAE(0.3, gradients=20),
    }
    curve = gradients_curve(recorder, data, attacks, [40, 4, 1, 8])
    lines = {line.name: line for line in curve.series}
    assert lines["FGSM"].extra["steps"] == [1]
    assert lines["PGD"].extra["steps"] == [1, 3, 4, 8, 40]  # its own 3 as well
    assert lines["two"].extra["steps"] == [2, 3, 4, 20]  # 1 gradient is too little for two restarts
    assert lines["ASOD"].extra["steps"] == [1, 2, 13]  # 3 gradients each
    # A second-order step costs up to 13 here: 1 gradient and 6 exact products.
    assert lines["SOAE"].extra["steps"] == [2, 3]
    assert recorder.jobs["curves/gradients/SOAE/3"] == replace(ATTACKS["SOAE"], steps=3)
    # A budget of 4 is too small for one second-order step.
    for budget in (8, 20, 40):
        assert recorder.jobs[f"curves/gradients/budget/{budget}"] == SOAE(0.3, gradients=budget)
    plans = [SOAE(0.3, gradients=budget).plan() for budget in (8, 20, 40)]
    assert lines["budget"].extra["steps"] == [plan.restarts * plan.steps for plan in plans]
    for budget in (8, 20, 40):
        assert recorder.results[f"curves/gradients/budget/{budget}"].gradient_calls.max() <= budget
    for name, line in lines.items():
        want = sorted(result.gradients for job, result in recorder.results.items() if f"/{name}/" in job)
        assert line.x == want == line.extra["gradients"]


def test_the_referee_is_one_point(recorder, data):
    pytest.importorskip("pyautoattack")
    referee = AutoAttack(0.3, steps=3, attacks=("apgd-ce",))
    (line,) = gradients_curve(recorder, data, {"AutoAttack": referee}, [1, 2]).series
    assert recorder.jobs == {"curves/gradients/AutoAttack/3": referee}
    assert line.extra["steps"] == [3]


def test_against_iterations_a_longer_run_begins_as_a_shorter_one(recorder, data):
    attacks = {"FGSM": FGSM(0.45), "PGD": PGD(0.45, step_size=0.1), "SOAE": SOAE(0.45, step_size=0.1)}
    curve = iterations_curve(recorder, data, attacks, [1, 2, 4])
    assert [line.name for line in curve.series] == ["PGD", "SOAE"]
    for line in curve.series:
        assert line.x == [1, 2, 4]
        assert line.y == sorted(line.y, reverse=True)
        assert line.y[-1] < line.y[0]


def test_the_studies_of_second_order_steps_take_plain_ones_from_a_budget(recorder, data):
    """Ten of them, in the direction of the attack where it has what is studied."""
    budget = SOAE(0.3, gradients=40, direction="auto", second_order_steps=1, seed=2)
    plain = SOAE(0.3, steps=10, direction="auto", second_order_steps="all", seed=2)
    attacks = {"SOAE": budget, "APGD": APGD(0.3, steps=100)}
    iterations_curve(recorder, data, attacks, [1, 3])
    assert recorder.jobs["curves/iterations/SOAE/3"] == replace(plain, steps=3)
    assert recorder.jobs["curves/iterations/APGD/3"] == APGD(0.3, steps=3)
    fd_step_curve({"net": recorder}, data, replace(budget, direction="power"), [1e-2])
    assert recorder.jobs["curves/fd_step/net/exact"] == replace(plain, direction="power")
    by_differences = replace(plain, direction="power", hvp="finite-difference", fd_step=1e-2)
    assert recorder.jobs["curves/fd_step/net/0.01"] == by_differences
    threshold_curve(recorder, data, budget, [1e-1], max_dim=3)
    exact = recorder.jobs["curves/threshold/exact products/0.1"]
    assert exact == replace(plain, max_dim=3, threshold=0.1)
    eps_curve(recorder, data, {"SOAE": budget}, [0.1])
    assert recorder.jobs["curves/eps/SOAE/0.1"] == replace(budget, eps=0.1)


def test_thresholds_are_studied_on_a_direction_that_has_one(recorder, data):
    threshold_curve(recorder, data, SOAE(0.3, direction="frank-wolfe", gradients=40), [1e-1], max_dim=2)
    exact = recorder.jobs["curves/threshold/exact products/0.1"]
    assert (exact.direction, exact.steps, exact.plan().second_order_steps) == ("ascent", 10, 10)


def test_against_the_difference_step_on_several_networks(recorder, data):
    torch.manual_seed(0)
    other = Recorder(recorder.runner.on(digits_network().double().float()))
    soae = SOAE(0.45, steps=2)
    curve = fd_step_curve({"a": recorder, "b": other}, data, soae, [1e-3, 1e-1])
    for line, runs in zip(curve.series, (recorder, other), strict=True):
        for h in line.x:
            attack = runs.jobs[f"curves/fd_step/{line.name}/{h:g}"]
            assert attack == replace(soae, hvp="finite-difference", fd_step=h)
        assert runs.jobs[f"curves/fd_step/{line.name}/exact"] == soae
        assert line.extra["exact"] == [recorder.runner.run("e", "e", soae, data).robust.share] * 2


def test_against_the_threshold(recorder, data):
    curve = threshold_curve(recorder, data, SOAE(0.3, steps=2), [1e-1, 1e-3], max_dim=8)
    assert [line.name for line in curve.series] == ["exact products", "finite differences"]
    exact = curve.series[0]
    assert recorder.jobs["curves/threshold/exact products/0.001"] == SOAE(0.3, steps=2, threshold=1e-3, max_dim=8)
    # A tighter threshold needs more dimensions.
    assert exact.extra["krylov_mean"][0] > exact.extra["krylov_mean"][1] >= 1
    assert exact.extra["krylov_max"][0] <= 8
    assert all(seconds > 0 for seconds in exact.extra["seconds"])


def test_all_of_them_resume_from_the_store(tmp_path, data, monkeypatch):
    small = replace(
        PRESETS["quick"], radii=(0.0, 1.0), budgets=(1, 2), iterations=(1, 2), fd_steps=(1e-3,), thresholds=(1e-2,)
    )
    monkeypatch.setitem(PRESETS, "quick", small)
    network = digits_network()
    attacks = {"PGD": PGD(0.3, steps=2), "SOAE": SOAE(0.3, steps=2)}

    def curves():
        runner = Runner(network, store=Store(tmp_path / "run.parts", {"run": 1}), batch_size=12)
        return run_curves(CURVE_KEYS, runner, data, attacks, others={"twin": runner.on(network)}, network="one")

    first = curves()
    assert [curve.key for curve in first] == list(CURVE_KEYS)
    assert [line.name for line in first[3].series] == ["one", "twin"]
    monkeypatch.setattr(PGD, "_run", None)
    monkeypatch.setattr(SOAE, "_run", None)
    assert curves() == first


def test_the_document_holds_plain_json():
    line = Series("a", [1.0], [0.5], [0.4], [0.6], {"loss": [float("inf")], "m": [float("nan")]})
    curve = Curve("eps", "title", "x", "y", False, [line, Series("b", [], [])], "note")
    written = json.loads(json.dumps(curve.as_json(), allow_nan=False))
    assert written["series"][0]["extra"] == {"loss": [None], "m": [None]}
    back = Curve.from_json(written)
    assert back.as_json() == curve.as_json()
    assert (back.title, back.note, back.series[1]) == ("title", "note", Series("b", [], []))


def test_columns_of_another_length_are_refused():
    with pytest.raises(ValueError, match="low: has 2 values, x has 1"):
        Series("a", [1.0], [0.5], [0.4, 0.3], [0.6])


@pytest.mark.parametrize(
    ("keys", "attacks", "preset", "message"),
    [
        (["epsilon"], ATTACKS, "quick", "curves: unknown name 'epsilon'; did you mean 'eps'"),
        (["eps"], ATTACKS, "fast", "preset: unknown name 'fast'"),
        (["eps"], {}, "quick", "curves: there is no attack"),
        (["fd_step"], {"PGD": PGD(0.3)}, "quick", "curves: fd_step and threshold study SOAE"),
        (["iterations"], {"FGSM": FGSM(0.3)}, "quick", "curves: iterations needs SOAE, PGD or APGD"),
        (["eps"], {"PGD": PGD(torch.full((12,), 0.3))}, "quick", "curves: eps needs one radius"),
    ],
)
def test_bad_requests_are_refused_before_any_run(recorder, data, keys, attacks, preset, message):
    with pytest.raises(ValueError, match=message):
        run_curves(keys, recorder, data, attacks, preset=preset)
    assert not recorder.jobs


def test_presets_reach_what_the_studies_need():
    for preset in PRESETS.values():
        assert preset.fd_steps[0] == pytest.approx(1e-6)
        assert preset.fd_steps[-1] == pytest.approx(1)
        assert preset.iterations[-1] == 20
        assert preset.radii[0] == 0
        assert 1.0 in preset.radii
