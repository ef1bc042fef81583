"""bench/scale.py: its systems, its shards, its memory guard, and both ways to run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli_harness import process

BENCH = Path(__file__).resolve().parent.parent / "bench"
if not (BENCH / "scale.py").exists():
    pytest.skip("bench/ is not beside the tests", allow_module_level=True)
sys.path.insert(0, str(BENCH))

from scaling import curves, model, ranks  # noqa: E402
from scaling.memory import Guard  # noqa: E402
from scaling.systems import Shape, Systems  # noqa: E402

from soae_ext.gmres import Status, Workspace  # noqa: E402

CPU = torch.device("cpu")
SCRIPT = str(BENCH / "scale.py")


def scale(folder: Path, *words: str, program: tuple[str, ...] = (SCRIPT,)) -> dict[str, Any]:
    output = folder / "scale.json"
    started = process("--quick", "--device", "cpu", "--repeats", "2", "--output", str(output), *words, program=program)
    _, err = started.communicate(timeout=300)
    assert started.returncode == 0, err
    return json.loads(output.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_systems_have_the_spectrum_that_they_say() -> None:
    systems = Systems(Shape(2, 48, 5), CPU)
    systems.product = torch.empty(2, 48)
    systems.corner = systems.product[:, :24]
    matrices = torch.stack([systems(unit.expand(2, -1)).clone() for unit in torch.eye(48)], dim=2)
    torch.testing.assert_close(matrices, matrices.mT)
    for matrix, diagonal in zip(matrices, systems.diagonal, strict=True):
        expected = torch.cat([diagonal[24:], torch.ones(23), torch.tensor([2.0])]).sort().values
        torch.testing.assert_close(torch.linalg.eigvalsh(matrix), expected, atol=1e-5, rtol=1e-5)
    x = torch.randn(2, 48)
    residual = systems.b.double() - (matrices.double() @ x.double()[:, :, None])[:, :, 0]
    expected = residual.norm(dim=1) / systems.b.double().norm(dim=1)
    torch.testing.assert_close(systems.relative_residuals(x), expected, atol=1e-6, rtol=1e-6)


def test_a_solver_that_tells_another_residual_ends_the_run() -> None:
    systems = Systems(Shape(3, 64, 4), CPU)
    result = systems.solve(Workspace())
    assert systems.confirm(result)["max"] > 0
    result.x[1] *= 1.5
    with pytest.raises(SystemExit, match="not those of its x"):
        systems.confirm(result)


def test_half_of_the_systems_meet_the_tolerance_of_the_check() -> None:
    """So verdicts of both kinds are compared between the shards and the whole."""
    status = Systems(Shape(6, 256, 8), CPU, mixed=True).solve(Workspace(), rtol=ranks.TOLERANCE).status.tolist()
    assert status == 3 * [Status.CONVERGED, Status.MAX_ITERS]


@pytest.mark.parametrize(("total", "count"), [(6, 1), (6, 2), (7, 3), (2, 4), (0, 2)])
def test_shards_are_contiguous_and_complete(total: int, count: int) -> None:
    parts = [range(total)[ranks.part(total, rank, count)] for rank in range(count + 2)]
    assert [index for part in parts for index in part] == list(range(total))
    assert max(map(len, parts[:count])) - min(map(len, parts[:count])) <= 1
    assert all(len(part) == 0 for part in parts[count:])


def test_shards_are_rows_of_the_whole() -> None:
    shape = Shape(5, 64, 4)
    whole, shard = Systems(shape, CPU), Systems(shape, CPU, part=slice(2, 4))
    assert torch.equal(whole.b[2:4], shard.b)
    assert torch.equal(whole.diagonal[2:4], shard.diagonal)


def test_the_model_counts_what_the_design_says() -> None:
    """µs at 4.3 TB/s, from a table that was computed by hand."""
    for shape, element, reads, expected in (
        ((128, 3072, 20), 4, 1, 100), ((128, 3072, 20), 2, 1, 54), ((128, 784, 20), 4, 4, 84),
        ((1024, 3072, 250), 4, 1, 94_000),
    ):  # fmt: skip
        assert model.cycle_bytes(*shape, element, reads) / 4.3e6 == pytest.approx(expected, rel=0.02)
    assert model.basis_bytes(2, 33, 3) == 2 * 4 * 256
    assert model.step_bytes(64, 3072, 20) == 64 * 3072 * 4 * 23


def test_points_that_do_not_fit_are_named_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    curve = curves.Curve("B", ((Shape(1, 256, 4), None), (Shape(4096, 256, 4), None)))
    found = curves.measured(curve, CPU, Guard(2**20), repeats=2, least_seconds=1e-4)
    skipped, measured = found["points"]
    assert skipped["B"] == 4096
    assert "GiB may be used" in skipped["skipped"]
    assert measured["B"] == 1
    assert measured["seconds"]["median"] > 0
    assert "not measured: needs" in capsys.readouterr().out


def test_threads_go_up_to_all_cores() -> None:
    counts = curves.thread_counts()
    assert counts[0] == 1
    assert counts == sorted(set(counts))


def test_one_process_measures_every_curve(tmp_path: Path) -> None:
    record = scale(tmp_path, "--threads", "1")
    assert record["command"].startswith("python bench/scale.py --quick")
    assert str(tmp_path) not in record["command"]
    assert {"git", "cpu", "threads", "date"} <= record["machine"].keys()
    assert [curve["over"] for curve in record["curves"]] == ["n", "B", "m", "threads"]
    for point in (point for curve in record["curves"] for point in curve["points"]):
        for name in ("seconds", "systems_per_second", "operator_share"):
            assert point[name]["p10"] <= point[name]["median"] <= point[name]["p90"]
        assert 0 < point["true_residual"]["max"] < 1
        assert point["read_gbs"] > 0
        assert "fraction_of_bandwidth" not in point  # such small bases are in the cache


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    program = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SCRIPT)
    record = scale(tmp_path, program=program)
    assert record["command"].startswith("torchrun --nproc-per-node=2 bench/scale.py")
    assert record["world"] == 2
    assert [(row["mode"], row["ranks"], row["B"]) for row in record["rows"]] == [
        ("strong", 1, 6), ("strong", 2, 6), ("weak", 1, 3), ("weak", 2, 6),
    ]  # fmt: skip
    for row in record["rows"]:
        assert row["check"]["systems"] == row["B"]
        assert 0 < row["check"]["converged"] < row["B"]
        assert row["check"]["largest_residual_difference"] < 1e-3
        assert row["speedup"]["p10"] <= row["speedup"]["median"] <= row["speedup"]["p90"]


def test_shards_that_differ_from_the_whole_are_found() -> None:
    whole = [(0, 8, 1e-3), (1, 8, 0.5), (0, 7, 2e-3)]
    assert ranks.differing([(0, 8, 1.001e-3), (1, 8, 0.5), (0, 6, 6e-3)], whole) == []
    assert ranks.differing([(1, 8, 1e-3), (1, 8, 0.52), (0, 9, 2e-3)], whole) == [0, 1, 2]
    assert ranks.differing([(0, 7, 0.2), *whole[1:]], whole) == [0]
    assert ranks.differing([(0, 8, float("nan")), *whole[1:]], whole) == [0]
    assert ranks.differing(whole[:2], whole) == [0, 1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--only", "n,q"), "--only: no curve q"),
        (("--threads", "0"), "--threads must be at least 1"),
        (("--memory", "nan"), "--memory must be more than 0"),
    ],
)
def test_bad_options_are_one_line_and_status_2(words: tuple[str, ...], message: str) -> None:
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
