import itertools
from collections import defaultdict
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datamodules.base import Split, TensorData, TensorDataModule
from tests.helpers.models import tiny_trainer

FIRST = {"train": 0, "val": 100, "test": 200}


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Numbers(TensorDataModule):
    """The numbers from FIRST[split] on."""

    def __init__(self, n: int = 10, **kwargs) -> None:
        super().__init__(**kwargs)
        self.n = n
        self.built: list[Split] = []

    def build(self, split: Split) -> Dataset[Pair]:
        self.built.append(split)
        x = torch.arange(self.n, dtype=torch.float32) + FIRST[split]
        return TensorData(Pair(x, 2 * x))


def values(loader: DataLoader) -> list[float]:
    return torch.cat([batch.x for batch in loader]).tolist()


@pytest.mark.parametrize(
    ("stage", "built"),
    [
        ("fit", ["train", "val"]),
        ("validate", ["val"]),
        ("test", ["test"]),
        ("predict", ["test"]),
        (None, ["train", "val", "test"]),
    ],
)
def test_each_stage_alone_builds_what_it_needs(stage, built):
    data = Numbers()
    data.setup(stage)
    assert data.built == built
    for split in built:
        loader = getattr(data, f"{split}_dataloader")()
        assert sorted(values(loader)) == [FIRST[split] + i for i in range(10)]
    data.setup()
    assert sorted(data.built) == ["test", "train", "val"]  # each once


def test_batches_keep_their_type_and_sizes():
    data = Numbers(batch_size=4, eval_batch_size=3)
    data.setup()
    loader = data.train_dataloader()
    train = list(loader)
    assert [len(batch.x) for batch in train] == [4, 4, 2]
    loader.load_state_dict({"epoch": 0, "batches": 2})
    assert values(loader) == train[2].x.tolist()
    assert [len(batch.x) for batch in data.val_dataloader()] == [3, 3, 3, 1]
    assert all(isinstance(batch, Pair) and torch.equal(batch.y, 2 * batch.x) for batch in train)


def test_order_depends_on_seeds_and_epoch_alone(monkeypatch):
    def order(seed: int, epoch: int, run: int, state: dict[str, int] | None = None) -> list[float]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(run))
        data = Numbers(seed=seed)
        data.setup("fit")
        loader = data.train_dataloader()
        if state:
            loader.load_state_dict({"epoch": epoch + 1, "batches": 0, **state})
        loader.sampler.set_epoch(epoch)
        return values(loader)

    assert order(0, 0, 0) == order(0, 0, 0)
    keys = list(itertools.product((0, 1), repeat=3))
    assert len({tuple(order(*key)) for key in keys}) == len(keys)
    data = Numbers(seed=0)
    data.setup("fit")
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    saved = data.train_dataloader().state_dict()["seed"]
    assert order(0, 0, 2, {"seed": saved}) == order(0, 0, 1)  # a resumed run keeps its order
    again = Numbers(seed=0)
    again.setup("fit")
    again.load_state_dict(data.state_dict())  # from the end of an epoch, too
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    assert again.train_dataloader().sampler.seed == saved
    again.setup("fit")  # another training
    assert again.train_dataloader().sampler.seed != saved


@pytest.mark.slow
def test_workers_yield_the_same_batches_and_stay():
    plain, parallel = Numbers(batch_size=4), Numbers(batch_size=4, num_workers=1)
    plain.setup("fit")
    parallel.setup("fit")
    loader = parallel.train_dataloader()
    assert loader.persistent_workers
    assert not plain.train_dataloader().persistent_workers
    assert values(loader) == values(plain.train_dataloader())


