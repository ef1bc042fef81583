"""Tables, claims and studies of `soae reproduce`, from cells written by hand."""

import copy
import json
from pathlib import Path

import pytest
import torch
from scipy.stats import norm

from soae_ext.data import ImageData
from soae_ext.reproduce.budgets import make_table
from soae_ext.reproduce.claims import claims, pooled_difference
from soae_ext.reproduce.dimensions import THRESHOLDS, krylov_dimensions
from soae_ext.reproduce.document import compose
from soae_ext.reproduce.folder import Folder
from soae_ext.reproduce.plans import TABLES
from soae_ext.reproduce.render import html, markdown
from soae_ext.reproduce.studies import Overfitting, equal_gradients, findings, overfitting
from soae_ext.reproduce.tables import NOT_MEASURED, accuracy_text, sections
from tests.cli_harness import refuse
from tests.reproduce_cases import cell

FACTS = {"command": "soae reproduce", "date": "2000-01-01", "budget": "cpu", "scale": 1.0}
FACTS |= {"hardware": {}, "versions": {}, "git": {}, "config": {}}


def wilson(correct, n):
    """Wilson's interval by its textbook formula (1927)."""
    z, p = norm.ppf(0.975), correct / n
    middle, half = p + z * z / 2 / n, z * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def document(*tables, **rows):
    """A document of Table 1 with rows of cells by column, and whatever other tables."""
    found = [{"name": name, "objective": "X", "epochs": 1, "seeds": [0], "training": None, "cells": cells, "paper": {}}
             for name, cells in rows.items()]  # fmt: skip
    block = {"key": "k", "title": "T", "rows": found, "columns": [], "attacks": {}, "images": {}, "eps": 0.1}
    return {**FACTS, "tables": [{"name": "1", "title": "Table", "notes": [], "blocks": [block]}, *tables]}


def empty(name="equal-gradients"):
    return compose([make_table(name, "cpu")], Folder(Path("nowhere")), FACTS, [])


def verdict(doc, text):
    (found,) = (claim for claim in claims(doc) if text in claim.text)
    return found


def test_a_cell_shows_mean_interval_spread_and_the_paper():
    low, high = wilson(4, 10)
    text = accuracy_text([cell("1111000000")], 0.491)
    assert text == f"40.0 % ({100 * low:.1f} to {100 * high:.1f}); paper 49.10 %"
    low, high = wilson(5, 10)
    text = accuracy_text([cell("1111000000"), None, cell("1111110000")], None)
    assert text == f"50.0 % ({100 * low:.1f} to {100 * high:.1f}), 2 seeds 40.0 to 60.0"
    assert accuracy_text([None, None], 0.491) == "not measured; paper 49.10 %"
    assert accuracy_text([], None) == NOT_MEASURED


def test_a_difference_is_paired_on_the_common_images_of_common_seeds():
    first, second = [cell("1" * 20), cell("1" * 10)], [cell("0" * 8 + "1" * 2), None]
    difference, low, high = pooled_difference(first, second)
    # Agresti and Min: 8 pairs favour the first, none the second, half a pair added to each of four cells.
    plus, minus, n = 8.5, 0.5, 12.0
    half = norm.ppf(0.975) * (plus + minus - (plus - minus) ** 2 / n) ** 0.5 / n
    assert (difference, low, high) == pytest.approx((0.8, (plus - minus) / n - half, (plus - minus) / n + half))
    assert pooled_difference([None], [cell("1")]) is None
    both = pooled_difference([cell("11"), cell("1100")], [cell("01"), cell("1000")])
    assert both[0] == pytest.approx(2 / 6)


