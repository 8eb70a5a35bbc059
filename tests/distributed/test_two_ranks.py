"""Two ranks do together what one does alone. The ranks run once, see ``worker.py``."""

import csv
from pathlib import Path

import pytest
import torch

from steer_lightning.modules.base import StochasticTaskModule
from tests.distributed import tasks
from tests.distributed.processes import run_ranks

pytestmark = pytest.mark.slow
RANKS = (0, 1)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder):
    """What each rank has found, by the name of the job."""
    run_ranks([str(Path(__file__).with_name("worker.py")), str(folder)], folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in RANKS]


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **CLOSE, msg=lambda m, name=name: name + m)


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


def test_the_end_times_are_the_same_on_all_ranks_by_default(found):
    (ends, seed), (other_ends, other_seed) = [f["all_end_times"]["batch"] for f in found]
    assert seed == other_seed == 100  # of the first rank: the other one's is 101
    assert len(ends) == 4
    assert ends == pytest.approx(other_ends, abs=1e-6)
    assert len({round(end, 4) for end in ends}) == 4


def test_the_end_times_differ_with_scope_rank(found):
    (ends, seed), (other_ends, other_seed) = [f["all_end_times"]["rank"] for f in found]
    assert seed == other_seed == 100
    assert all(abs(a - b) > 1e-4 for a, b in zip(ends, other_ends, strict=True))
    assert ends == pytest.approx(found[0]["all_end_times"]["batch"][0], abs=1e-6)


def test_the_global_seed_of_the_first_rank_is_agreed_on(found):
    (ends, seed), (other_ends, other_seed) = [f["all_end_times"]["global seed"] for f in found]
    assert seed == other_seed == 7
    assert ends == pytest.approx(other_ends, abs=1e-6)
    assert ends != pytest.approx(found[0]["all_end_times"]["batch"][0], abs=1e-3)


def test_the_context_manager_agrees_on_a_seed(found):
    first, second = [f["all_end_times"]["steer"] for f in found]
    assert first == second
    assert first["steer/block.horizon/end_time"] != 1.0


@pytest.mark.parametrize(("case", "reductions"), [("alone", 2), ("guarded", 4)])
def test_all_ranks_begin_with_the_shortest_step(case, reductions, found):
    first, second = [f["all_first_steps"][case] for f in found]
    assert first["agreed"] == second["agreed"]
    # The guard reduces after the training step and after the backward pass, and nobody after it.
    assert len(first["own"]) == len(second["own"]) == reductions
    shortest = [min(pair) for pair in zip(first["own"], second["own"], strict=True)]
    assert [steps[1][1] for steps in first["agreed"]] == shortest[:: reductions // 2]
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
    assert found[0]["plots"] == 4  # three of the flow, one of the images
    assert found[1]["plots"] == 0
    run = folder / "plots"
    assert [p.name for p in sorted(run.rglob("version_*"))] == ["version_0", "version_0"]
    assert sorted(p.name for p in (run / "cnf/version_0/plots").iterdir()) == [
        "end_time_sweep_test.csv", "end_time_sweep_test.png", "flow_test.png", "flow_val.png"
    ]  # fmt: skip
    samples = [p.stem for p in (run / "images/version_0/samples").glob("*.pt")]
    assert sorted(samples) == ["0_0", "0_1", "0_2", "0_3", "1_0", "1_1", "1_2"]
    with (run / "cnf/version_0/metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    assert [row["train/seconds"] != "" for row in logged].count(True) == 2


def test_a_resume_in_mid_epoch_continues_on_both_ranks(found):
    for f in found:
        whole, part, (weights, again) = (f["resumed"][key] for key in ("whole", "part", "weights"))
        assert len(whole) == 4
        assert part == whole[1:]
        assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert found[0]["resumed"]["whole"] != found[1]["resumed"]["whole"]
