"""What all attacks share: the best iterate, what it cost, the model's state, refusals."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from soae_ext.attacks import FGSM, PGD, SOAE, AttackResult
from soae_ext.attacks.losses import Objective
from tests.attack_cases import SHAPE, Counting, N, Scale, images, linear, small_net

# --- best iterate, early stop, cost ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 20), st.sampled_from(["Linf", "L2"]), st.booleans())
def test_more_steps_and_restarts_never_hurt(seed, norm, early_stop):
    model, x = small_net(seed), images(16, dtype=torch.float32, seed=seed)
    y = torch.arange(16) % 4
    common = {"norm": norm, "loss": "margin", "step_size": 0.15, "early_stop": early_stop, "seed": seed}
    last = torch.full((16,), -torch.inf)
    for steps in (1, 2, 4, 8):
        loss = PGD(0.2, steps=steps, **common)(model, x, y).loss
        assert bool((loss >= last - 1e-5).all())
        last = loss
    last = torch.full((16,), -torch.inf)
    for restarts in (1, 2, 3):
        loss = PGD(0.2, steps=2, restarts=restarts, **common)(model, x, y).loss
        assert bool((loss >= last - 1e-5).all())
        last = loss


def test_restarts_after_the_first_are_random_even_from_the_image():
    model, x = small_net(), images(16, dtype=torch.float32)
    y = model(x).argmax(1)
    options = {"steps": 1, "loss": "margin", "random_start": False, "early_stop": False}
    once, twice = (PGD(0.3, step_size=0.1, restarts=r, **options)(model, x, y).loss for r in (1, 2))
    assert bool((twice > once + 1e-3).any())


def test_the_result_is_never_worse_than_the_image():
    """A step so long that it overshoots: the loss at its end is lower, the image itself is the best iterate."""

    class Bump(nn.Module):
        def forward(self, x):
            rise = (x.flatten(1) - 0.5).sum(1)
            return torch.stack([torch.zeros_like(rise), -1 + rise - 100 * rise**2], 1)

    x, y = torch.full((3, *SHAPE), 0.5), torch.zeros(3, dtype=torch.int64)
    result = FGSM(0.3)(Bump(), x, y)
    assert torch.equal(result.x_adv, x)


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("attack", [FGSM(0.1), PGD(0.1, steps=6), PGD(0.1, steps=3, restarts=3), FGSM(0.1, restarts=2)])
def test_every_image_that_passes_the_model_is_counted(attack, early_stop):
    model, x = Counting(small_net()), images(40, dtype=torch.float32)
    y = torch.arange(40) % 4
    result = dataclasses.replace(attack, early_stop=early_stop)(model, x, y)
    assert int(result.gradient_calls.sum()) == model.with_gradient
    assert int(result.forward_calls.sum()) == model.without
    assert result.gradient_calls.dtype == result.forward_calls.dtype == torch.int64


def test_fooled_images_stop_costing():
    model, x = small_net(), images(40, dtype=torch.float32)
    y = torch.arange(40) % 4
    wrong = model(x).argmax(1) != y
    assert wrong.any()
    result = PGD(0.5, steps=9, step_size=0.06, random_start=False)(model, x, y)
    assert (result.gradient_calls[wrong] == 0).all()
    assert torch.equal(result.x_adv[wrong], x[wrong])
    assert result.success[wrong].all()
    assert (result.gradient_calls[~result.success] == 9).all()
    fooled = result.success & ~wrong
    assert fooled.any()
    assert (result.gradient_calls[fooled] <= 9).all()
    assert (result.gradient_calls[fooled] < 9).any()


def test_saturated_cross_entropy_falls_back_to_the_margin():
    """Logits so far apart that the cross-entropy and its gradient are exactly zero."""
    base = linear(3, torch.float32)
    model = nn.Sequential(base, Scale(1e5))
    x = images(20, 0.4, 0.6, dtype=torch.float32)
    y = base(x).argmax(1)
    points = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Objective(model, "ce")(points, y).sum(), points)
    saturated = (gradient == 0).flatten(1).all(1)
    assert saturated.sum() >= 10
    for attack in (FGSM(0.3), PGD(0.3, steps=3, random_start=False), SOAE(0.3, steps=2, hvp="double-backward")):
        result = attack(model, x, y)
        assert result.success[saturated].all()
        assert (result.gradient_calls[saturated] >= 2).all()


# --- the model is left as it came -------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [FGSM(0.1), PGD(0.1, steps=2), SOAE(0.1, steps=2, hvp="double-backward")])
def test_the_model_is_attacked_in_eval_mode_and_restored(attack):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(N, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4))
    model.train()
    model[3].eval()
    model[1].weight.requires_grad_(False)
    seen = []
    model[2].register_forward_hook(lambda module, *_: seen.append(module.training))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    x, y = images(8, dtype=torch.float32), torch.arange(8) % 4
    with pytest.warns(
        UserWarning, match=r"^model: came in train mode, where its BatchNorm1d .*model\.eval\(\)"
    ) as said:
        attack(model, x, y)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert seen
    assert not any(seen)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in model.parameters())
    assert len(model[2]._forward_hooks) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_train_mode_is_mentioned_only_where_it_matters(recwarn):
    model, x, y = small_net(), images(4, dtype=torch.float32), torch.zeros(4, dtype=torch.int64)
    FGSM(0.1)(model.train(), x, y)
    FGSM(0.1)(nn.Sequential(small_net(), nn.Dropout(0.5)).eval(), x, y)
    batch_statistics = nn.Sequential(small_net(), nn.BatchNorm1d(4, track_running_stats=False))
    FGSM(0.1)(batch_statistics.train(), x, y)
    assert not recwarn.list
    FGSM(0.1)(nn.Sequential(small_net(), nn.Dropout(0.5)).train(), x, y)
    assert [str(w.message)[:50] for w in recwarn.list] == ["model: came in train mode, where its Dropout compu"]


def test_a_model_without_a_gradient_is_attacked_without_an_error():
    """A network that quantises: no gradient reaches the image."""

    class Steps(nn.Module):
        def forward(self, x):
            bright = (x.flatten(1).round()).sum(1)
            return torch.stack([bright * 0 + 10, bright], 1)

    x, y = images(6, 0.3, 0.7, dtype=torch.float32), torch.zeros(6, dtype=torch.int64)
    for attack in (FGSM(0.3), PGD(0.3, steps=3), SOAE(0.3, steps=2)):
        assert attack(Steps(), x, y).x_adv.isfinite().all()


def test_the_model_is_restored_after_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    model = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        FGSM(0.1)(model, images(2), torch.zeros(2, dtype=torch.int64))
    assert model.training


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_attacks_run_without_grad_mode(mode):
    model, y = small_net(), torch.arange(8) % 4
    expected = PGD(0.1, steps=2)(model, images(8, dtype=torch.float32), y)
    with mode():
        found = PGD(0.1, steps=2)(model, images(8, dtype=torch.float32), y)
    assert torch.equal(found.x_adv, expected.x_adv)


def test_inputs_are_not_written_to_and_not_aliased():
    model, x = small_net(), images(8, dtype=torch.float32).requires_grad_()
    y, copy = torch.arange(8) % 4, x.detach().clone()
    result = PGD(0.1)(model, x, y)
    assert torch.equal(x.detach(), copy)
    assert x.grad is None
    assert not result.x_adv.requires_grad
    assert result.x_adv.data_ptr() != x.data_ptr()


def test_no_images_give_an_empty_result():
    result = PGD(0.1)(small_net(), torch.zeros(0, *SHAPE), torch.zeros(0, dtype=torch.int64))
    assert isinstance(result, AttackResult)
    assert result.x_adv.shape == (0, *SHAPE)
    assert result.success.shape == result.loss.shape == result.gradient_calls.shape == (0,)


# --- refusals ----------------------------------------------------------------------------------------------------

X, Y = torch.full((4, *SHAPE), 0.5), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": -0.1}, ValueError, "^eps: .*not negative"),
        ({"eps": float("nan")}, ValueError, "^eps: "),
        ({"eps": float("inf")}, ValueError, "^eps: "),
        ({"eps": "0.3"}, TypeError, "^eps: "),
        ({"eps": torch.tensor([0.1, -0.1])}, ValueError, "^eps: "),
        ({"eps": torch.tensor(0.1)}, ValueError, "^eps: .*shape"),
        ({"eps": torch.tensor([1, 2])}, ValueError, "^eps: "),
        ({"norm": "Linff"}, ValueError, "^norm: .*did you mean 'Linf'"),
        ({"norm": "l2"}, ValueError, "^norm: .*did you mean 'L2'"),
        ({"loss": "margins"}, ValueError, "^loss: .*did you mean 'margin'"),
        ({"steps": 0}, ValueError, "^steps: "),
        ({"steps": 2.0}, TypeError, "^steps: "),
        ({"step_size": 0.0}, ValueError, "^step_size: "),
        ({"restarts": 0}, ValueError, "^restarts: "),
        ({"seed": -1}, ValueError, "^seed: "),
        ({"batch_size": 0}, ValueError, "^batch_size: "),
        ({"batch_size": "automatic"}, ValueError, "^batch_size: .*did you mean 'auto'"),
        ({"norm": "L0"}, ValueError, "^norm: .*choose from Linf, L2, L1"),
        ({"step": 3}, TypeError, "unexpected keyword argument 'step'"),
    ],
)
def test_bad_options_are_refused_when_the_attack_is_made(options, error, message):
    with pytest.raises(error, match=message):
        PGD(**{"eps": 0.3, **options})


def test_fgsm_makes_one_step():
    with pytest.raises(ValueError, match=r"^steps: .*PGD"):
        FGSM(0.3, steps=2)


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        ((X * 255).to(torch.uint8), Y, TypeError, r"^x: .*x\.float\(\) / 255"),
        (X.half(), Y, TypeError, "^x: "),
        (X.numpy(), Y, TypeError, "^x: "),
        (X + 0.6, Y, ValueError, r"^x: .*\[0, 1\]"),
        (X - 0.6, Y, ValueError, r"^x: .*\[0, 1\]"),
        (torch.full_like(X, torch.nan), Y, ValueError, r"^x: .*\[0, 1\]"),
        (X[0, 0, 0], Y, ValueError, r"^x: .*x\[None\]"),
        (X, Y.int(), TypeError, r"^y: .*y\.long\(\)"),
        (X, Y.float(), TypeError, "^y: .*int64"),
        (X, Y[:3], ValueError, r"^y: .*\(4,\)"),
        (X, Y - 1, ValueError, "^y: .*negative"),
        (X, Y + 4, ValueError, "^y: .*below the number of classes, 4"),
        (X, [0, 0, 0, 0], TypeError, "^y: "),
    ],
)
def test_bad_batches_are_refused_before_any_gradient(x, y, error, message):
    model = Counting(small_net())
    with pytest.raises(error, match=message):
        PGD(0.3, batch_size=2)(model, x, y)
    assert model.with_gradient == 0


def test_labels_of_later_batches_are_checked_before_the_first_is_attacked():
    model = Counting(small_net())
    right = int(model(X).argmax(1)[0])
    with pytest.raises(ValueError, match=r"^y: "):
        PGD(0.3, batch_size=1)(model, X, torch.tensor([right, right, right, 9]))
    assert model.with_gradient == 0


def test_radii_must_match_the_batch():
    with pytest.raises(ValueError, match=r"^eps: .*\(4,\)"):
        PGD(torch.tensor([0.1, 0.2]))(small_net(), X, Y)


@pytest.mark.parametrize("index", [torch.arange(3), torch.arange(4).int(), torch.arange(4) - 1])
def test_bad_sample_numbers_are_refused(index):
    with pytest.raises(ValueError, match=r"^index: "):
        PGD(0.1)(small_net(), X, Y, index=index)


def test_bad_models_are_refused():
    with pytest.raises(ValueError, match=r"^model: must map"):
        PGD(0.1)(nn.Identity(), X, Y)
    with pytest.raises(ValueError, match=r"^model: .*not finite, though its parameters are"):
        PGD(0.1)(nn.Sequential(small_net(), Scale(float("nan"))), X, Y)
    broken = small_net()
    broken[3].weight.data[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"^model: .*its parameter '3\.weight' is not finite; check its weights"):
        PGD(0.1)(broken, X, Y)
    with pytest.raises(ValueError, match=r"^loss: 'dlr' needs at least 3 classes"):
        PGD(0.1, loss="dlr")(linear(2, torch.float32), X, Y)
    with pytest.raises(ValueError, match=r"^loss: targeted 'dlr' needs at least 4 classes"):
        PGD(0.1, loss="dlr", targeted=True)(linear(3, torch.float32), X, Y)


def test_attacks_are_values():
    assert PGD(0.3, steps=3) == PGD(0.3, steps=3)
    assert PGD(0.3, steps=3) != PGD(0.3, steps=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        PGD(0.3).eps = 0.1
    with pytest.raises(TypeError):
        PGD(0.3, "L2")
