"""The measured pairs of the CUDA part: that the measurement runs, and what becomes of its numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "bench" / "gpu_decisions.py").exists():
    pytest.skip("bench/ is not beside the tests", allow_module_level=True)


@pytest.fixture(autouse=True)
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))


@pytest.fixture
def decisions(simt_alone):
    import gpu_decisions

    return gpu_decisions


def test_every_variant_is_measured_and_the_planned_one_named(decisions):
    rows = decisions.steps([(2, 60, 3)], torch.device("cpu"), "simt", 1)
    plain = [row for row in rows if row["dtype"] == row["basis_dtype"]]
    assert {row["variant"] for row in plain} == set(range(12))
    assert {row["variant"] for row in rows if row["basis_dtype"] == "float16"} == set(range(6))
    assert {row["blocks"] for row in plain if row["variant"] in (5, 6, 10)} == {2, 4, 8, 16}
    planned = [(row["dtype"], row["basis_dtype"]) for row in rows if row["planned"]]
    assert planned == [("float32", "float32"), ("float32", "float16"), ("float64", "float64")]
    assert all(row["us"]["p10"] <= row["us"]["median"] <= row["us"]["p90"] for row in rows)
    assert {row["bytes"] for row in rows} == {2 * 60 * 4 * 6, 2 * 60 * (2 * 4 + 4 * 2), 2 * 60 * 8 * 6}


def test_a_forced_variant_takes_the_same_step(decisions, simt):
    found = decisions.variants_for((2, 60, 3), (torch.float64, torch.float64), torch.device("cpu"), "simt")
    results = []
    for name, step in found.items():
        simt.cuda.force_variant(*map(int, name.split("x")))
        step.fused()
        results.append(step.engine.arrays["basis"][:, 3].clone())
    assert len(results) == 9 + 3 * 4
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-12, atol=1e-12)


def document(*rows, sm="9.0"):
    columns = ("dtype", "n", "B", "k", "variant", "blocks", "us")
    made = [dict(zip(columns, row, strict=True)) | {"decision": "step", "basis_dtype": row[0]} for row in rows]
    for row in made:
        row["us"] = {"median": row["us"]}
    return {"machine": {"cuda": {"sm": sm, "name": f"GPU {sm}"}}, "rows": [*made, {"decision": "graph"}]}


def test_the_fastest_over_all_lengths_is_chosen():
    from choose_variants import choices

    found = choices([
        document(
            ("float32", 784, 1, 5, 1, 0, 2.0), ("float32", 784, 1, 20, 1, 0, 8.0),
            ("float32", 784, 1, 5, 5, 4, 3.0), ("float32", 784, 1, 20, 5, 4, 4.0),
            ("float32", 784, 1, 20, 7, 0, 1.0),  # not measured at all lengths
            ("float32", 784, 64, 20, 1, 0, 5.0),
        ),
        document(("float64", 3072, 8, 20, 7, 0, 1.0), sm="12.0"),
    ])  # fmt: skip
    assert found == [
        (90, "float32", "float32", 784, 1, 5, 4),
        (90, "float32", "float32", 784, 64, 1, 1),
        (120, "float64", "float64", 3072, 8, 7, 1),
    ]


def test_the_header_holds_the_rows_and_compiles_into_the_plan(simt):
    from choose_variants import TARGET, render

    text = render([document(("float32", 784, 1, 20, 5, 4, 3.0))])
    assert "{90, kFloat32, kFloat32, 784, 1, 5, 4}" in text
    assert "std::array<Choice, 1>" in text
    assert "Measured on GPU 9.0." in text
    results = sorted((ROOT / "bench" / "results").glob("decisions_*.json"))
    assert TARGET.read_text() == render([json.loads(path.read_text()) for path in results])


def test_the_variants_of_the_plan_are_those_that_are_measured(decisions):
    plan = (ROOT / "csrc" / "cuda" / "plan.h").read_text()
    for ratio, name in ((1, "kVariants"), (2, "kHalfVariants")):
        table = re.search(name + r"\[\] = \{(.*?)\n\};", plan, re.DOTALL).group(1)
        found = re.findall(r"\{(\d+), (\d+), (\d+), \d+, (true|false), (true|false)\}", table)
        made = [(int(t), int(c), int(p), clusters == "true", ring == "true") for t, c, p, clusters, ring in found]
        assert made == [tuple(variant) for variant in decisions.VARIANTS[ratio]]


def test_steps_make_pairs():
    from reporting.decisions import pairs

    base = {"dtype": "float32", "basis_dtype": "float32"}
    times = {(2, 0): 5.0, (7, 0): 4.0, (8, 0): 3.0, (3, 0): 6.0, (6, 2): 7.0, (6, 4): 9.0, (10, 2): 8.0, (11, 0): 10.0}
    rows = [base | {"variant": v, "blocks": b, "us": {"median": us}} for (v, b), us in times.items()]
    found = {(what, a["variant"], a["blocks"], c["variant"], c["blocks"]) for what, a, c in pairs(rows)}
    assert found == {
        ("loads or a ring", 2, 0, 7, 0), ("loads or a ring", 6, 2, 10, 2), ("panels of 4 or 8 rows", 7, 0, 8, 0),
        ("split-n or a cluster", 11, 0, 6, 2), ("split-n or a block", 11, 0, 8, 0),
    }  # fmt: skip
