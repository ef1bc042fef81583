"""This project: the compiled backend, and its pure-PyTorch reference in both forms.

Variants: "fused", "pytorch mgs", "pytorch cgs2". A workspace is reused, as a caller who solves repeatedly would, and
dense matrices are passed as what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import protocol
import torch
import torch_operators

from soae_ext.gmres import GMRESResult, Workspace, gmres


class Runner:
    def __init__(self, variant: str) -> None:
        torch_operators.set_threads()
        backend, _, form = variant.partition(" ")
        self.options: dict[str, Any] = (
            {"backend": torch_operators.DEVICE.type} if backend == "fused" else {"backend": "reference"}
        )
        if form:
            self.options["orthogonalization"] = form

    def versions(self) -> dict[str, str]:
        import soae_ext

        return {"soae_ext": soae_ext.__version__, "torch": torch.__version__}

    def load(self, task: protocol.Task) -> None:
        dense = task.kind == "dense"
        self.A = torch_operators.tensor(task.arrays["matrix"]) if dense else torch_operators.operator(task)
        self.b = torch_operators.tensor(task.b)
        self.options |= {"restart": task.restart, "max_iters": task.max_iters, "workspace": Workspace()}

    def prepare(self, rtol: float) -> tuple[Callable[[], Any], Callable[[Any], protocol.Answer]]:
        def unpack(result: GMRESResult) -> protocol.Answer:
            return protocol.Answer(result.x.cpu().numpy(), result.converged.tolist(), result.iterations.tolist())

        def call() -> GMRESResult:
            result = gmres(self.A, self.b, rtol=rtol, **self.options)
            torch_operators.finish()
            return result

        return call, unpack


if __name__ == "__main__":
    protocol.serve(Runner)
