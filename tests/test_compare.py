"""The comparison's own parts: the problems, the confirmation of answers, the runners' protocol, the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soae_ext.data import load_digits
from soae_ext.gmres import gmres
from soae_ext.models import digits_network

BENCH = Path(__file__).resolve().parent.parent / "bench"
if not (BENCH / "compare.py").exists():
    pytest.skip("bench/ is not beside the tests", allow_module_level=True)
sys.path[:0] = [str(BENCH), str(BENCH / "peers")]

import protocol  # noqa: E402
import torch_operators  # noqa: E402
from compare_gmres import measurement, problems, tables, traps  # noqa: E402
from compare_gmres.confirm import SLACK, confirm  # noqa: E402
from compare_gmres.contenders import CONTENDERS, OURS, Contender, Peer, PeerError, missing  # noqa: E402

SMALL = [
    problems.diagonal_lowrank(3, 25, "float64", rtol=1e-10),
    problems.poisson(3, 5, "float64", rtol=1e-10, restart=25),
    problems.convection(2, 6, "float64", rtol=1e-10),
    problems.random_nonsymmetric(3, 20, "float64", rtol=1e-10),
    problems.hessian(2, "float64", rtol=1e-6, damping=1e-2),
]
small = pytest.mark.parametrize("problem", SMALL, ids=[p.name for p in SMALL])


def dense(problem: problems.Problem) -> np.ndarray:
    """The matrices, built another way than `problems.apply` multiplies."""
    arrays, n = problem.arrays, problem.n
    if problem.kind == "dense":
        return arrays["matrix"]
    if problem.kind == "lowrank":
        diagonals = np.stack([np.diag(d) for d in arrays["diagonal"]])
        return diagonals + arrays["left"].transpose(0, 2, 1) @ arrays["right"]
    g = round(n**0.5)
    eye, lower = scipy.sparse.eye_array(g), scipy.sparse.eye_array(g, k=-1)
    matrices = []
    for c, w, e, north, south in arrays["weights"]:
        row = c * eye + w * lower + e * lower.T
        matrices.append(
            (scipy.sparse.kron(eye, row) + scipy.sparse.kron(north * lower + south * lower.T, eye)).toarray()
        )
    return np.stack(matrices)


@small
def test_operators_are_the_matrices_that_they_say(problem: problems.Problem) -> None:
    v = np.random.default_rng(0).standard_normal(problem.b.shape)
    expected = np.stack([a @ row for a, row in zip(dense(problem), v, strict=True)])
    np.testing.assert_allclose(problems.apply(problem.kind, problem.arrays, v), expected, rtol=1e-12, atol=1e-12)


@small
def test_torch_operators_multiply_by_the_same(problem: problems.Problem, tmp_path: Path) -> None:
    problem.save(tmp_path / "p.npz")
    task = protocol.read(str(tmp_path / "p.npz"))
    v = np.random.default_rng(1).standard_normal(problem.b.shape)
    expected = problems.apply(problem.kind, problem.arrays, v)
    forms = [torch_operators.operator(task)]
    if problem.kind == "stencil":
        weights = torch.from_numpy(task.arrays["weights"])
        forms = [torch_operators._slices(weights), torch_operators._sparse(weights, problem.n)]
    for form in forms:
        np.testing.assert_allclose(form(torch.from_numpy(v)).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_hessian_export_is_the_hessian_of_the_loss() -> None:
    factor, gradient = problems.hessian_factors(2)
    model, data = digits_network().double(), load_digits()
    for i in range(2):
        label, shape = data.labels[i : i + 1], data.images[i : i + 1].shape

        def loss(x: torch.Tensor, label: torch.Tensor = label, shape: torch.Size = shape) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(model(x.view(shape)), label)

        x = data.images[i].double().flatten()
        expected = torch.autograd.functional.hessian(loss, x, vectorize=True).numpy()
        np.testing.assert_allclose(factor[i].T @ factor[i], expected, atol=1e-9 * np.abs(expected).max())
        slope = torch.autograd.functional.jacobian(loss, x).numpy()
        np.testing.assert_allclose(gradient[i], slope, atol=1e-9 * np.abs(slope).max())


@pytest.mark.parametrize("build", problems.QUICK)
def test_problems_come_from_a_seed_and_survive_the_file(build: problems.Build, tmp_path: Path) -> None:
    problem, again = build(), build()
    problem.save(tmp_path / "p.npz")
    task = protocol.read(str(tmp_path / "p.npz"))
    assert (task.kind, task.restart, task.max_iters) == (problem.kind, problem.restart, problem.max_iters)
    assert task.b.dtype == problem.b.dtype
    np.testing.assert_array_equal(task.b, again.b)
    assert set(task.arrays) == set(again.arrays)
    for key, value in again.arrays.items():
        np.testing.assert_array_equal(task.arrays[key], value)
        assert task.arrays[key].dtype == problem.b.dtype


# --- confirmation -----------------------------------------------------------------------------------------------------


@small
def test_exact_answers_are_confirmed_and_spoilt_ones_are_not(problem: problems.Problem) -> None:
    x = np.linalg.solve(dense(problem), problem.b[:, :, None])[:, :, 0]
    claims: list[bool | None] = [True] * problem.batch
    assert confirm(problem, x, claims).all_reached
    x[0] *= 1 + 10 * problem.rtol
    found = confirm(problem, x, claims)
    assert found.reached.tolist() == [False] + [True] * (problem.batch - 1)
    assert found.counts()["false_success"] == 1


@settings(deadline=None, max_examples=40)
@given(factor=st.floats(0.1, 3.0), scale=st.integers(-300, 300), claim=st.sampled_from([True, False, None]))
def test_a_residual_counts_relative_to_its_right_hand_side(factor: float, scale: int, claim: bool | None) -> None:
    """x = (1 - factor·rtol) b for A = I: the residual is factor·rtol·‖b‖ at every scale that float64 has."""
    b = 10.0 ** (scale / 2) * np.array([[3.0, 4.0]])
    problem = problems.Problem("p", "dense", {"matrix": np.eye(2)[None]}, b, 1e-3, 2, 2, "")
    found = confirm(problem, (1 - factor * 1e-3) * b, [claim])
    if abs(factor - SLACK) > 1e-6:
        assert bool(found.reached[0]) == (factor < SLACK)
    counts = found.counts()
    assert counts["false_success"] == (claim is True and not found.reached[0])
    assert counts["false_failure"] == (claim is False and bool(found.reached[0]))
    assert counts["silent"] == (claim is None)


def test_zero_and_infinite_right_hand_sides_and_nan_answers() -> None:
    b = np.array([[0.0, 0.0], [np.inf, 1.0], [1.0, 1.0], [0.0, 0.0]])
    x = np.array([[0.0, 0.0], [0.0, 0.0], [np.nan, 1.0], [1e-30, 0.0]])
    problem = problems.Problem("p", "dense", {"matrix": np.stack([np.eye(2)] * 4)}, b, 1e-3, 2, 2, "")
    found = confirm(problem, x, [True] * 4)
    assert found.reached.tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match="shape"):
        confirm(problem, x[:2], [True] * 2)


def test_traps_are_what_they_say_and_this_project_claims_nothing_false() -> None:
    for build in traps.TRAPS:
        problem = build()
        A, b = torch.from_numpy(problem.arrays["matrix"]), torch.from_numpy(problem.b)
        result = gmres(A, b, rtol=problem.rtol, restart=problem.restart, max_iters=problem.max_iters)
        counts = confirm(problem, result.x.numpy(), result.converged.tolist()).counts()
        assert (counts["false_success"], counts["false_failure"]) == (0, 0), problem.name
    deficient = traps.singular_inconsistent()
    for A, b in zip(deficient.arrays["matrix"], deficient.b, strict=True):
        least = np.linalg.lstsq(A, b, rcond=1e-10)[0]
        assert np.linalg.norm(b - A @ least) > 0.01 * np.linalg.norm(b)


# --- runners ----------------------------------------------------------------------------------------------------------

FAKE = """
import sys, time
sys.path.insert(0, {peers!r})
import numpy as np
import protocol

