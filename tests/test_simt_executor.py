"""The executor finds the defects that it exists for."""

from __future__ import annotations

import pytest

SCHEDULES = [("in-order", 0), ("reversed", 0), ("shuffled", 1), ("shuffled", 2)]


@pytest.fixture(autouse=True)
def _in_order_afterwards(simt):
    yield
    simt.set_schedule("in-order")


def wrong_by_schedule(simt, defect: str) -> list[int]:
    """How many results are wrong under each schedule."""
    wrong = []
    for schedule, seed in SCHEDULES:
        simt.set_schedule(schedule, seed)
        wrong.append(simt.self_test(defect))
    return wrong


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_a_correct_kernel_is_correct_under_every_schedule(simt, schedule, seed):
    simt.set_schedule(schedule, seed)
    assert simt.self_test("correct") == 0


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
@pytest.mark.parametrize("blocks", [2, 16])
def test_reductions_over_a_cluster_reach_every_thread_of_it(simt, schedule, seed, blocks):
    simt.set_schedule(schedule, seed)
    assert simt.self_test(f"cluster-{blocks}") == 0


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_copies_arrive(simt, schedule, seed):
    simt.set_schedule(schedule, seed)
    assert simt.self_test("copies") == 0
    assert simt.self_test("copies-by-chunks") == 0


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_copies_that_nobody_waits_for_do_not_arrive(simt, schedule, seed):
    simt.set_schedule(schedule, seed)
    assert simt.self_test("copies-by-chunks-unawaited") == 64  # all threads
    for defect in ("copies-unawaited", "copies-left"):
        with pytest.raises(RuntimeError, match="ended while copies to its shared memory were on their way"):
            simt.self_test(defect)
    assert simt.self_test("copies") == 0


def test_a_fetch_before_all_have_read_gives_wrong_results_under_some_schedule(simt):
    wrong = wrong_by_schedule(simt, "copies-refilled-early")
    assert max(wrong) >= 1


def test_a_cluster_that_the_gpu_does_not_run_is_refused(simt):
    simt.set_largest_cluster(8)
    try:
        with pytest.raises(RuntimeError, match="whole clusters of a size that the GPU runs"):
            simt.self_test("cluster-16")
        assert simt.self_test("cluster-2") == 0
    finally:
        simt.set_largest_cluster(16)


def test_a_missing_barrier_gives_different_results_under_different_schedules(simt):
    wrong = wrong_by_schedule(simt, "missing-barrier")
    assert min(wrong) >= 1
    assert len(set(wrong)) >= 3


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("divergent-barrier", "divergent barrier: threads of a block wait at .*self_test.cpp"),
        ("divergent-shuffle", "deadlock"),
        ("unaligned", "unaligned address"),
    ],
)
@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_a_defect_is_reported_and_the_executor_survives_it(simt, schedule, seed, defect, message):
    simt.set_schedule(schedule, seed)
    with pytest.raises(RuntimeError, match=message):
        simt.self_test(defect)
    assert simt.self_test("correct") == 0


def test_an_unknown_schedule_is_refused(simt):
    with pytest.raises(ValueError, match="in-order, reversed or shuffled"):
        simt.set_schedule("sideways", 0)
