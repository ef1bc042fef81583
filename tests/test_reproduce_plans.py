"""The plans of `soae reproduce`, and the paper's numbers that its tables show."""

import json
from collections import Counter
from pathlib import Path

import pytest

import soae_ext
from soae_ext.attacks import SOAE, AutoAttack
from soae_ext.evaluation.variants import most_gradients
from soae_ext.models import needs_checkpoint
from soae_ext.reproduce import paper
from soae_ext.reproduce.budgets import make_table
from soae_ext.reproduce.folder import Folder, slug
from soae_ext.reproduce.jobs import Choice, jobs
from soae_ext.reproduce.plans import BUDGETS, TABLES, scaled
from tests.reproduce_cases import block, table

PAPER_ROWS = {"STD", "PGD", "TRADES", "SOAR", "STN", "SCORPIO", "SOAT"}
PAPER_COLUMNS = {"Clean", "FGSM", "PGD", "Auto", "ASOD", "SOAE"}
NAMELESS = "network (not named)"  # the paper does not say which one Table III is of
ALL = [(name, budget) for name in TABLES for budget in BUDGETS]


@pytest.mark.parametrize(("name", "budget"), ALL)
def test_every_spec_of_every_plan_can_be_used(name, budget):
    for part in make_table(name, budget).blocks:
        needs_checkpoint(part.model)
        for column in part.columns:
            part.attack(column)
        for row in part.rows:
            part.objective(row)
            for seed in row.seeds:
                assert part.recipe_of(row, seed).seed == seed


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", ["1", "2"])
def test_tables_1_and_2_have_the_papers_rows_and_columns(name, budget):
    for part in make_table(name, budget).blocks:
        assert {row.name for row in part.rows} >= PAPER_ROWS
        assert {column.paper for column in part.columns} - {None} == PAPER_COLUMNS
        modes = {part.attack(column).direction for column in part.columns if column.paper == "SOAE"}
        assert modes == {"paper", "ascent"}  # the sign of the derivation, the other one, and the budget's
        referees = [part.attack(column) for column in part.columns if column.paper == "Auto"]
        assert [(type(r), r.steps, r.n_queries, r.attacks) for r in referees] == [(AutoAttack, 100, 5000, None)]


def test_the_cpu_plan_is_what_was_asked_for():
    (mnist,), (cifar,) = make_table("1", "cpu").blocks, make_table("2", "cpu").blocks
    assert (mnist.use.test, mnist.eps, {column.images for column in mnist.columns}) == (500, 0.3, {None})
    assert (cifar.use.test, cifar.model, cifar.eps) == (200, "resnet18:width=8", 8 / 255)
    seeds = {row.name: len(row.seeds) for row in mnist.rows}
    assert [seeds[name] for name in ("STD", "PGD", "SOAT")] == [3, 3, 3]
    (sample,) = make_table("3", "cpu").blocks
    assert (sample.model, [(row.name, row.objective) for row in sample.rows]) == ("efficientnet-lite0", [("STD", None)])


def test_the_gpu_plan_trains_on_enough_images():
    (cifar,) = make_table("2", "gpu").blocks
    assert cifar.use.train - cifar.use.held_out >= 16667
    assert cifar.model == "resnet18"


@pytest.mark.parametrize("name", ["1", "2", "3"])
def test_the_papers_recipe(name):
    for part in make_table(name, "paper").blocks:
        recipe = part.recipe
        found = (recipe.epochs, recipe.batch_size, recipe.optimizer, recipe.momentum, recipe.lr, recipe.weight_decay)
        assert found == (300, 128, "sgd", 0.9, 0.1, 3e-4)
        assert part.use.train is None


@pytest.mark.parametrize("budget", ["cpu", "gpu"])
def test_pgd_and_soat_craft_with_as_many_gradients(budget):
    for name in ("1", "2"):
        for part in make_table(name, budget).blocks:
            costs = {row.name: part.objective(row).cost() for row in part.rows}
            assert costs["PGD"] == costs["SOAT"]


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_study_spends_no_more_than_its_budget(budget):
    for part, gradients in zip(make_table("equal-gradients", budget).blocks, (3, 7, 12), strict=True):
        costs = {row.name: part.objective(row).cost().crafting for row in part.rows}
        assert costs["PGD"] == gradients
        # A direction that solves in each step spends a multiple of 3.
        assert all(gradients - 3 < cost <= gradients for cost in costs.values())
        signs = {part.objective(row).attack.direction for row in part.rows if row.name.startswith("SOAT")}
        assert signs == {"ascent", "paper", "trust-region", "frank-wolfe"}


def test_single_step_rows_are_equal_in_gradients_where_they_say_so():
    for part in make_table("single-step", "cpu").blocks:
        total = {row.name: part.objective(row).cost().total * part.recipe_of(row, 0).epochs for row in part.rows}
        longer, product = total["FGSM, random start, 1.5 times the epochs"], total[part.rows[-1].name]
        assert longer == product == total["PGD-2"]
        assert total["FGSM, random start"] * 1.5 == longer


def test_the_best_mode_costs_what_its_rival_may():
    (mnist,) = make_table("1", "cpu").blocks
    attacks = {column.name: mnist.attack(column) for column in mnist.columns}
    assert most_gradients(attacks["SOAE, best"]) == most_gradients(attacks["APGD-100"]) == 100
    literal = attacks["SOAE, paper, -H^-1 g"]
    assert isinstance(literal, SOAE)
    assert (literal.steps, literal.delta0, literal.step_size) == (4, "random", pytest.approx(0.3 / 4))


