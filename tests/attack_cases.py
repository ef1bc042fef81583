"""Models and images that the tests of the attacks share."""

import torch
from torch import nn

SHAPE = (1, 5, 4)
N = 20


def linear(classes=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(N, classes, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, N, generator=generator, dtype=torch.float64))
        layer.bias.copy_(torch.randn(classes, generator=generator, dtype=torch.float64))
    return nn.Sequential(nn.Flatten(), layer)


def images(count, low=0.0, high=1.0, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (low + (high - low) * torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)).to(dtype)


def small_net(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(N, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)


def smooth_net(seed=0, dtype=torch.float64, gain=3.0):
    """Four classes; the Hessian of its losses is indefinite and of full rank."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(N, 24), nn.Tanh(), nn.Linear(24, 4)).double()
    with torch.no_grad():
        net[1].weight.mul_(gain)
    return net.to(dtype)


class Quadratic(nn.Module):
    """Two classes whose margin loss for class 0 is -1 + g'd + d'Hd/2 with d = x - 1/2, images of any shape."""

    def __init__(self, g, h):
        super().__init__()
        self.g, self.h = g, h

    def forward(self, x):
        d = x.flatten(1) - 0.5
        rise = d @ self.g + ((d @ self.h) * d).sum(1) / 2
        return torch.stack([torch.zeros_like(rise), rise - 1], 1)


class Counting(nn.Module):
    """Counts the images that pass with and without a gradient."""

    def __init__(self, model):
        super().__init__()
        self.model, self.with_gradient, self.without = model, 0, 0

    def forward(self, x):
        if torch.is_grad_enabled() and x.requires_grad:
            self.with_gradient += len(x)
        else:
            self.without += len(x)
        return self.model(x)


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor
