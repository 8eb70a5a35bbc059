"""Base of every datamodule: tensors in memory, seeded splits."""

import hashlib
import os
from abc import ABC, abstractmethod
from numbers import Real
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.resumable_loader import ResumableLoader
from steer_lightning.modules.compatibility import warn_of_changes
from steer_lightning.utils.plain import as_plain

Split = Literal["train", "val", "test"]
BatchT = TypeVar("BatchT", bound="tuple[Tensor, ...]")

# What may change from training to test, or from one machine to another.
_FREE = frozenset(
    {"batch_size", "eval_batch_size", "num_workers", "data_dir", "cache_dir", "download"}
)
_SPLITS: dict[str | None, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
    None: ("train", "val", "test"),
}


def derive_seed(seed: int, purpose: str) -> int:
    """Mix a seed with a purpose into an integer in ``[0, 2**31)``, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded_generator(seed: int, purpose: str) -> torch.Generator:
    """Create a CPU generator keyed by ``(seed, purpose)``; the global stream is not touched."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose))


def keep_batch(batch: Any) -> Any:
    """Collate nothing: :class:`TensorData` already yields whole batches."""
    return batch


def check_at_least(minimum: int, **arguments: int | None) -> None:
    """Raise ``ValueError`` unless all arguments that are not ``None`` are at least ``minimum``."""
    for name, value in arguments.items():
        if value is not None and value < minimum:
            raise ValueError(
                f"Expected `{name}` to be at least {minimum}, but got {value}. "
                f"Set `{name}` to {minimum} or more."
            )


class TensorData(Dataset[BatchT]):
    r"""Chosen samples of tensors with a common first axis; a batch is one indexing operation each.

    Use it with ``collate_fn=keep_batch``: a loader gets whole batches, fast without workers. Two
    splits of the same tensors share their memory.

    Args:
        tensors: A tuple or named tuple of tensors, each of shape ``(N, ...)``. Batches have the
            same type.
        chosen: Which samples belong to this set, shape ``(M,)``, int64; ``None`` means all.

    Raises:
        ValueError: If the tensors differ in length.

    Example:
        >>> data = TensorData((torch.zeros(5, 2), torch.arange(5)))
        >>> x, label = next(iter(DataLoader(data, batch_size=3, collate_fn=keep_batch)))
        >>> x.shape, label
        (torch.Size([3, 2]), tensor([0, 1, 2]))
    """

    def __init__(self, tensors: BatchT, chosen: Tensor | None = None) -> None:
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) != 1:
            raise ValueError(
                f"Expected tensors of one common length, but got lengths {lengths}. "
                "Pass at least one tensor, and index all of them by the same samples."
            )
        self.tensors = tensors
        self.chosen = torch.arange(lengths[0]) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> BatchT:
        return self.select(index)

    def __getitems__(self, indices: list[int]) -> BatchT:
        return self.select(indices)

    def select(self, index: int | list[int]) -> BatchT:
        """Index every tensor, by one index or a batch's; a subclass may convert what it stores."""
        chosen = self.chosen[index]
        make: Any = getattr(self.tensors, "_make", tuple)
        return make(tensor[chosen] for tensor in self.tensors)


