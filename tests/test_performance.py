"""bench/performance.py: the document from results that are there, missing, partial or broken, and the targets."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
if not (BENCH / "targets.json").exists():
    pytest.skip("bench/ with its JSON files is not beside the tests", allow_module_level=True)
sys.path.insert(0, str(BENCH))

import performance  # noqa: E402
from reporting import gmres, records, targets  # noqa: E402
from reporting.records import Results  # noqa: E402

MACHINE = {
    "date": "2030-01-02T00:00:00", "git": "abcdef0123456789", "dirty": False, "cpu": "a processor", "cores": 8,
    "threads": 2, "torch": "2.13.0", "cuda": None,
}  # fmt: skip
GPU = MACHINE | {"cuda": {"name": "a GPU"}}


def spread(value: float) -> dict[str, float]:
    return {"median": value, "p10": 0.9 * value, "p90": 1.1 * value}


def step(device: str, B: int, n: int, k: int, us: float, ratio: float, **more: Any) -> dict[str, Any]:
    return {
        "level": "step", "device": device, "B": B, "n": n, "k": k, "dtype": "float32", "ours": "fused",
        "baseline": "smart", "us": {"fused": spread(us), "smart": spread(ratio * us)}, "ratio": spread(ratio),
        "comparable": True, "bytes": 4 * B * n * (k + 3), "fraction_of_bandwidth": spread(0.8),
    } | more  # fmt: skip


def write(folder: Path, name: str, record: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(record))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of every kind; what the GPU measured lies under both endings."""
    results = tmp_path / "results"
    results.mkdir()
    command = {"command": "python bench/x.py --output bench/results/x.json", "machine": MACHINE}
    cpu = [step("cpu", 64, 3072, 100, 1000.0, 4.5), step("cpu", 1, 784, 20, 3.0, 2.5)]
    write(results, "gmres_cpu", MACHINE | {"rows": cpu, "cpu_ceilings": {"read_gbs": 50.0, "copy_gbs": 40.0}})
    graphs = {"fused graph": spread(5.0), "smart graph": spread(20.0), "fused": spread(9.0), "smart": spread(60.0)}
    gpu = [step("cuda", 1, 784, 20, 9.0, 6.0) | {"us": graphs}, step("cuda", 1024, 3072, 20, 60.0, 4.0)]
    ceilings = {"copy_gbs": 4000.0, "read_gbs": 4100.0, "eager_op_us": 4.0, "graph_node_us": 1.5}
    write(results, "gmres_cuda", GPU | {"rows": gpu, "cuda_ceilings": ceilings})
    point = {
        "B": 128, "n": 3072, "m": 20, "threads": 2, "seconds": spread(2e-4), "operator_share": spread(0.1),
        "systems_per_second": spread(6e5), "solver_seconds": spread(1.8e-4), "basis_read_gbs": spread(2000.0),
        "fraction_of_bandwidth": spread(0.5), "true_residual": {"median": 0.1, "max": 0.5},
    }  # fmt: skip
    skipped = {"B": 4096, "n": 3072, "m": 20, "threads": 2, "skipped": "not measured: needs 9.00 GiB"}
    scaled = [{"over": over, "points": [point, point | {over: 256}, skipped]} for over in ("n", "B", "m", "threads")]
    write(results, "scale_cpu", command | {"device": "cpu", "curves": scaled, "ceilings": {"read_gbs": 50.0}})
    write(results, "scale_gpu", command | {"machine": GPU, "device": "cuda", "curves": scaled[:1]})
    rank = {"mode": "strong", "B": 64, "n": 784, "m": 20, "systems_per_rank": 64, "check": {"systems": 64}}
    rank |= {"seconds": spread(1e-3), "systems_per_second": spread(6e4), "speedup": spread(1), "efficiency": spread(1)}
    write(
        results, "scale_ranks_cpu",
        command | {"threads_per_rank": 1, "rows": [rank | {"ranks": 1}, rank | {"ranks": 2, "mode": "weak"}]},
    )  # fmt: skip
    case = {"name": "small CNN, digits", "ours": {"seconds": spread(1.0)}, "ratio": spread(7.5), "target": 6.0}
    gain = {"name": "warm start", "what": "4 steps", "ratio": spread(1.1), "gradients": {"with": 8, "without": 9.5}}
    write(results, "attack_end_to_end_cpu", command | {"cases": [case, {"name": "ResNet-18"}, {}], "gains": [gain]})
    attack = {"case": "small CNN", "attack": "FGSM", "ms": spread(3.0), "fooled": 0.25}
    rows = [attack | {"library": name, "ratio": spread(r)} for name, r in (("soae_ext", 1.0), ("foolbox", 0.9))]
    write(results, "attacks_cpu", command | {"rows": rows, "versions": {"foolbox": "3.3"}})
    compared = {"device": "cpu", "settings": {"threads": 2, "rounds": 3}, "problems": [], "traps": [], "versions": {}}
    write(results, "compare_cpu", MACHINE | compared | {"command": "python bench/compare.py", "absent": {}})
    return results


