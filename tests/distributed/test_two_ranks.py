"""Two ranks do together what one does alone; a failure on one is met by both.

The ranks run once, see ``worker.py`` and ``guard_runs.py``.
"""

import csv
from functools import partial
from pathlib import Path

import pytest
import torch

import cli
from steer_lightning.horizon.end_time import EndTimeDraw
from steer_lightning.modules.stochastic import StochasticTaskModule
from steer_lightning.utils.seeding import stream_key
from tests.distributed import tasks, worker
from tests.distributed.guard_runs import ENDS
from tests.distributed.processes import ROOT, launch
from tests.helpers.faults import FAULTS
from tests.helpers.watching import assert_same

pytestmark = pytest.mark.slow
RANKS = (0, 1)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def printed(folder):
    """What torchrun and both ranks print; a rank that waits for ever fails this."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return launch([*torchrun, str(Path(worker.__file__)), str(folder)], folder)


@pytest.fixture(scope="module")
def found(folder, printed):
    """What each rank has found, by the name of the job."""
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in RANKS]


same = partial(torch.testing.assert_close, **CLOSE)


@pytest.mark.parametrize(("variant", "gradient"), tasks.MODES)
def test_gradients_are_those_of_the_joined_batch(variant, gradient, found, tmp_path):
    with tasks.same_noise():
        joined = tasks.gradients(tmp_path, variant, gradient, slice(2 * tasks.HALF))
    assert any(bool(g.any()) for g in joined.values())
    for rank in RANKS:
        same(found[rank]["all_gradients"][variant, gradient], joined)


def test_accumulated_gradients_are_those_of_the_joined_batches(found, tmp_path):
    joined = tasks.gradients(tmp_path, "cnf", "autograd", slice(2 * tasks.HALF), n_accumulated=2)
    for rank in RANKS:
        same(found[rank]["all_gradients"]["cnf", "accumulated"], joined)


@pytest.mark.parametrize("variant", ["cnf", "ode rnn"])
def test_halves_weigh_as_much_as_they_should(variant, found, tmp_path):
    # Else the test above could not tell a mean of means from the mean.
    with tasks.same_noise():
        first, second = (
            tasks.gradients(tmp_path, variant, "autograd", slice(i * tasks.HALF, j * tasks.HALF))
            for i, j in ((0, 1), (1, 2))
        )
    wrong = {name: (first[name] + second[name]) / 2 for name in first}
    with pytest.raises(AssertionError):
        same(found[0]["all_gradients"][variant, "autograd"], wrong)


@pytest.mark.parametrize("variant", ["image flow", "latent ode"])
def test_each_rank_has_noise_of_its_own(variant, found, tmp_path, monkeypatch):
    alone = []
    for rank in RANKS:
        monkeypatch.setattr(StochasticTaskModule, "global_rank", rank)
        mine = slice(rank * tasks.HALF, (rank + 1) * tasks.HALF)
        alone.append(tasks.gradients(tmp_path, variant, "autograd", mine))
    mean = {name: (alone[0][name] + alone[1][name]) / 2 for name in alone[0]}
    for rank in RANKS:
        same(found[rank]["all_gradients"][variant, "own noise"], mean)


@pytest.mark.parametrize("variant", tasks.VARIANTS)
def test_evaluation_is_that_of_one_rank_with_an_uneven_last_batch(variant, found, tmp_path):
    with tasks.same_noise():
        metrics, predictions = tasks.evaluation(tmp_path, variant)
    assert {name.split("/")[0] for name in metrics} == {"val", "test"}
    results = [found[rank]["all_evaluations"][variant] for rank in RANKS]
    for of_rank, _ in results:
        assert of_rank == pytest.approx(metrics, rel=1e-10, abs=1e-12)
    if variant == "stiff":  # one trajectory, which every rank reads
        for _, of_rank in results:
            torch.testing.assert_close(of_rank, predictions, **CLOSE)
        return
    ones = [list(samples(batches)) for batches in (predictions, results[0][1], results[1][1])]
    assert [len(of_rank) for of_rank in ones] == [13, 7, 6]
    for rank in RANKS:
        for a, b in zip(ones[1 + rank], ones[0][rank::2], strict=True):
            torch.testing.assert_close(a, b, **CLOSE)


def samples(batches):
    """The predictions of single samples; of series what does not depend on padding."""
    for batch in batches:
        parts = batch if isinstance(batch, dict) else {"all": batch}
        n_times = parts.get("lengths")
        for i in range(len(next(iter(parts.values())))):
            kept = slice(None) if n_times is None else slice(int(n_times[i]))
            yield {k: v[i][kept] if v[i].ndim and k != "probabilities" else v[i]
                   for k, v in parts.items() if k != "probabilities" or v.ndim == 2}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "agreed_seed"), [("batch", 100), ("rank", 100), ("attached", 100), ("global seed", 7)]
)
def test_end_times_and_seed_are_those_of_the_first_rank(case, agreed_seed, found):
    (ends, seed), (other_ends, other_seed) = [f["all_end_times"][case] for f in found]
    assert seed == other_seed == agreed_seed  # the other rank's would be one more
    assert len(ends) == len(other_ends) == 4
    assert len({round(end, 4) for end in ends}) == 4
    if case == "rank":
        assert all(abs(a - b) > 1e-4 for a, b in zip(ends, other_ends, strict=True))
    else:
        assert ends == pytest.approx(other_ends, abs=1e-6)
    for rank, mine in enumerate((ends, other_ends)):
        apart = rank if case == "rank" else 0
        path = "func" if case == "attached" else "block.horizon"
        keys = [stream_key("end_time", seed, step, path, apart) for step in range(4)]
        gap = torch.ones(1, dtype=torch.float64)
        by_hand = [1.0 + EndTimeDraw(0.5, key=k).offsets(gap, None, clip=False) for k in keys]
        assert mine == pytest.approx([float(end) for end in by_hand], abs=1e-5)
    by_default = found[0]["all_end_times"]["batch"][0]
    assert (ends == pytest.approx(by_default, abs=1e-6)) is (case in ("batch", "rank"))


def test_the_context_manager_agrees_on_a_seed(found):
    first, second = [f["all_end_times"]["steer"] for f in found]
    assert first == second
    assert first["steer/block.horizon/end_time"] != 1.0


def test_the_probe_times_are_the_same_on_all_ranks(found):
    first, second = [f["probe_times"] for f in found]
    assert first["seed"] == second["seed"] == 100
    assert first["times"] == second["times"]
    assert len(set(first["times"])) == 4
    for a, b in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(a, b)


def test_all_ranks_begin_with_the_shortest_step(found):
    first, second = [f["first_steps"] for f in found]
    assert first["agreed"] == second["agreed"]
    assert len(first["own"]) == len(second["own"]) == 2
    shortest = [min(pair) for pair in zip(first["own"], second["own"], strict=True)]
    assert [steps[1][1] for steps in first["agreed"]] == shortest
    assert first["own"][0] != second["own"][0]


def test_the_monitor_takes_the_mean_over_the_batches_of_all_ranks(found):
    # First numbers of the batches of two: 0, 4, 8, 12 on one rank, 1, 5, 9 on the other.
    mean = (0 + 4 + 8 + 12 + 1 + 5 + 9) / 7
    for rank in RANKS:
        expected = {f"{stage}/nfe_forward": pytest.approx(mean) for stage in ("val", "test")}
        assert found[rank]["nfe"] == expected


def test_a_fit_validates_uneven_shares_of_a_model_with_buffers(found):
    first, second = [f["fit_with_buffers"] for f in found]
    assert first == second
    assert set(first) == {"val/loss", "val/accuracy", "val/calibration_error", "val/nfe_forward"}


def test_files_are_written_once(found, folder):
    assert found[0]["plots"] == 2 * 4  # PNG and SVG, three of the flow, one of the images
    assert found[1]["plots"] == 0
    run = folder / "plots"
    assert [p.name for p in sorted(run.rglob("version_*"))] == ["version_0", "version_0"]
    assert sorted(p.name for p in (run / "cnf/version_0/plots").glob("*.[cp]*")) == [
        "end_time_sweep_test.csv", "end_time_sweep_test.png", "flow_test.png", "flow_val.png"
    ]  # fmt: skip
    samples = [p.stem for p in (run / "images/version_0/samples").glob("*.pt")]
    assert sorted(samples) == ["0_0", "0_1", "0_2", "0_3", "1_0", "1_1", "1_2"]
    with (run / "cnf/version_0/metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    assert [row["train/seconds"] != "" for row in logged].count(True) == 2


def test_a_resume_in_mid_epoch_continues_on_both_ranks(found):
    """Weights, moments, end times, probe times, noise, evaluations and metrics."""
    for f in found:
        (whole, logged, _), (resumed, rest, _) = f["resumed"]["whole"], f["resumed"]["resumed"]
        assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))
        assert [entry for entry in logged if entry[1] > 2] == rest
        assert any("penalty/kinetic_energy" in metrics for _, _, metrics, _ in rest)


def test_torchrun_trains_and_lightning_itself_tests(found, printed, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert "Starting with 2 processes" in printed
    _, _, of_cli = printed.rpartition("--- command_line")
    assert of_cli.count("STEER moves these end times in training:") == 1
    run = folder / "logs/cnf/toy2d_steer/version_0"
    assert len(list(run.glob("events.*"))) == 1
    assert (run / "config.yaml").is_file()
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3  # 21 samples, four on each rank

    path = f"--ckpt_path={run / 'checkpoints/last.ckpt'}"
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    shown = launch([str(ROOT / "cli.py"), *worker.arguments("test", *ranks, path)], folder)
    assert "Starting with 2 processes" in shown
    assert shown.count("Test metric") == 1
    drawn = {p.name for p in (run / "plots").iterdir()}
    assert {"end_time_sweep_test.csv", "flow_test.png"} <= drawn
    assert (run / "config_test.yaml").is_file()
    assert [p.name for p in run.parent.iterdir()] == ["version_0"]

    monkeypatch.setattr("sys.argv", ["cli.py"])
    trainer = cli.main(worker.arguments("test", path)).trainer
    alone = trainer.callback_metrics["test/nll"].item()
    row = next(line for line in shown.splitlines() if "test/nll" in line)
    (together,) = [float(word) for word in row.split() if word.replace(".", "").isdigit()]
    assert together == pytest.approx(alone, abs=1e-4)  # the steps of dopri5 depend on the batch


each_fault = pytest.mark.parametrize("fault", FAULTS)


@pytest.fixture(scope="module")
def runs(found):
    return [f["all_runs"] for f in found]


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
    first, second = both(runs, f"skip {fault}")
    of_first, of_second = both(runs, f"reference {FAULTS[fault][0]}")
    assert_same(first["state"], of_first["state"])
    assert_same(without_statistics(second["state"]), without_statistics(of_second["state"]))
    for found in (first, second):
        assert found["counts"] == {"skipped": 1}
        assert [logged["solver/skipped"] for logged in found["steps"]] == [0.0, 1.0, 1.0, 1.0]
        # What is reduced in the step is logged for whole batches alone: the mean over the ranks
        # of the batch's number and ten times the rank; not of the second.
        assert [logged["mean"] for logged in found["steps"]] == (
            [5.0, 6.0, 7.0, 8.0] if fault == "adjoint" else [5.0, 5.0, 7.0, 8.0]
        )
        assert found["untouched"]
    assert len(first["warnings"]) == 1
    assert "batch 1, rank 1." in first["warnings"][0]
    assert second["warnings"] == []


@each_fault
def test_accumulation_drops_the_whole_window_on_all_ranks(runs, fault):
    expected = runs[0][f"reference accumulated {FAULTS[fault][0]}"]["state"]
    for found in both(runs, f"skip accumulated {fault}"):
        assert_same(without_statistics(found["state"]), without_statistics(expected))
        assert found["counts"] == {"skipped": 1}


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


def test_the_failed_rank_says_so_at_once(runs, printed):
    """Should something else keep the others from hearing of it."""
    assert "[rank 1] NFEBudgetExceededError: The forward solve needs more" in printed
    assert "[rank 0]" not in printed


@pytest.mark.parametrize("name", [*ENDS, *(f"first of {end}" for end in ENDS)])
def test_evaluation_ends_all_ranks(runs, name):
    stage = "test" if name.endswith("test") else "validation"
    batch_idx = 0 if name.startswith("first") else 1
    for found in both(runs, name):
        error, message, rank, found_idx = found["error"]
        assert error == "NFEBudgetExceededError"
        assert f"{stage}, epoch 0, batch {batch_idx}, rank 1." in message
        assert (rank, found_idx) == (1, batch_idx)
        assert found["untouched"]


def test_a_foreign_solver_that_fails_in_evaluation_ends_all_ranks(runs):
    for found in both(runs, "foreign"):
        error, message, rank, batch_idx = found["error"]
        assert (error, rank, batch_idx) == ("ForeignSolverError", 1, 1)
        assert "validation, epoch 0, batch 1, rank 1." in message