@pytest.mark.parametrize("budget", BUDGETS)
def test_cells_of_one_budget_have_files_and_keys_of_their_own(budget, tmp_path):
    tables = [make_table(name, budget) for name in TABLES]
    plans = {}
    for part in [part for each in tables for part in each.blocks]:
        for job in jobs([table(part)], Choice()):
            # The same cell in another table is the same measurement.
            assert plans.setdefault(job.path(Folder(tmp_path)), job.plan) == job.plan
    counts = Counter(job.path(Folder(tmp_path)) for job in jobs(tables, Choice()))
    assert set(counts) == set(plans)
    assert max(counts.values()) == 1
    precisions = {part.recipe.precision for each in tables for part in each.blocks if part.rows[0].objective}
    assert len(precisions) == 1


def test_signs_do_not_meet_in_a_file_name():
    assert slug("SOAE, -H^-1 g") != slug("SOAE, +H^-1 g")
    assert slug("PGD-20") == "PGD-20"


def test_first_seeds_come_before_second_ones_and_choices_are_kept():
    tables = [table(), table(block(key="other"))]
    order = [(job.block.key, job.row.name, job.seed, job.name) for job in jobs(tables, Choice())]
    assert [entry[2] for entry in order] == sorted(entry[2] for entry in order)
    assert ("mnist-tiny", "SOAT", 1, "FGSM") not in order  # measured for the first seed alone
    assert ("mnist-tiny", "SOAT", 1, "clean") in order
    chosen = jobs(tables, Choice(frozenset({"SOAT"}), frozenset({"clean"}), frozenset({"other"}), 1))
    assert [(job.block.key, job.row.name, job.seed, job.name) for job in chosen] == [
        ("other", "SOAT", 0, "training"),
        ("other", "SOAT", 0, "clean"),
    ]


@pytest.mark.parametrize(("name", "budget"), ALL)
def test_a_rehearsal_is_small_and_consistent(name, budget):
    for part in scaled([make_table(name, budget)], 0.0005)[0].blocks:
        trained = part.use.train - part.use.held_out
        assert trained >= 16
        assert part.recipe.batch_size % 8 == 0
        assert part.recipe.steps(trained)[1] <= 16
        assert all(column.images is None or column.images <= part.use.test for column in part.columns)
        referees = [attack for attack in map(part.attack, part.columns) if isinstance(attack, AutoAttack)]
        assert all((attack.steps, attack.n_queries) == (5, 20) for attack in referees)


def test_a_scale_out_of_range_is_refused():
    for scale in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"^scale: must be above 0"):
            scaled([], scale)
    plan = make_table("1", "cpu")
    assert scaled([plan], 1.0) == [plan]


# Typed from the paper a second time.
RETYPED = {
    ("1", "ResNet18", "STD"): (97.78, 0.07, 0.06, 0.01, 0.01, 0.01),
    ("1", "ResNet18", "PGD"): (86.34, 63.40, 55.89, 49.10, 20.20, 30.85),
    ("1", "WideResNet", "SCORPIO"): (89.01, 67.43, 55.02, 39.88, 43.69, 38.24),
    ("1", "WideResNet", "SOAT"): (85.23, 69.98, 57.73, 45.22, 45.96, 43.47),
    ("2", "ResNet18", "SOAR"): (87.95, 55.70, 56.06, 19.66, 45.08, 35.45),
    ("2", "ResNet18", "SOAT"): (85.47, 56.24, 54.72, 45.98, 47.73, 49.27),
    ("2", "WideResNet", "TRADES"): (86.54, 54.66, 45.70, 43.70, 44.22, 41.21),
    ("3", NAMELESS, "SOAT"): (84.50, 62.84, 52.99, 47.90),
}


def test_the_papers_numbers():
    for (name, network, row), values in RETYPED.items():
        columns = paper.numbers()[name]["columns"]
        found = [paper.accuracy(name, network, row, column) for column in columns]
        assert found == pytest.approx([value / 100 for value in values], abs=1e-12)
    assert paper.accuracy("1", "ResNet18", "SOAT, 7 gradients", "Clean") == pytest.approx(0.8762)
    assert paper.accuracy("3", NAMELESS, "STN", "Clean") is None
    assert paper.accuracy("3", NAMELESS, "SOAT", "FGSM") is None
    assert paper.accuracy("equal-gradients", "ResNet18", "SOAT", "FGSM") is None
    assert paper.dimensions("cifar10") == [243, 117, 65, 38, 22]
    assert paper.dimensions("imagenet-sample") == [2196, 1324, 746, 327, 221]
    assert paper.quality("mnist", "Auto") == (71.49, 0.82)
    assert paper.quality("imagenet100", "SOAE") == (81.66, 0.89)
    assert paper.quality("mnist", "ASOD") is None


def test_the_papers_tables_are_whole():
    numbers = paper.numbers()
    for name in ("1", "2"):
        for rows in numbers[name]["rows"].values():
            assert set(rows) == PAPER_ROWS
            assert {len(values) for values in rows.values()} == {6}
    assert set(numbers["3"]["rows"][NAMELESS]) == PAPER_ROWS - {"STN", "SCORPIO"}


def test_the_numbers_are_part_of_the_package():
    folder = Path(soae_ext.__file__).parent
    assert json.loads((folder / "reproduce" / "paper.json").read_text()) == paper.numbers()
    assert "reproduce/paper.json" in (Path(__file__).parent.parent / "pyproject.toml").read_text()
