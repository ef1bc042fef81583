"""Claim: 0 <= L(x + d*) - L(x + d_so) <= n^3 eps^3 / 3 max |D^3 L| (Eq. 20), d_so "our second-order perturbation".

    python bench/claims/bound.py

Small smooth networks 8-16-10 on the shipped digits, averaged to 2 x 4 pixels, in float64. d* is the best point that
ascent finds from 128 starts, the best of all 256 corners of the box and 256 random points. Four candidates for d_so:
the global maximiser of the quadratic model Q over the box (Eq. 16; found exactly, by trying all 3^8 faces), -H^-1 g cut
to the box (Eqs. 5, 6), its sign, and for comparison the sign of g. The proof of Eq. 18 needs Q(d*) <= Q(d_so).
The maximum of |D^3 L| is taken over 64 points of the box, so the bound that is compared with is at most the true one.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch
from common import digits, mean, parser, save, share, spread
from torch import Tensor, nn
from torch.func import grad, hessian, jacfwd, vmap
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

PIXELS = 8
RADII = (0.001, 0.003, 0.01, 0.03, 0.1)


def train(activation: nn.Module, x: Tensor, y: Tensor) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(PIXELS, 16), activation, nn.Linear(16, 10)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
    for _ in range(500):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.requires_grad_(False).eval()


class Problem:
    """The loss around one image."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y
        self.g = grad(self.loss)(torch.zeros_like(x))
        self.H = hessian(self.loss)(torch.zeros_like(x))
        self.third = jacfwd(jacfwd(grad(self.loss)))

    def loss(self, d: Tensor) -> Tensor:
        return cross_entropy(self.model((self.x + d)[None]), self.y[None])

    def losses(self, d: Tensor) -> Tensor:
        return cross_entropy(self.model(self.x + d), self.y.expand(len(d)), reduction="none")

    def model_value(self, d: Tensor) -> Tensor:
        """Q of each row."""
        return d @ self.g + ((d @ self.H) * d).sum(1) / 2

    def strongest(self, eps: float, starts: Tensor) -> Tensor:
        """d*: sign ascent with a shrinking step, then the gradient, from the 128 best starts; the best point of all."""
        losses = self.losses(eps * starts)
        value, order = losses.topk(128)
        d = best = eps * starts[order]
        for step in range(100):
            slope = vmap(grad(self.loss))(d)
            size = eps * 0.93**step
            move = slope.sign() if step < 50 else slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-300)
            d = (d + size * move).clamp(-eps, eps)
            now = self.losses(d)
            best, value = torch.where((now > value)[:, None], d, best), torch.maximum(now, value)
        return best[value.argmax()]

    def best_of_model(self, eps: float, faces: Tensor) -> Tensor:
        """The global maximiser of Q over the box: it is a stationary point of Q on one of the 3^n faces.

        faces (3^n, n): -1 or 1 where a coordinate is on its bound, 0 where it is free.
        """
        free = (faces == 0).to(self.g)
        fixed = eps * faces
        matrix = free[:, :, None] * self.H * free[:, None, :] + torch.diag_embed(1 - free)
        right = -free * (self.g + fixed @ self.H) + (1 - free) * fixed
        # A singular face has its maximum on a smaller one, which is tried too.
        solved, info = torch.linalg.solve_ex(matrix, right)
        usable = (info == 0) & (solved.abs() <= eps * (1 + 1e-12)).all(1)
        candidates = solved[usable].clamp(-eps, eps)
        return candidates[self.model_value(candidates).argmax()]

    def largest_third_derivative(self, eps: float, points: Tensor) -> float:
        return float(vmap(self.third)(eps * points).abs().max())


def measure(model: nn.Module, x: Tensor, y: Tensor) -> list[dict[str, Any]]:
    random = torch.rand(256, PIXELS, generator=torch.Generator().manual_seed(0), dtype=x.dtype) * 2 - 1
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=PIXELS)), dtype=x.dtype)
    faces = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=PIXELS)), dtype=x.dtype)
    problems = [Problem(model, image, label) for image, label in zip(x, y, strict=True)]
    eigenvalues = torch.stack([torch.linalg.eigvalsh(p.H) for p in problems])
    rows: list[dict[str, Any]] = [{"H_indefinite": share((eigenvalues < 0).any(1))}]
    for eps in RADII:
        found: dict[str, list[list[float]]] = {}
        bounds, taylor = [], []
        for p in problems:
            best = p.strongest(eps, torch.cat([corners, random]))
            newton = -torch.linalg.solve(p.H, p.g)
            candidates = {
                "argmax of Q": p.best_of_model(eps, faces),
                "-H^-1 g, cut to the box": newton.clamp(-eps, eps),
                "sign of -H^-1 g": eps * newton.sign(),
                "sign of g": eps * p.g.sign(),
            }
            bound = PIXELS**3 * eps**3 / 3 * p.largest_third_derivative(eps, torch.cat([corners[::8], random[:32]]))
            bounds.append(bound)
            taylor.append(float(p.losses(best[None])[0] - p.loss(torch.zeros_like(best))))
            q_best = float(p.model_value(best[None])[0])
            for name, d in candidates.items():
                gap = float(p.losses(best[None])[0] - p.losses(d[None])[0])
                q = float(p.model_value(d[None])[0])
                found.setdefault(name, []).append([gap, gap / bound, q, q_best - q])
        row: dict[str, Any] = {
            "eps": eps,
            "loss_gain_of_d*": mean(torch.tensor(taylor)),
            "bound": spread(torch.tensor(bounds)),
        }
        for name, values in found.items():
            gap, ratio, q, short = torch.tensor(values, dtype=torch.float64).unbind(1)
            row[name] = {
                "gap": mean(gap),
                "gap_of_bound": spread(ratio),
                "gap_above_bound": share(ratio > 1),
                "Q_below_Q_of_d*": share(short > 1e-12),
                "Q_negative": share(q < 0),
            }
        rows.append(row)
        print(f"eps {eps}: ", {k: (v["gap"]["mean"], v["gap_above_bound"]["count"], v["Q_below_Q_of_d*"]["count"])
              for k, v in row.items() if isinstance(v, dict) and "gap" in v}, flush=True)  # fmt: skip
    return rows


def main() -> None:
    options = parser(__doc__, "bound")
    options.add_argument("--images", type=int, default=50)
    arguments: argparse.Namespace = options.parse_args()
    torch.set_num_threads(arguments.threads)
    data = digits()
    x = adaptive_avg_pool2d(data.images.double(), (2, 4)).flatten(1)
    results = {}
    for name, activation in {"tanh": nn.Tanh(), "softplus": nn.Softplus()}.items():
        model = train(activation, x, data.labels)
        right = model(x).argmax(1) == data.labels
        print(name, share(right))
        chosen = right.nonzero()[: arguments.images, 0]
        rows = measure(model, x[chosen], data.labels[chosen])
        results[name] = {"network": f"8-16-10 {name}", "accuracy": share(right), "images": len(chosen), "rows": rows}
    save(arguments, "the strength bound (Eq. 20)", {"networks": results})


if __name__ == "__main__":
    main()
