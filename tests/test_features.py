"""Activation maps, their distortion, and the layer that is chosen for them."""

import pytest
import torch
from torch import nn

from soae_ext.evaluation.features import activation_maps, choose_layer, feature_analysis
from soae_ext.models import digits_network, resnet18


class Known(nn.Module):
    """A network whose features are its images times 2."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(1, 3)
        nn.init.constant_(self.conv.weight, 2.0)

    def forward(self, x):
        return self.head(self.pool(self.conv(x)).flatten(1))


def test_the_layer_is_the_last_fine_convolution():
    images = torch.rand(2, 1, 28, 28)
    assert choose_layer(digits_network(), images) == "features.2"
    # 32, 16, 8 and 4 pixels a side: 4 is an eighth, but no picture.
    network = resnet18()
    layer = choose_layer(network, torch.rand(1, 3, 32, 32))
    assert activation_maps(network, layer, torch.rand(1, 3, 32, 32)).shape == (1, 8, 8)


def test_no_hook_stays_and_the_mode_comes_back():
    network = digits_network().train()
    network.features.eval()
    choose_layer(network, torch.rand(1, 1, 28, 28))
    activation_maps(network, "features.0", torch.rand(1, 1, 28, 28))
    assert network.training
    assert not network.features.training
    assert not any(module._forward_hooks for module in network.modules())


def test_maps_are_the_mean_absolute_activations():
    network, images = digits_network(), torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        want = network.features[0](images).abs().mean(1)
    torch.testing.assert_close(activation_maps(network, "features.0", images), want)


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_the_distortion_is_the_one_that_was_made(batch_size):
    images = torch.rand(5, 1, 6, 6) + 0.1
    moved = images.clone()
    moved[:4] *= torch.tensor([1.1, 1.2, 1.3, 1.4]).reshape(-1, 1, 1, 1)
    fooled = torch.tensor([True, False, True, False, True])
    analysis = feature_analysis(Known(), images, {"a": moved}, {"a": fooled}, layer="conv", batch_size=batch_size)
    assert analysis.layer == "conv"
    (found,) = analysis.attacks
    assert analysis.as_json()["attacks"][0]["fooled"]["count"] == 2
    assert found.distortion.count == 4
    assert found.distortion.mean == pytest.approx(0.25, rel=1e-5)
    assert found.fooled.count == 2
    assert found.fooled.mean == pytest.approx(0.2, rel=1e-5)


def test_a_layer_that_is_no_map_or_no_module_is_refused():
    network, images = digits_network(), torch.rand(2, 1, 28, 28)
    with pytest.raises(ValueError, match=r"layer: unknown name 'features\.1x'.*did you mean 'features\.1'"):
        activation_maps(network, "features.1x", images)
    with pytest.raises(ValueError, match="layer: unknown name ''"):
        activation_maps(network, "", images)
    with pytest.raises(ValueError, match=r"layer: the output of classifier\.0 has shape \(2, 96\)"):
        activation_maps(network, "classifier.0", images)
    with pytest.raises(ValueError, match="layer: the network has no convolution"):
        choose_layer(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), images)
    with pytest.raises(ValueError, match="features: there is no image"):
        feature_analysis(network, images[:0], {}, {})


def test_vectors_have_a_distortion_too():
    network, images = digits_network(), torch.rand(4, 1, 28, 28)
    moved, fooled = (images + 0.1).clamp(0, 1), torch.zeros(4, dtype=torch.bool)
    (found,) = feature_analysis(network, images, {"a": moved}, {"a": fooled}, layer="classifier.0").attacks
    assert found.distortion.mean > 0
    assert found.fooled.count == 0
