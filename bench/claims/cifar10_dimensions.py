"""Claim: Table IV on CIFAR-10, the Krylov dimension m for each threshold (22 to 243 at 32 x 32 pixels).

    python bench/claims/cifar10_dimensions.py --data DIR

The measurement of `dimensions.py` on the standard-trained ResNet-18: one system per image, and batches taken as one
system (GMRES on b of shape (1, B n) with the products of the whole batch), to `--cap` dimensions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import cifar, parser, save
from dimensions import JOINED, PRODUCTS, TABLE_IV, per_system, shown


def main() -> None:
    options = parser(__doc__, "dimensions")
    options.set_defaults(output=Path(__file__).parents[2] / "docs" / "results" / "cifar10_dimensions.json")
    options.add_argument("--images", type=int, default=64, help="single systems")
    options.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    options.add_argument("--cap", type=int, default=150, help="largest dimension of a batch taken as one system")
    arguments: argparse.Namespace = options.parse_args()
    torch.set_num_threads(arguments.threads)
    networks, data, missing = cifar(arguments.data, max(arguments.images, *arguments.batches))
    if "cifar-standard" not in networks or data is None:
        raise SystemExit(missing)
    model = networks["cifar-standard"]
    single: dict[str, Any] = {}
    joined: dict[str, Any] = {}
    for name, products in PRODUCTS.items():
        few = data.first(arguments.images)
        single[name] = per_system(model, few, products, min(arguments.images, 64), False, 40)
        print("per sample,", name, shown(single[name]), single[name]["status_at_1e-5"], flush=True)
    for name in JOINED:
        joined[name] = {}
        for size in arguments.batches:
            found = per_system(model, data.first(size), PRODUCTS[name], size, True, arguments.cap)
            joined[name][str(size)] = found
            print(f"B={size}, {name}", shown(found), found["status_at_1e-5"], flush=True)
    arguments.batches = " ".join(map(str, arguments.batches))
    content = {"data": data.name, "per sample": single, "batch as one system": joined, "table_iv": TABLE_IV}
    save(arguments, "Table IV on CIFAR-10: the Krylov dimension m for each threshold", content)


if __name__ == "__main__":
    main()