class TensorDataModule(LightningDataModule, ABC):
    r"""Base of data that fits in memory: a subclass only says how to build a split.

    ``setup`` builds what a stage needs and nothing else; ``predict`` uses the test set. The order
    of training samples depends on ``seed``, the run's seed (``seed_everything``) and the epoch
    alone, also after a resume, which goes on behind the last batch. The last batch of an epoch
    may be smaller.

    With several ranks each reads its own part of a set. In training they take equally many steps,
    for which a few samples of an epoch may be repeated. Elsewhere none is repeated: rank ``r`` of
    ``W`` reads samples ``r, r + W, r + 2 W, ..``; a set of one sample is read by every rank.

    Args:
        batch_size: Samples in a training batch, on each rank.
        eval_batch_size: Samples in a validation, test or predict batch; ``None`` means
            ``batch_size``.
        num_workers: Loader processes; 0 is fast for data in memory.
        seed: Key of splits, draws and, together with the run's seed, shuffling.

    Attributes:
        cache_name: Usual name of the folder ``cache_dir``; ``None`` where nothing is cached.

    Raises:
        ValueError: If an argument is outside its range or a split is empty; when it is loaded, if
            a split has fewer samples than there are ranks.

    Example:
        >>> class Line(TensorDataModule):
        ...     def build(self, split):
        ...         return TensorData((torch.arange(4.0),))
        >>> data = Line(batch_size=4)
        >>> data.setup("test")
        >>> next(iter(data.test_dataloader()))
        (tensor([0., 1., 2., 3.]),)
    """

    sampler_class: ClassVar[type[DistributedSampler[Any]]] = DistributedSampler
    cache_name: ClassVar[str | None] = None

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_at_least(0, num_workers=num_workers)
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._datasets: dict[Split, TensorData[Any]] = {}
        self._order: int | None = None  # the seed of the order of training samples

    @abstractmethod
    def build(self, split: Split) -> TensorData[Any]:
        """Build one split."""

    def setup(self, stage: str | None = None) -> None:
        self._order = None  # a checkpoint is read after this
        for split in _SPLITS[stage]:
            if split not in self._datasets:
                dataset = self.build(split)
                if len(dataset) == 0:
                    raise ValueError(
                        f"Expected the {split} set of {type(self).__name__} to hold at least one "
                        "sample, but got an empty one. Raise its size or check the data."
                    )
                self._datasets[split] = dataset

    def state_dict(self) -> dict[str, Any]:
        """The settings that say what the data are, and the seed of their order."""
        free = _FREE | vars(LightningDataModule()).keys()
        plain = (bool, int, float, str, dict, type(None))
        settings = {
            name: as_plain(value)
            for name, value in vars(self).items()
            if isinstance(value, (Real, *plain)) and name not in free and not name.startswith("_")
        }
        return {**settings, "order": self._order}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn if a checkpoint was trained on other data, or another split of them."""
        self._order = state_dict.get("order")
        now = self.state_dict()
        shared = state_dict.keys() & now.keys()
        saved, now = ({name: state[name] for name in shared} for state in (state_dict, now))
        warn_of_changes(f"the data, {type(self).__name__}", saved, now)

    def train_dataloader(self) -> DataLoader[Any]:
        dataset = self._dataset("train")
        n_ranks, rank = self._ranks()
        # Lightning leaves a DistributedSampler as it is and tells it the epoch.
        if self._order is None:
            self._order = derive_seed(self.seed, f"order/{os.environ.get('PL_GLOBAL_SEED', 0)}")
        sampler = self.sampler_class(dataset, n_ranks, rank, shuffle=True, seed=self._order)
        return self._loader(dataset, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()

    @property
    def pin_memory(self) -> bool:
        """Whether batches go to a CUDA device: the Trainer's, or any if there is no Trainer."""
        if self.trainer is None:
            return torch.cuda.is_available()
        return self.trainer.strategy.root_device.type == "cuda"

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _evaluation_loader(self, split: Split) -> DataLoader[Any]:
        dataset = self._dataset(split)
        n_samples, (n_ranks, rank) = len(dataset), self._ranks()
        if n_ranks == 1:
            return self._loader(dataset, self.eval_batch_size)
        if n_samples == 1:  # means over ranks that read the same are right too
            n_ranks, rank = 1, 0
        if n_samples < n_ranks:
            raise ValueError(
                f"Expected a sample for each of the {n_ranks} ranks in the {split} set of "
                f"{type(self).__name__}, but got {n_samples}. Use fewer processes or more samples."
            )
        sampler = UnrepeatedDistributedSampler(dataset, n_ranks, rank, shuffle=False)
        return self._loader(dataset, self.eval_batch_size, sampler)

    def _dataset(self, split: Split) -> TensorData[Any]:
        if split not in self._datasets:
            raise RuntimeError(
                f"Expected the {split} set of {type(self).__name__} to be built before it is "
                f"loaded, but only {sorted(self._datasets)} are. Call `setup(stage)` first."
            )
        return self._datasets[split]

    def _loader(
        self,
        dataset: TensorData[Any],
        batch_size: int,
        sampler: DistributedSampler[Any] | None = None,
    ) -> DataLoader[Any]:
        loader = ResumableLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=keep_batch,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
            # Workers draw their base seed from here and not from the global stream.
            generator=seeded_generator(self.seed, "workers"),
        )
        loader.trainer = self.trainer
        return loader