def test_a_claim_holds_fails_or_is_left_open_by_its_intervals():
    strong, weak, middle = "0" * 90 + "1" * 10, "1" * 100, "1" * 11 + "0" * 80 + "1" * 9
    text = "less accuracy than PGD with 20 steps on adversarially trained networks (section IV-B): SOAE, best"

    def judged(*pairs):
        rows = {f"R{k}": {"SOAE, best": [cell(a)], "PGD-20": [cell(b)]} for k, (a, b) in enumerate(pairs)}
        return verdict(document(**rows), text).verdict

    assert judged((strong, weak)) == "holds"
    assert judged((strong, weak), (weak, strong)) == "does not hold"
    assert judged((strong, weak), (strong, strong)) == "undecided"
    assert judged((middle, strong)) == "does not hold" or judged((middle, strong)) == "undecided"
    assert verdict(document(STD={"SOAE, best": [cell(strong)], "PGD-20": [cell(weak)]}), text).verdict == NOT_MEASURED


def test_soar_is_left_out_where_the_paper_leaves_it_out():
    pair = {"SOAE, best": [cell("1" * 50)], "AutoAttack": [cell("0" * 50)]}
    assert verdict(document(SOAR=pair), "but on SOAR (section IV-B): SOAE, best").verdict == NOT_MEASURED
    assert verdict(document(PGD=pair), "but on SOAR (section IV-B): SOAE, best").verdict == "does not hold"


def test_the_defence_claim_compares_soat_with_the_other_rows():
    rows = {"PGD": {"AutoAttack": [cell("0" * 40 + "1" * 10)]}, "SOAT": {"AutoAttack": [cell("1" * 50)]}}
    found = verdict(document(**rows), "PGD training under AutoAttack")
    assert found.verdict == "holds"
    assert "PGD minus SOAT -80.0 points" in found.evidence[0]
    rows["TRADES"] = {"AutoAttack": [cell("1" * 50)]}
    assert verdict(document(**rows), "state of the art").verdict == "undecided"


def test_a_constant_network_says_nothing_about_attacks_and_defences():
    collapsed = "1" * 7 + "0" * 43
    pair = {"clean": [cell(collapsed)], "SOAE, best": [cell(collapsed)], "AutoAttack": [cell(collapsed[:20])]}
    working = {"clean": [cell("1" * 50)], "SOAE, best": [cell("0" * 50)], "AutoAttack": [cell("0" * 45 + "1" * 5)]}
    doc = document(SCORPIO=pair, SOAT=working)
    assert verdict(doc, "but on SOAR (section IV-B): SOAE, best").verdict == "holds"
    assert verdict(document(SCORPIO=pair), "but on SOAR (section IV-B): SOAE, best").verdict == NOT_MEASURED
    assert verdict(doc, "state of the art").verdict == NOT_MEASURED
    (line,) = findings(doc)
    assert "T: SCORPIO ended at a network that gives one class to every image" in line
    for changed in ({"SOAE, best": [cell(collapsed[:-1] + "1")]}, {"clean": [cell("1" * 50)]}, {"clean": [None]}):
        assert findings(document(SCORPIO=pair | changed)) == []


def table_4(largest, reached=5, paper=17):
    """Table 4 with one network, whose systems need `largest` dimensions at most, if they get there."""
    end = {"largest": largest, "mean": 2.0, "reached": reached, "systems": 5}
    entry = {"cap": 40, "thresholds": [{"threshold": threshold, **end} for threshold in THRESHOLDS]}
    row = {"name": "STD", "seeds": [0], "training": None, "cells": {}}
    row["dimensions"] = {"thresholds": list(THRESHOLDS), "one image, exact products": entry}
    block = {"key": "k", "title": "T", "rows": [row], "paper_dimensions": [2196, 1324, 746, 327, paper]}
    return {"name": "4", "title": "Table IV", "notes": [], "blocks": [block]}


