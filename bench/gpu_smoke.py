"""A few small solves that reach every CUDA kernel, for compute-sanitizer: python bench/gpu_smoke.py."""

import torch

from soae_ext import _native
from soae_ext.gmres import gmres


def check(batch: int, n: int, dtype: torch.dtype, orthogonalization: str) -> None:
    diagonal = torch.linspace(1, 4, n, dtype=dtype, device="cuda").expand(batch, n)
    b = torch.randn(batch, n, dtype=dtype, device="cuda")
    for M, flexible in ((None, False), (lambda v: v / 2, False), (lambda v: v / 2, True)):
        result = gmres(
            lambda v: v * diagonal, b, b / 2, M=M, flexible=flexible, rtol=1e-3, restart=3, max_iters=60,
            orthogonalization=orthogonalization, backend="cuda",
        )  # fmt: skip
        assert bool(result.converged.all()), (batch, n, dtype, orthogonalization, result)


if __name__ == "__main__":
    for dtype in (torch.float32, torch.float64):
        for orthogonalization in ("mgs", "cgs2"):
            for batch, n in ((3, 1), (200, 61), (200, 784), (2, 20011)):
                check(batch, n, dtype, orthogonalization)
    for variant in range(11):  # of csrc/cuda/plan.h
        _native.extension.cuda.force_variant(variant)
        try:
            check(3, 200, torch.float32, "cgs2")
        except RuntimeError as error:  # this GPU has no clusters, or no copies to shared memory
            if "forced kernel" not in str(error):
                raise
    print("ok")