def render(folder: Path) -> str:
    return performance.document(Results(folder), targets.load(BENCH / "targets.json"))[0]


def verdict(folder: Path, **changes: Any) -> targets.Verdict:
    made = {
        "name": "t", "file": "gmres", "device": "cpu", "rows": "rows", "value": "ratio.median", "unit": "×",
        "at_least": 2.0,
    } | changes  # fmt: skip
    return targets.judge(targets.Target(**made), Results(folder))


def section(document: str, title: str) -> str:
    return document.split(f"\n{title}\n", 1)[1].split("\n## ", 1)[0]


def test_everything_is_told_with_its_command_commit_date_hardware_and_threads(folder: Path) -> None:
    document = render(folder)
    end_to_end = section(document, "## SOAE end to end, beside the paper's way")
    told = "`python bench/x.py --output bench/results/x.json`, commit abcdef0123, 2030-01-02; a processor, 8 cores; "
    assert told in end_to_end
    assert "threads: 2" in end_to_end
    assert "7.5× (6.75–8.25)" in end_to_end
    assert "| ResNet-18 | – | – | – |" in end_to_end  # what a file does not hold is a dash
    assert "its options were not recorded" in section(document, "## One step and one solve")
    scaling = section(document, "## Scaling")
    assert "not measured: needs 9.00 GiB" in scaling
    assert "threads: 1 a rank" in scaling
    assert "a GPU" in section(document, "## One step and one solve")
    assert "`python bench/compare.py` on a processor, 2 threads" in section(document, "## GMRES of other libraries")


def test_nothing_is_said_to_be_measured_where_nothing_is(tmp_path: Path) -> None:
    document = render(tmp_path)
    assert "| met |" not in document
    assert "**missed**" not in document
    for title in ("## One step and one solve", "## Scaling", "## Hessian-vector products", "## Training",
                  "## SOAE end to end, beside the paper's way", "## FGSM and PGD beside other libraries",
                  "## GMRES of other libraries"):  # fmt: skip
        assert section(document, title).count("**Not measured.**") >= 2, title
    assert document.count("| not measured |") == len(gmres.CYCLES) + len(targets.load(BENCH / "targets.json"))
    assert "model: 4,300 GB/s" not in document
    assert "The columns *model* are computed, not measured" in document
    assert "no GPU was measured: the line is a model" in document


def test_the_model_stands_beside_the_measurement(folder: Path) -> None:
    """1.8e-4 s of solver for 128 systems of order 3,072 and restart 20; the model at the measured 4,000 GB/s."""
    (row,) = re.findall(r"\| 128 \| 3,072 \| 20 \|.*", section(render(folder), "## One step and one solve"))
    assert "| 107 µs | 57.8 µs |" in row
    assert row.endswith("| 180 µs (162–198) |")


def test_bandwidth_of_a_basis_in_the_cache_is_not_shown(folder: Path) -> None:
    rows = re.findall(r"\| step \|.*", section(render(folder), "### CPU"))
    assert "80 % (72–88)" in rows[0]
    assert "80 %" not in rows[1]


@pytest.mark.parametrize(
    ("changes", "state", "count", "missing"),
    [
        ({}, "met", 2, 0),
        ({"at_least": 3.0}, "missed", 2, 1),
        ({"at_least": 3.0, "least": {"B": 16}}, "met", 1, 0),
        ({"at_least": 3.0, "below": {"B": 64}}, "missed", 1, 1),
        ({"at_least": 2.5, "most": {"B": 1}}, "met", 1, 0),
        ({"at_least": 5.0, "equals": {"B": 3}}, "not measured", 0, 0),
        ({"at_least": 5.0, "equals": {"nothing": None}}, "missed", 2, 2),
        ({"at_least": 5.0, "contains": {"baseline": ["text"]}}, "not measured", 0, 0),
        ({"at_least": 5.0, "lacks": {"baseline": ["sma"]}}, "not measured", 0, 0),
        ({"value": "no.such"}, "not measured", 0, 0),
        ({"rows": "none"}, "not measured", 0, 0),
        ({"file": "none"}, "not measured", 0, 0),
        ({"least": {"basis_bytes": 64e6}}, "met", 1, 0),
        ({"value": "us.fused.median", "at_least": None, "at_most": 1000.0, "unit": "µs"}, "met", 2, 0),
        ({"value": "us.fused.median", "at_least": None, "at_most": 999.0, "unit": "µs"}, "missed", 2, 1),
        ({"device": "gpu", "value": "over_graphed_cgs2", "at_least": 4.0}, "met", 1, 0),
        ({"device": "gpu", "value": "graphed_us", "at_least": None, "at_most": 8.0}, "met", 1, 0),
    ],
)
def test_a_target_is_met_missed_or_not_measured(
    changes: dict[str, Any], state: str, count: int, missing: int, folder: Path
) -> None:
    found = verdict(folder, **changes)
    assert (found.state, found.count, found.missing) == (state, count, missing)