def test_the_claim_about_dimensions():
    text = "as large as in Table IV, at some threshold of 1e-5 to 1e-1: one image, exact products"
    assert verdict(document(table_4(9)), text).verdict == "does not hold"
    assert verdict(document(table_4(17)), text).verdict == "holds"
    assert verdict(document(table_4(9, reached=4)), text).verdict == "holds"  # more than 40
    assert verdict(document(table_4(9, reached=4, paper=221)), text).verdict == "undecided"
    assert verdict(document(), text).verdict == NOT_MEASURED
    doc = {**FACTS, "tables": [table_4(9, reached=4)], "left": [], "doubts": [], "claims": []}
    text = markdown(sections(doc))
    assert "| STD, one image, exact products | 2.0 (9, 4 of 5 within 40) |" in text
    assert "| the paper | 2196 | 1324 | 746 | 327 | 17 |" in text


def test_the_claim_about_picture_quality():
    def judged(psnr):
        cells = {"FGSM": [cell("01", psnr=10.0, ssim=0.5)], "SOAE, best": [cell("00", psnr=psnr, ssim=0.6)]}
        row = {"name": "STD", "seeds": [0], "training": None, "cells": cells, "dimensions": None}
        extra = {"name": "5", "title": "", "notes": [], "blocks": [{"key": "k", "title": "T", "rows": [row]}]}
        return verdict(document(extra), "Table V): SOAE, best")

    assert judged(11.0).verdict == "holds"
    assert judged(9.0).verdict == "does not hold"
    assert "SOAE, best 9.0 dB, 0.60 (0.0 % left)" in judged(9.0).evidence[0]


def fill(doc, place, cells):
    """Put cells into the study, by the name of the row."""
    for row in doc["tables"][0]["blocks"][place]["rows"]:
        if row["name"] in cells:
            row["cells"]["APGD-100"] = cells[row["name"]]
    return doc


def test_the_study_of_equal_gradients():
    control, default = "the same schedule, no curvature", "SOAT, default (one Frank-Wolfe step)"
    doc = fill(empty(), 1, {
        "PGD": [cell("1" * 30 + "0" * 70), cell("1" * 30 + "0" * 70)],
        control: [cell("1" * 50 + "0" * 50), None],
        default: [cell("1" * 50 + "0" * 50), cell("1" * 60 + "0" * 40)],
    })  # fmt: skip
    rows = {row.name: row for row in equal_gradients(doc["tables"][0]["blocks"][1])}
    assert rows[default].accuracy == pytest.approx(0.55)
    assert rows[default].against_pgd[0] == pytest.approx(0.25)
    assert rows[default].against_control[0] == 0  # over the one seed that both have
    assert rows["PGD"].against_pgd is None
    assert rows["SOAT, one trust-region step"].accuracy is None
    lines = findings(doc)
    assert len(lines) == 2
    assert f"{default} +25.0 points" in lines[0]
    assert f"{default} trains best, 55.0 %; PGD 30.0 %, {control} 50.0 %" in lines[1]
    assert findings(empty()) == []


def test_catastrophic_overfitting_is_pgd_gone_while_fgsm_stays():
    assert Overfitting("x", 0, (0.3, 0.4, 0.1), (0.4, 0.5, 0.8)).collapsed
    assert not Overfitting("x", 0, (0.3, 0.4, 0.3), (0.4, 0.5, 0.8)).collapsed
    assert not Overfitting("x", 0, (0.3, 0.4, 0.1), (0.4, 0.5, 0.15)).collapsed  # all of it is gone
    doc = empty("single-step")
    row = doc["tables"][0]["blocks"][1]["rows"][0]
    epochs = [{"epoch": k + 1, "robust_accuracy": share} for k, share in enumerate((0.3, 0.05))]
    row["training"] = [{"epochs": epochs, "probe": {"1": 0.4, "2": 0.9}, "gradients_per_image": 2.0, "seconds": 6.0}]
    (run,) = overfitting(doc["tables"][0]["blocks"][1])
    assert (run.pgd, run.fgsm) == ((0.3, 0.05), (0.4, 0.9))
    (line,) = findings(doc)
    assert "30.0 % at best and 5.0 % at the end, FGSM accuracy 90.0 % at the end: catastrophic overfitting" in line
    assert "30.0 / 40.0 | 5.0 / 90.0" in markdown(sections(doc))