def on_rank(rank: int, world_size: int, n: int = 10) -> Numbers:
    data = Numbers(n, batch_size=2)
    data.trainer = SimpleNamespace(
        world_size=world_size,
        global_rank=rank,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    data.setup()
    return data


@pytest.mark.parametrize(("n_ranks", "n_steps"), [(2, 5), (3, 4)])
def test_ranks_share_an_epoch_and_repeat_no_more_than_equal_steps_need(n_ranks, n_steps):
    parts = [values(on_rank(rank, n_ranks).train_dataloader()) for rank in range(n_ranks)]
    assert [len(part) for part in parts] == [n_steps] * n_ranks
    assert {x for part in parts for x in part} == set(range(10))


@pytest.mark.parametrize("split", ["val", "test", "predict"])
@pytest.mark.parametrize("n", [10, 11, 3])
def test_ranks_evaluate_every_sample_once(split, n):
    loaders = [getattr(on_rank(rank, 3, n), f"{split}_dataloader")() for rank in range(3)]
    parts = [values(loader) for loader in loaders]
    first = FIRST["val" if split == "val" else "test"]
    assert parts == [[float(first + i) for i in range(rank, n, 3)] for rank in range(3)]
    assert [len(loader.sampler) for loader in loaders] == [len(part) for part in parts]
    assert all(isinstance(loader.sampler, UnrepeatedDistributedSampler) for loader in loaders)


def test_one_sample_is_evaluated_by_every_rank_and_too_few_raise_on_all_of_them():
    message = r"a sample for each of the 3 ranks in the val set of Numbers.* got 2"
    for rank in range(3):
        assert values(on_rank(rank, 3, 1).val_dataloader()) == [100.0]
        with pytest.raises(ValueError, match=message):
            on_rank(rank, 3, 2).val_dataloader()


def test_a_training_loader_made_without_the_trainer_is_refused_on_several_ranks(monkeypatch):
    data = Numbers()
    data.setup("fit")
    monkeypatch.setattr("datamodules.resumable_loader.in_process_group", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"for 2 ranks, .* made for 1. Give .* the datamodule"):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize("cuda", [True, False])
def test_memory_is_pinned_for_a_cuda_trainer_or_without_one_where_there_is_cuda(monkeypatch, cuda):
    data = on_rank(0, 1)
    data.trainer.strategy.root_device = torch.device("cuda" if cuda else "cpu")
    assert data.pin_memory is cuda
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert Numbers().pin_memory is cuda


class Recorder(LightningModule):
    """Writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: dict[str, list[float]] = defaultdict(list)

    def training_step(self, batch, batch_idx):
        self.seen[self.trainer.state.stage] += batch.x.tolist()
        return (self.weight * batch.x).mean()

    validation_step = test_step = predict_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_trainer_runs_every_stage_and_reshuffles_each_epoch():
    model, data = Recorder(), Numbers(batch_size=4)
    runner = tiny_trainer(max_epochs=2, num_sanity_val_steps=0)
    runner.fit(model, datamodule=data)
    runner.test(model, datamodule=data, verbose=False)
    runner.predict(model, datamodule=data)
    first, second = model.seen["train"][:10], model.seen["train"][10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert model.seen["validate"] == [100.0 + i for i in range(10)] * 2
    assert model.seen["test"] == model.seen["predict"] == [200.0 + i for i in range(10)]


@pytest.mark.parametrize(
    ("changed", "said"), [({}, None), ({"batch_size": 3}, None), ({"n": 12}, "n (was 10, is 12)")]
)
def test_a_checkpoint_of_other_data_is_told(changed, said, recwarn):
    saved = Numbers(seed=1).state_dict()
    Numbers(**{"seed": 1, **changed}).load_state_dict(saved)
    messages = [str(warning.message) for warning in recwarn]
    assert messages == ([] if said is None else [
        f"The checkpoint was saved with other settings of the data, Numbers: {said}."
    ])  # fmt: skip


def test_empty_set_raises():
    with pytest.raises(ValueError, match="Expected the test set of Numbers to hold at least one"):
        Numbers(n=0).setup("test")


def test_loading_before_setup_raises():
    data = Numbers()
    data.setup("test")
    with pytest.raises(RuntimeError, match=r"only \['test'\] are\. Call `setup\(stage\)` first"):
        data.train_dataloader()


@pytest.mark.parametrize("tensors", [(torch.zeros(3), torch.zeros(4)), ()])
def test_tensors_of_different_lengths_raise(tensors):
    with pytest.raises(ValueError, match="Expected tensors of one common length, but got lengths"):
        TensorData(tensors)


@pytest.mark.parametrize("name", ["num_workers", "data_dir", "cache_dir", "download"])
def test_what_belongs_to_a_machine_is_no_other_data(name, recwarn):
    saved, now = Numbers(), Numbers()
    setattr(saved, name, "there")
    setattr(now, name, "here")
    now.load_state_dict(saved.state_dict())
    assert not recwarn.list
