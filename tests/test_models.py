"""The built-in architectures, and networks by name and by import path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from soae_ext.data import ImageData, load_digits
from soae_ext.hvp import hessian_operator
from soae_ext.models import (
    SmallCNN,
    check_model,
    load_model,
    needs_checkpoint,
    resnet18,
    save_checkpoint,
    wide_resnet,
)


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def wide_resnet_parameters(depth: int, widen: int) -> int:
    """Counted from the definition: convolutions without bias, two numbers per normalised channel, 1x1 shortcuts."""
    blocks = (depth - 4) // 6
    count, inside = 9 * 3 * 16, 16
    for outside in (16 * widen, 32 * widen, 64 * widen):
        for block in range(blocks):
            before = inside if block == 0 else outside
            count += 9 * before * outside + 9 * outside * outside + 2 * before + 2 * outside
            count += before * outside if before != outside else 0
        inside = outside
    return count + 2 * inside + 10 * inside + 10


@pytest.mark.parametrize(("depth", "widen", "published"), [(28, 4, 5.8e6), (34, 10, 46.2e6), (28, 10, 36.5e6)])
def test_wide_residual_networks_have_the_published_number_of_parameters(depth, widen, published) -> None:
    with torch.device("meta"):
        count = parameters_of(wide_resnet(depth, widen))
    assert count == wide_resnet_parameters(depth, widen)
    assert abs(count - published) <= 0.06e6


def by_definition(state: dict[str, Tensor], x: Tensor, blocks: int, activation) -> Tensor:
    """Zagoruyko & Komodakis from a state dict: norm and activation before each convolution, stride in the first block
    of stages two and three."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        shape = (1, -1, 1, 1)
        x = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        return activation(x * weight.view(shape) + bias.view(shape))

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            before = norm(f"{name}.bn1", x)
            out = norm(f"{name}.bn2", F.conv2d(before, state[f"{name}.conv1.weight"], stride=stride, padding=1))
            out = F.conv2d(out, state[f"{name}.conv2.weight"], padding=1)
            shortcut = state.get(f"{name}.convShortcut.weight")
            x = out + (x if shortcut is None else F.conv2d(before, shortcut, stride=stride))
    return F.linear(norm("bn1", x).mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize(("activation", "function"), [("relu", torch.relu), ("silu", F.silu), ("softplus", F.softplus)])
def test_the_wide_residual_network_is_that_of_the_paper(activation, function) -> None:
    torch.manual_seed(0)
    model = wide_resnet(16, 2, 7, 4, activation, "none").double().eval()
    for name, tensor in model.state_dict().items():
        if "running_mean" in name or name.endswith("bias"):
            nn.init.normal_(tensor)
        elif "running_var" in name or ("bn" in name and name.endswith("weight")):
            nn.init.uniform_(tensor, 0.5, 2)
    x = torch.rand(2, 3, 16, 12, dtype=torch.float64)
    torch.testing.assert_close(model(x), by_definition(model.state_dict(), x, 2, function))


@pytest.mark.parametrize("build", [resnet18, lambda **kw: wide_resnet(10, 1, **kw)])
def test_normalisation_is_inside(build) -> None:
    x = torch.rand(2, 3, 8, 8)
    plain, cifar, imagenet = (build(width=4, normalization=name).eval() for name in ("none", "cifar10", "imagenet"))
    for model, mean, std in (
        (cifar, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        (imagenet, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ):
        model.load_state_dict(plain.state_dict())
        standard = torch.stack([(x[:, i] - mean[i]) / std[i] for i in range(3)], 1)
        torch.testing.assert_close(model(x), plain(standard))


@pytest.mark.parametrize("name", ["resnet18", "wrn-10-1"])
def test_residual_networks_for_grey_images(name, tmp_path) -> None:
    model = load_model(f"{name}:width=4,normalization=mnist")
    x = torch.rand(2, 1, 28, 28)
    seen = []
    model.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert model(x).shape == (2, 10)
    torch.testing.assert_close(seen[0], (x - 0.1307) / 0.3081)
    assert model.input_shape == (1, None, None)
    save_checkpoint(model, tmp_path / "net.safetensors")
    torch.testing.assert_close(load_model(name, tmp_path / "net.safetensors")(x), model(x))


def test_exact_products_of_a_wide_residual_network() -> None:
    torch.manual_seed(0)
    model = load_model("wrn-10-2:width=4,silu").double()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, reduction="none")

    x, y = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 2])
    v = torch.randn_like(x)
    traced, eager = (hessian_operator(loss, x, y, method=method) for method in ("traced", "double-backward"))
    assert traced.method == "traced"
    assert eager(v).abs().max() > 0
    torch.testing.assert_close(traced(v), eager(v))