@pytest.mark.parametrize("budget", ["cpu", "gpu", "paper"])
def test_a_document_without_cells_says_so_everywhere(budget, tmp_path):
    doc = compose([make_table(name, budget) for name in TABLES], Folder(tmp_path / "none"), FACTS, [])
    json.loads(json.dumps(doc, allow_nan=False), parse_constant=refuse)
    assert {claim["verdict"] for claim in doc["claims"]} == {NOT_MEASURED}
    shown = sections(doc)
    for text in (markdown(shown), str(html(shown))):
        for number in ("49.10 %", "45.98 %", "47.90 %"):
            assert f"not measured; paper {number}" in text
        assert "implausible" in text
        assert "87.95 %" in text
        assert "rehearsal" not in text
    table_rows = [line for line in markdown(shown).splitlines() if line.startswith("| SOAT |")]
    assert table_rows
    assert all(row.count(NOT_MEASURED) >= 5 for row in table_rows)
    assert "rehearsal at scale 0.5" in markdown(sections({**doc, "scale": 0.5}))


def test_names_are_escaped_in_html():
    doc = empty()
    doc["tables"][0]["title"] = "<script>alert(1)</script> & `code`"
    page = html(sections(doc))
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; `code`" in page
    assert "<code>soae reproduce</code>" in page


def by_least_squares(H, g, threshold):
    """The first m for which min |g - H V y| <= threshold |g| over a basis V of the Krylov space, in float64."""
    V = [g / g.norm()]
    for m in range(1, len(g) + 1):
        basis = torch.stack(V, 1)
        y = torch.linalg.lstsq(H @ basis, g[:, None], driver="gelsd").solution
        if (g - (H @ basis @ y)[:, 0]).norm() <= threshold * g.norm():
            return m
        w = H @ V[-1]
        for _ in range(2):
            w = w - basis @ (basis.T @ w)
        V.append(w / w.norm())
    raise AssertionError("the space is exhausted")


def test_krylov_dimensions_are_those_of_dense_hessians():
    torch.manual_seed(0)
    layers = (torch.nn.Flatten(), torch.nn.Linear(16, 12), torch.nn.Softplus(), torch.nn.Linear(12, 5))
    model = torch.nn.Sequential(*layers).eval()
    for parameter in model.parameters():
        parameter.data *= 2
    images = ImageData(torch.rand(6, 1, 4, 4), torch.arange(6) % 5, "noise")
    found = krylov_dimensions(model, images, torch.device("cpu"))

    exact = copy.deepcopy(model).double()
    hessians, gradients = [], []
    for x, y in zip(images.images.double(), images.labels, strict=True):

        def loss(flat, y=y):
            return torch.nn.functional.cross_entropy(exact(flat.view(1, 1, 4, 4)), y[None])

        hessians.append(torch.autograd.functional.hessian(loss, x.flatten()))
        gradients.append(torch.autograd.functional.jacobian(loss, x.flatten()))
    whole = torch.block_diag(*hessians), torch.cat(gradients)
    for place in (2, 3, 4):  # 1e-3 to 1e-1: below that single precision decides
        m = [by_least_squares(H, g, THRESHOLDS[place]) for H, g in zip(hessians, gradients, strict=True)]
        entry = found["one image, exact products"]["thresholds"][place]
        assert (entry["largest"], entry["reached"], entry["mean"]) == (max(m), 6, pytest.approx(sum(m) / 6))
    joined = found["the images as one system, exact products"]["thresholds"][4]
    assert (joined["systems"], joined["largest"]) == (1, by_least_squares(*whole, THRESHOLDS[4]))
    alone = [by_least_squares(H, g, 1e-1) for H, g in zip(hessians, gradients, strict=True)]
    assert joined["largest"] > max(alone)
