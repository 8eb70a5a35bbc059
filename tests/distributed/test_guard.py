"""A solve fails on rank 1 of two, and both ranks do the same; the runs are in guard_worker.py."""

import pytest
import torch

from tests.distributed.processes import run_ranks
from tests.helpers.faults import FAULTS, assert_same

pytestmark = pytest.mark.slow
each_fault = pytest.mark.parametrize("fault", FAULTS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What both ranks saw of each run; a rank that waits for ever fails this."""
    folder = tmp_path_factory.mktemp("guard")
    run_ranks(["-m", "tests.distributed.guard_worker", str(folder)], folder, limit_s=200)
    found = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    return [{**runs, "folder": folder} for runs in found]


def both(runs, name):
    return [rank[name] for rank in runs]


def without_statistics(state):
    """Running statistics are each rank's own until the next forward pass."""
    return {k: v for k, v in state.items() if not k.startswith("model.norm.")}


@each_fault
def test_raise_ends_all_ranks_within_the_step(runs, fault):
    for found in both(runs, f"raise {fault}"):
        name, message, rank, batch_idx = found["error"]
        assert name == FAULTS[fault][1].__name__
        assert "block 'block'" in message
        assert "training, epoch 0, batch 1, rank 1." in message
        assert (rank, batch_idx) == (1, 1)
        assert len(found["steps"]) == 1  # the batch before
        assert found["untouched"]


@each_fault
def test_skip_is_a_run_that_never_saw_the_batch(runs, fault):
    expected = both(runs, f"reference {FAULTS[fault][0]}")
    for found, reference in zip(both(runs, f"skip {fault}"), expected, strict=True):
        assert_same(without_statistics(found["state"]), without_statistics(reference["state"]))
        assert found["counts"] == {"skipped": 1}
        assert [logged["solver/skipped"] for logged in found["steps"]] == [0.0, 1.0, 1.0, 1.0]
        assert found["untouched"]
    first, second = both(runs, f"skip {fault}")
    assert len(first["warnings"]) == 1
    assert "batch 1, rank 1." in first["warnings"][0]
    assert second["warnings"] == []


@each_fault
def test_statistics_of_rank_0_never_saw_the_batch(runs, fault):
    found = runs[0][f"skip {fault}"]["state"]
    assert_same(found, runs[0][f"reference {FAULTS[fault][0]}"]["state"])


@each_fault
def test_accumulation_drops_the_whole_window_on_all_ranks(runs, fault):
    expected = runs[0][f"reference accumulated {FAULTS[fault][0]}"]["state"]
    for found in both(runs, f"skip accumulated {fault}"):
        assert_same(without_statistics(found["state"]), without_statistics(expected))
        assert found["counts"] == {"skipped": 1}


@each_fault
def test_values_that_are_reduced_in_the_step_are_logged_for_whole_batches_alone(runs, fault):
    for found in both(runs, f"skip {fault}"):
        # The mean over the ranks of the batch's number and ten times the rank; not of the second.
        assert [logged["mean"] for logged in found["steps"]] == (
            [5.0, 6.0, 7.0, 8.0] if fault == "adjoint" else [5.0, 5.0, 7.0, 8.0]
        )


def test_the_first_batch_may_be_dropped(runs):
    for found in both(runs, "first"):
        assert found["counts"] == {"skipped": 1}


def test_end_times_stay_equal(runs):
    first, second = both(runs, "steer")
    key = "steer/block.horizon/end_time"
    ends = [logged[key] for logged in first["steps"]]
    assert ends == [logged[key] for logged in second["steps"]]
    assert len(set(ends)) == 4
    assert_same(without_statistics(first["state"]), without_statistics(second["state"]))


def test_failures_in_a_row_end_all_ranks(runs):
    for found in both(runs, "in a row"):
        name, message, _, _ = found["error"]
        assert name == "RepeatedFailureError"
        assert "batch 1, rank 1. The last," in message
        assert "batch 2, rank 1." in message
        assert len(found["steps"]) == 2


def test_an_evaluation_of_unknown_length_loses_no_error(runs):
    for found in both(runs, "unknown length"):
        assert found["error"][0] == "NFEBudgetExceededError"


def test_the_failed_rank_says_so_at_once(runs):
    """Should something else keep the others from hearing of it."""
    texts = [(found["folder"] / f"{rank}.txt").read_text() for rank, found in enumerate(runs)]
    assert "[rank 1] NFEBudgetExceededError: The forward solve needs more" in texts[1]
    assert "[rank" not in texts[0]


@pytest.mark.parametrize("batch_idx", [0, 1])
@pytest.mark.parametrize("end", ["validation in fit", "validate", "test"])
def test_evaluation_ends_all_ranks(runs, end, batch_idx):
    name = end if batch_idx else f"first of {end}"
    stage = "test" if end == "test" else "validation"
    for found in both(runs, name):
        error, message, rank, found_idx = found["error"]
        assert error == "NFEBudgetExceededError"
        assert f"{stage}, epoch 0, batch {batch_idx}, rank 1." in message
        assert (rank, found_idx) == (1, batch_idx)
        assert found["untouched"]