def test_the_small_network_for_other_images_and_classes() -> None:
    model = load_model("small-cnn:width=8,input=3x33x18,silu", classes=7)
    assert isinstance(model, SmallCNN)
    assert model(torch.rand(2, 3, 33, 18)).shape == (2, 7)
    assert model.config == {
        "channels": [8, 16], "hidden": 32, "activation": "silu", "input_shape": [3, 33, 18], "classes": 7
    }  # fmt: skip
    assert parameters_of(load_model("small-cnn")) == parameters_of(load_model("digits")) == 245_746


def test_networks_by_name_are_ready_to_attack() -> None:
    for spec in ("digits", "small-cnn:softplus", "resnet18:width=4,classes=3", "wrn-10-1:width=2"):
        model = load_model(spec)
        assert not model.training
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert needs_checkpoint(spec) == (spec != "digits")
    assert not needs_checkpoint("efficientnet-lite0")
    assert not needs_checkpoint("torch.nn:Identity")
    assert sum(isinstance(module, nn.Softplus) for module in load_model("small-cnn:softplus").modules()) == 3


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("resnet19", "unknown name 'resnet19'; did you mean 'resnet18'.*or pkg.module:factory"),
        ("", "unknown name ''"),
        ("resnet18:elu", "unknown option 'elu'; choose from activation=.*, relu, softplus, silu$"),
        ("efficientnet-lite0:silu", "unknown name 'activation'; choose from classes$"),
        ("resnet18:", "unknown option ''"),
        ("resnet18:activation=elu", "activation: unknown 'elu'"),
        ("resnet18:depth=3", "unknown name 'depth'.*width"),
        ("resnet18:width=0", "width must be a whole number of at least 1, got '0'"),
        ("resnet18:width=-1", "width must be"),
        ("resnet18:width=1.5", "width must be"),
        ("resnet18:silu,activation=relu", "activation is given twice"),
        ("resnet18:normalization=emnist", "normalization: unknown name 'emnist'; did you mean 'mnist'?"),
        ("wrn-27-4", "depth: .*got 27"),
        ("wrn-4-4", "depth: .*got 4"),
        ("small-cnn:input=28", "input must be CHANNELSxHEIGHTxWIDTH"),
        ("small-cnn:input=1x3x28", "4 x 4 pixels or more"),
        ("digits:silu", "no options"),
    ],
)
def test_bad_names_and_options(spec: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as told:
        load_model(spec)
    assert "\n" not in str(told.value)


def test_classes_that_contradict_the_network() -> None:
    with pytest.raises(ValueError, match="classes is 10 in digits, not 7"):
        load_model("digits", classes=7)
    with pytest.raises(ValueError, match="classes is 5 in the name, not 7"):
        load_model("resnet18:classes=5", classes=7)
    with pytest.raises(ValueError, match="leave classes out"):
        load_model("torch.nn:Identity", classes=7)


MODULE = """
import torch
from torch import nn

made = nn.Linear(4, 3)
number = 7

class Nets:
    @staticmethod
    def small():
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double().train()

def nothing():
    pass

def fails():
    raise RuntimeError("two\\nlines")

def leaves():
    raise SystemExit(3)

def needs(width):
    return nn.Linear(width, 1)

def broken():
    net = nn.Linear(4, 3)
    net.weight.data[0, 0] = float("nan")
    return net
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, and one that cannot be imported."""
    (tmp_path / "own_networks.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "own_script.py").write_text("raise SystemExit('usage')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield "own_networks"
    for name in ("own_networks", "own_broken", "own_script"):
        sys.modules.pop(name, None)


def test_a_network_by_import_path(own_module: str, tmp_path: Path) -> None:
    model = load_model(f"{own_module}:Nets.small")
    assert not model.training
    assert model[1].weight.dtype == torch.float32
    assert isinstance(load_model(f"{own_module}:made"), nn.Linear)
    from safetensors.torch import save_file

    save_file({"1.weight": torch.ones(3, 4), "1.bias": torch.zeros(3)}, tmp_path / "net")
    loaded = load_model(f"{own_module}:Nets.small", tmp_path / "net")
    assert torch.equal(loaded(torch.ones(1, 1, 2, 2)), torch.full((1, 3), 4.0))
    save_file({"1.weight": torch.ones(2, 4), "1.bias": torch.zeros(3)}, tmp_path / "net")
    with pytest.raises(ValueError, match=r"another architecture than .*1\.weight \(2, 4\) instead of \(3, 4\)"):
        load_model(f"{own_module}:Nets.small", tmp_path / "net")


@pytest.mark.parametrize(
    ("attribute", "kind", "complaint"),
    [
        ("own_nothing:f", ImportError, "there is no module 'own_nothing' in .* or among the installed packages"),
        ("own_networks.sub:f", ImportError, "own_networks"),
        ("own_broken:f", ImportError, "importing own_broken fails with ModuleNotFoundError: .*no_such_package_at_all"),
        ("own_script:f", ImportError, "importing own_script fails with SystemExit: usage"),
        ("own_networks:other", ImportError, "there is no 'other' in the module own_networks"),
        ("own_networks:Nets.other", ImportError, "there is no 'Nets.other' in the module own_networks"),
        ("own_networks:number", TypeError, "not callable but int"),
        ("own_networks:nothing", TypeError, "gives NoneType, not a torch.nn.Module"),
        ("own_networks:fails", ValueError, "fails with RuntimeError: two lines"),
        ("own_networks:leaves", ValueError, "fails with SystemExit: 3"),
        ("own_networks:needs", ValueError, "fails with TypeError: .*width"),
        ("own_networks:broken", ValueError, "NaN or infinite, such as weight"),
    ],
)
def test_import_paths_that_give_no_network(own_module: str, attribute: str, kind: type, complaint: str) -> None:
    with pytest.raises(kind, match=complaint) as told:
        load_model(attribute)
    assert "\n" not in str(told.value)


class Two(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]


def test_model_and_data_are_checked_against_each_other() -> None:
    digits = load_digits()
    model = load_model("digits").train()
    assert check_model(model, digits) == 10
    assert model.training
    with pytest.raises(ValueError, match=r"takes images \(3, any, any\), these are \(1, 28, 28\)"):
        check_model(resnet18(width=2), digits)
    with pytest.raises(ValueError, match=r"cannot take images \(1, 28, 28\): RuntimeError: "):
        check_model(nn.Sequential(nn.Flatten(), nn.Linear(3, 10)), digits)
    with pytest.raises(ValueError, match=r"logits \(B, classes\), got \(1, 1, 28, 28\)"):
        check_model(nn.Identity(), digits)
    with pytest.raises(ValueError, match=r"labels must lie in 0 to 1, these span 0 to 9 \(image 0 is the first"):
        check_model(Two(), digits)
    dark = ImageData(digits.images / 0, digits.labels, "dark")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        check_model(model, dark)
    loud = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    nn.init.constant_(loud[1].weight, float("inf"))
    with pytest.raises(ValueError, match="logits of the first image are not finite"):
        check_model(loud, digits)