class Runner:
    def __init__(self, variant):
        print("a library that prints")
        self.variant = variant
    def versions(self):
        return {{"fake": self.variant}}
    def load(self, task):
        self.b = task.b
    def prepare(self, rtol):
        if self.variant == "raises":
            raise ValueError("no such thing")
        if self.variant == "dies":
            raise SystemExit(3)
        if self.variant == "sleeps":
            time.sleep(60)
        return lambda: self.b * (1 - rtol), lambda x: protocol.Answer(x, [True] * len(x), [7] * len(x))

protocol.serve(Runner)
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    script = tmp_path / "fake.py"
    script.write_text(FAKE.format(peers=str(BENCH / "peers")))
    return script


@pytest.fixture
def identity() -> problems.Problem:
    return problems.Problem("identity", "dense", {"matrix": np.eye(3)[None]}, np.ones((1, 3)), 1e-3, 2, 4, "")


def run_options(tmp_path: Path, **more: object) -> measurement.Settings:
    return measurement.Settings(tmp_path, "cpu", 1, tmp_path, tmp_path / "log", rounds=2, least_seconds=0.001, **more)


def test_a_runner_is_solved_confirmed_and_timed(fake: Path, identity: problems.Problem, tmp_path: Path) -> None:
    """The fake returns a residual of 1.5 times what it is asked for, so it needs the next tighter tolerance."""
    script = fake.read_text().replace("(1 - rtol)", "(1 - 1.5 * rtol)")
    fake.write_text(script)
    contender = Contender("fake", str(fake), variant="v1")
    result = measurement.timed_problem(identity, [contender], run_options(tmp_path))
    (row,) = result["rows"]
    assert row["error"] is None
    assert row["versions"] == {"fake": "v1"}
    assert row["reached_goal"]
    assert row["factor"] == 0.3
    assert row["false_success"] == 1
    assert row["iterations"] == {"mean": 7, "max": 7}
    assert row["seconds"]["p10"] <= row["seconds"]["median"] <= row["seconds"]["p90"]
    assert row["peak_mib"] > 1
    assert "a library that prints" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("variant", "message"),
    [("raises", "ValueError: no such thing"), ("dies", "status 3"), ("sleeps", "more than 1 s")],
)
def test_a_runner_that_fails_says_so_in_its_row(
    variant: str, message: str, fake: Path, identity: problems.Problem, tmp_path: Path
) -> None:
    contender = Contender("fake", str(fake), variant=variant)
    result = measurement.timed_problem(identity, [contender], run_options(tmp_path, limit=1.0))
    assert message in result["rows"][0]["error"]
    assert message in tables.markdown(record([result]), {})


