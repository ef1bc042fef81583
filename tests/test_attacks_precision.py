"""Attacks under autocast, and batches that fit the memory."""

import pytest
import torch
from torch import nn

from soae_ext.attacks import APGD, ASOD, FGSM, PGD, SOAE, AutoAttack, memory
from soae_ext.attacks.losses import Objective
from soae_ext.data import load_digits
from soae_ext.models import digits_network
from tests.attack_cases import SHAPE, Counting, N, images, small_net

ATTACKS = [
    FGSM(0.33),
    PGD(0.33, steps=4),
    PGD(2.5, norm="L2", steps=4),
    PGD(12.0, norm="L1", steps=4),
    APGD(0.33, steps=5),
    APGD(0.33, steps=3, loss="dlr", targets=2),
    ASOD(0.33, steps=2, samples=2),
    SOAE(0.33, steps=2),
    SOAE(0.33, steps=2, hvp="double-backward"),
]


@pytest.fixture(scope="module")
def network():
    return digits_network()


@pytest.fixture(scope="module")
def digits():
    return load_digits().first(20)


def length(delta, norm):
    flat = delta.flatten(1)
    return {"Linf": flat.abs().amax(1), "L2": flat.norm(dim=1), "L1": flat.abs().sum(1)}[norm]


class Precisions(nn.Module):
    """Notes the dtype that comes in and the one that goes out."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, set()

    def forward(self, x):
        logits = self.model(x)
        self.seen.add((x.dtype, logits.dtype))
        return logits


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_under_autocast_the_network_alone_is_in_lower_precision(network, digits, attack):
    x, y = digits.images, digits.labels
    traced = isinstance(attack, SOAE) and attack.hvp == "traced"
    model = network if traced else Precisions(network)
    with torch.autocast("cpu", torch.bfloat16):
        result = attack(model, x, y)
        logits = network(result.x_adv)
    assert traced or model.seen == {(torch.float32, torch.bfloat16)}
    assert result.x_adv.dtype == result.loss.dtype == torch.float32
    assert float(length(result.x_adv - x, attack.norm).max()) <= attack.eps
    assert bool(((result.x_adv >= 0) & (result.x_adv <= 1)).all())
    # Success is what one sees under the same autocast.
    assert torch.equal(result.success, logits.argmax(1) != y)
    # Signs of small gradients are noise in bfloat16, and a sign step takes them for as good as the others.
    margin = Objective(network, "margin")
    with torch.no_grad():
        gain, exact = (
            (margin(found, y) - margin(x, y)).mean() for found in (result.x_adv, attack(network, x, y).x_adv)
        )
    assert exact > 0
    assert gain > 0.7 * exact


def test_autoattack_under_autocast(network, digits):
    pytest.importorskip("pyautoattack")
    x, y = digits.images[:8], digits.labels[:8]
    for norm, eps in (("Linf", 0.36), ("L2", 3.0), ("L1", 20.0)):
        with torch.autocast("cpu", torch.bfloat16):
            result = AutoAttack(eps, norm=norm, steps=4, n_queries=6)(network, x, y)
        assert result.x_adv.dtype == torch.float32
        assert float(length(result.x_adv - x, norm).max()) <= eps
        assert result.success.any()


def test_losses_of_half_precision_logits_are_compared_in_single_precision():
    """Two logits that bfloat16 keeps apart, and losses that it would not: 30.0001 + log-sum."""
    logits = torch.tensor([[30.0, 0.0, 1.0], [30.0, 0.0, 1.01]], dtype=torch.bfloat16)
    loss = Objective(nn.Identity(), "ce")(logits, torch.tensor([1, 1]))
    assert loss.dtype == torch.float32
    expected = nn.functional.cross_entropy(logits.double(), torch.tensor([1, 1]), reduction="none")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


# --- batch_size="auto" -------------------------------------------------------------------------------------------


def test_the_bytes_of_a_forward_pass_are_those_of_its_outputs():
    model = nn.Sequential(nn.Flatten(), nn.Linear(N, 1000), nn.ReLU(), nn.Linear(1000, 10))
    outputs = 4 * (1000 + 1000 + 10)  # Flatten returns a view, and weights are not counted
    assert memory.gradient_bytes(model, torch.rand(1, *SHAPE)) == 3 * outputs


def test_a_gradient_takes_no_more_than_the_bound(network):
    """Against what autograd itself keeps for the backward pass, parameters left out."""
    kept, parameters = {}, {p.data_ptr() for p in network.parameters()}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.rand(1, 1, 28, 28, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(network(x), torch.tensor([1]))
    assert sum(kept.values()) > 0
    assert sum(kept.values()) <= memory.gradient_bytes(network, x.detach())
    assert loss.isfinite()


@pytest.mark.parametrize("free", [0, 2**20, 2**50])
def test_batches_follow_the_free_memory_and_change_nothing_but_rounding(monkeypatch, free):
    monkeypatch.setattr("soae_ext.attacks.base.available_bytes", lambda device: free)
    sizes = []

    class Sizes(Counting):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    model, x = Sizes(small_net()), images(40, dtype=torch.float32)
    y = small_net()(x).argmax(1)
    result = PGD(0.1, steps=4, batch_size="auto")(model, x, y)
    whole = PGD(0.1, steps=4)(small_net(), x, y)
    torch.testing.assert_close(result.x_adv, whole.x_adv, rtol=0, atol=1e-6)
    assert torch.equal(result.success, whole.success)
    assert int(result.gradient_calls.sum()) == model.with_gradient
    assert int(result.forward_calls.sum()) == model.without
    assert sizes[0] == 1
    needed = memory.gradient_bytes(small_net(), x[:1]) + 24 * N * 4
    assert max(sizes) == min(40, max(1, free // 2 // needed))


def test_free_memory_beyond_the_plan_is_left_free(monkeypatch):
    """A machine with a terabyte gets the same batches as a small one."""
    model, x = small_net(), images(40, dtype=torch.float32)
    needed = memory.gradient_bytes(model, x[:1]) + 24 * N * 4
    assert PGD(0.1).bytes_per_image(model, x[:1]) == needed
    monkeypatch.setattr("soae_ext.attacks.base.available_bytes", lambda device: 2**50)
    monkeypatch.setattr("soae_ext.attacks.base.largest_plan", lambda device: 7 * needed + 1)
    attack = PGD(0.1, batch_size="auto")
    assert attack._batch_size(model, x) == 7
    assert memory.largest_plan(torch.device("cpu")) == 3 * 2**30


def test_the_memory_of_an_image_is_taken_in_eval_mode():
    """In train mode the pass would change the statistics of batch normalisation."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(N), nn.Linear(N, 3)).train()
    assert PGD(0.1).bytes_per_image(model, torch.rand(1, *SHAPE)) > 0
    assert model[1].num_batches_tracked == 0
    assert all(module.training for module in model.modules())


def test_available_memory():
    assert 2**20 < memory.available_bytes(torch.device("cpu")) < 2**50


def test_memory_figures_of_the_system(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  999 kB\nMemAvailable:    512 kB\n")
    assert memory._system_bytes(file) == 512 * 1024
    assert memory._system_bytes(tmp_path / "none") is None
    assert memory._container_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    assert memory._container_bytes(tmp_path) == 1000


def test_no_images_with_automatic_batches():
    empty = PGD(0.1, batch_size="auto")(small_net(), torch.zeros(0, *SHAPE), torch.zeros(0, dtype=torch.int64))
    assert len(empty.x_adv) == 0
