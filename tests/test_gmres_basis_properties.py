"""Universal rules with the basis in reduced precision, tried on systems that hypothesis invents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soae_ext.gmres import Status, gmres
from tests.problems import residual
from tests.test_gmres_properties import _settings, solves, systems

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
PAIRS = [(F32, F16), (F32, BF16), (F64, F16), (F64, BF16), (F64, F32)]


@pytest.mark.parametrize(("dtype", "storage"), PAIRS, ids=lambda t: str(t).removeprefix("torch."))
def test_right_answer_or_honest_answer(backend, device, dtype, storage):
    @_settings(backend)
    @given(systems(), st.fixed_dictionaries(solves))
    def check(system, arguments):
        A, b = (t.to(dtype) for t in system)
        result = gmres(A.to(device), b.to(device), basis_dtype=storage, history=True, backend=backend, **arguments)
        x, status, count = result.x.cpu(), result.status.cpu(), result.iterations.cpu()
        norm, true, reported = b.double().norm(dim=1), residual(A, x, b), result.residual_norm.cpu().double()
        floor = 50 * torch.finfo(dtype).eps * (norm + A.double().flatten(1).norm(dim=1) * x.double().norm(dim=1))
        assert bool(x.isfinite().all())
        assert set(status.tolist()) <= {0, 1, 2, 3}
        # the residual is the true one, it never exceeds the start's, and CONVERGED is never false
        assert ((reported - true).abs() <= floor).all()
        assert (true <= norm + floor).all()
        limit = arguments["rtol"] * norm
        assert (reported[status == Status.CONVERGED] <= limit[status == Status.CONVERGED] * (1 + 1e-6)).all()
        assert (reported[status != Status.CONVERGED] > limit[status != Status.CONVERGED] * (1 - 1e-6)).all()
        assert (count <= arguments["max_iters"]).all()
        assert (count[status == Status.MAX_ITERS] == arguments["max_iters"]).all()
        assert ((~result.residual_history.cpu().isnan()).sum(1) == count + 1).all()

    check()