def test_this_project_through_its_runner(tmp_path: Path) -> None:
    ours = [c for c in CONTENDERS if c.name == OURS]
    problem = problems.random_nonsymmetric(2, 20, "float32", rtol=1e-4)
    (row,) = measurement.timed_problem(problem, ours, run_options(tmp_path))["rows"]
    assert row["reached_goal"]
    assert row["claimed"] == 2
    assert row["ratio"]["median"] == 1


def test_who_is_missing_and_why(tmp_path: Path) -> None:
    by_name = {c.name: c for c in CONTENDERS}
    assert missing(by_name[OURS], tmp_path, "cpu") is None
    assert "cuda only" in (missing(by_name["CuPy, loop"], tmp_path, "cpu") or "")
    assert "setup_peers.sh" in (missing(by_name["Warp"], tmp_path, "cpu") or "")
    (tmp_path / "warp.failed").write_text("ERROR: no matching distribution\n")
    assert missing(by_name["Warp"], tmp_path, "cpu") == "not installed: ERROR: no matching distribution"
    with (
        pytest.raises(PeerError, match="ended"),
        Peer(Contender("x", "nothing.py"), tmp_path, "cpu", 1, tmp_path / "l") as p,
    ):
        p.ask("hello")


# --- tables -----------------------------------------------------------------------------------------------------------