def test_the_share_of_the_copy_bandwidth_is_computed(folder: Path) -> None:
    found = verdict(folder, device="gpu", value="copy_fraction", unit="%", at_least=0.8, least={"B": 264})
    assert found.worst == pytest.approx(4 * 1024 * 3072 * 23 / 60e-6 / 4e12)


def test_the_worst_row_counts_whichever_way_is_worse(folder: Path) -> None:
    found = verdict(folder)
    assert (found.worst, found.best, found.where) == (2.5, 4.5, "B=1 n=784 k=20")
    found = verdict(folder, value="us.fused.median", at_least=None, at_most=1.0)
    assert (found.worst, found.best) == (1000.0, 3.0)


def test_a_missed_target_stands_beside_its_reason(folder: Path) -> None:
    goal = {
        "name": "fast", "file": "gmres", "device": "cpu", "rows": "rows", "value": "ratio.median", "unit": "×",
        "at_least": 9.0,
    }  # fmt: skip
    told = targets.section([targets.Target(**goal), targets.Target(**goal, reason="it is slow")], Results(folder))
    assert "| **missed** | not explained yet |" in told
    assert "| **missed** | it is slow |" in told
    assert "it is slow" not in targets.section([targets.Target(**goal | {"at_least": 1.0}, reason="it is slow")],
                                               Results(folder))  # fmt: skip


def test_targets_that_say_too_little_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "targets.json"
    for stored, message in (
        ({"name": "t", "speed": 1}, "speed"),
        ({"name": "t", "file": "f", "device": "cpu", "rows": "r", "value": "v", "unit": "×"}, "one of at_least"),
        ({"name": "t", "file": "f", "device": "cpu", "rows": "r", "value": "v", "unit": "km", "at_most": 1}, "km"),
    ):
        file.write_text(json.dumps([stored]))
        with pytest.raises(ValueError, match=message):
            targets.load(file)


def test_rows_of_the_comparison_know_their_problem(tmp_path: Path) -> None:
    problem = {"name": "p", "B": 64, "n": 3072, "restart": 100, "dtype": "float32"}
    rows = [{"contender": name, "reached_goal": True, "ratio": spread(r)} for name, r in (("Warp", 1.7), ("SciPy", 9))]
    write(tmp_path, "compare_gpu", MACHINE | {"problems": [problem | {"rows": rows}]})
    goals = {goal.name: goal for goal in targets.load(BENCH / "targets.json")}
    large = targets.judge(goals["GMRES of Warp and JAX, basis of at least 64 MB: time over ours"], Results(tmp_path))
    assert (large.state, large.count, large.where) == ("met", 1, "p Warp")
    small = targets.judge(goals["GMRES of Warp and JAX, smaller: time over ours"], Results(tmp_path))
    assert small.state == "not measured"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (12345.6, "12,346"), (0, "0"), (3e-7, "3.0e-07"), (None, "–"), (True, "–"), (2.0, "2")],
)
def test_numbers(value: object, text: str) -> None:
    assert records.number(value) == text


def test_check_notices_changed_results_and_missing_pictures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "docs" / "performance.md"
    words = ["--results", str(folder), "--output", str(output)]
    assert performance.main([*words, "--check"]) == 1
    assert not output.exists()
    assert performance.main(words) == 0
    assert performance.main([*words, "--check"]) == 0
    pictures = sorted(path.stem for path in (output.parent / "performance").iterdir())
    assert pictures == ["ranks_cpu", "roofline_cpu", "roofline_gpu", "scale_cpu", "scale_gpu"]
    (output.parent / "performance" / "scale_cpu.png").unlink()
    capsys.readouterr()
    assert performance.main([*words, "--check"]) == 1
    assert "scale_cpu.png is missing" in capsys.readouterr().err
    assert performance.main(words) == 0
    (folder / "scale_ranks_cpu.json").unlink()
    assert performance.main([*words, "--check"]) == 1
    assert "run python bench/performance.py" in capsys.readouterr().err
    assert performance.main(words) == 0
    assert not (output.parent / "performance" / "ranks_cpu.png").exists()


def test_a_broken_file_is_one_error(folder: Path, tmp_path: Path) -> None:
    (folder / "gmres_cpu.json").write_text("{")
    command = [sys.executable, str(BENCH / "performance.py"), "--results", str(folder)]
    done = subprocess.run([*command, "--output", str(tmp_path / "out.md")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "gmres_cpu.json" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out.md").exists()


def test_the_committed_document_is_what_the_committed_results_give() -> None:
    text = render(BENCH / "results")
    assert performance.stale(ROOT / "docs" / "performance.md", text) is None, "run python bench/performance.py"
    assert not re.search(r"[ `=]/[a-z]+/", text), "a recorded command has an absolute path"


def test_the_document_depends_on_nothing_but_the_results(folder: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert render(folder) == render(again)