def timed(contender: str, median: float, *, reached: bool = True) -> dict[str, object]:
    spread = {"median": median, "p10": 0.9 * median, "p90": 1.1 * median}
    return {
        "contender": contender, "error": None, "reached_goal": reached, "factor": 1.0, "iterations": None,
        "worst_residual": 1e-6, "systems": 4, "reached": 4 * reached, "claimed": 4, "silent": 0,
        "false_success": 0 if reached else 4, "false_failure": 0, "seconds": spread, "rounds": 3,
        "ratio": {"median": median, "p10": median, "p90": median}, "peak_mib": 100.0, "imported_mib": 90.0,
    }  # fmt: skip


def record(results: list[dict[str, object]]) -> dict[str, object]:
    return {
        "command": "python bench/compare.py", "cpu": "a processor", "device": "cpu", "cuda": None, "dirty": False,
        "git": "0" * 40, "date": "2030-01-01T00:00:00", "settings": {"threads": 2, "rounds": 3}, "absent": {"B": "why"},
        "problems": results, "traps": [], "versions": {"A": {"a": "1.0"}},
    }  # fmt: skip


@pytest.fixture
def result() -> dict[str, object]:
    rows = [timed(OURS, 1.0), timed("A", 0.5), timed("B", 2.0), timed("C", 0.1, reached=False)]
    return {"name": "p", "rtol": 1e-5, "restart": 20, "max_iters": 400, "text": "why", "rows": rows}


def test_lost_rows_are_shown_and_explained(result: dict[str, object]) -> None:
    assert [row["contender"] for row in tables.lost(result)] == ["A"]  # C is fast and wrong
    document = tables.markdown(record([result]), {})
    assert "fastest on 0 of 1" in document
    assert "**0.5×**" in document
    assert "(0.1×)" in document
    assert "faster: not explained yet" in document
    explained = tables.markdown(record([result]), {"p": {"A": "it compiles the operator"}})
    assert "faster: it compiles the operator" in explained
    assert "not explained yet" not in explained
    assert "never meets the tolerance" in explained


def test_tables_have_equal_rows(result: dict[str, object]) -> None:
    trap = {**result, "rows": [timed(OURS, 1.0), {"contender": "A", "error": "ValueError: a | b"}]}
    document = tables.markdown(record([result]) | {"traps": [trap]}, {})
    widths: list[int] = []
    for line in document.splitlines():
        if line.startswith("|"):
            widths.append(line.replace("\\|", "").count("|"))
        else:
            assert len(set(widths)) <= 1
            widths = []
    assert "raises ValueError" in document


def test_command_line(tmp_path: Path, result: dict[str, object]) -> None:
    stored, document = tmp_path / "run.json", tmp_path / "run.md"
    stored.write_text(json.dumps(record([result])))

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(BENCH / "compare.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert call("--render", str(stored), "--markdown", str(document)).returncode == 0
    assert document.read_text().startswith("`python bench/compare.py` on a processor, 2 threads")
    bad = call("--render", str(tmp_path / "none.json"))
    assert (bad.returncode, "does not exist" in bad.stderr) == (2, True)
    assert call("--threads", "0").returncode == 2


def test_iterations_told() -> None:
    assert tables._iterations({"iterations": None}) == "not told"
    assert tables._iterations({"iterations": {"mean": 20, "max": 20}}) == "20"
    assert tables._iterations({"iterations": {"mean": 8.12, "max": 9}}) == "8.1 (9)"
