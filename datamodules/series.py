"""Base of all irregular series: padded samples in memory and a seeded split."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from datamodules.base import Split, TensorData, TensorDataModule, check_at_least, seeded_generator
from steer_lightning.nn.series import SeriesBatch, check_series

_TEST_SHARE = 0.2
_CHECKED_AT_ONCE = 1000


class SeriesData(TensorData[SeriesBatch]):
    r"""Chosen samples of a store of padded series; a batch is cut to its longest sample.

    The masks of the store may be bool, to save memory; those of a batch are floating.

    Example:
        >>> from steer_lightning.nn.series import make_series
        >>> times = [torch.arange(3.0), torch.arange(2.0), torch.arange(9.0)]
        >>> ones = [torch.ones(len(t), 1, dtype=torch.bool) for t in times]
        >>> store = make_series(times, [one.float() for one in ones], ones)
        >>> batch = SeriesData(store).select([0, 1])
        >>> batch.times.shape, batch.mask.dtype
        (torch.Size([2, 3]), torch.float32)
    """

    def select(self, index: int | list[int]) -> SeriesBatch:
        series, chosen = self.tensors, self.chosen[index]
        lengths = series.lengths[chosen]
        longest = int(lengths.max())
        values = series.values[chosen, :longest]
        return SeriesBatch(
            times=series.times[chosen, :longest],
            values=values,
            mask=series.mask[chosen, :longest].to(values.dtype),
            target_mask=series.target_mask[chosen, :longest].to(values.dtype),
            lengths=lengths,
            labels=series.labels[(chosen, slice(longest))[: series.labels.ndim]],
        )


def split_samples(groups: Tensor, val_size: int, seed: int) -> dict[Split, Tensor]:
    r"""Split samples at random, whole groups at a time.

    A fifth of the groups (rounded, at least one) is the test set, which does not depend on
    ``val_size``. Of the other groups, as many as give at least ``val_size`` samples are the
    validation set; with ``val_size=0`` the test set is, and all others train; ``ValueError`` if
    none are left.

    Args:
        groups: Group of each sample, shape ``(N,)``, int64; all different to split single samples.
        val_size: Samples to validate on, at least; or 0.
        seed: Key of the split.

    Returns:
        Indices of the samples of each split, int64.
    """
    _, group, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    n_groups = len(counts)
    order = torch.randperm(n_groups, generator=seeded_generator(seed, "split"))
    n_test = max(1, round(_TEST_SHARE * n_groups))
    reached = counts[order[n_test:]].cumsum(0)
    n_val = int((reached < val_size).sum()) + (val_size > 0)
    if n_test + n_val >= n_groups:
        raise ValueError(
            f"Expected `val_size` to leave some of the samples to train on, but got {val_size} of "
            f"{int(reached[-1]) if len(reached) else 0} samples, in {len(reached)} group(s), that "
            f"are not the test set's. Lower `val_size`, or get more data."
        )
    place = order.argsort()[group]
    samples = place.argsort(stable=True)
    place = place[samples]
    test = samples[place < n_test]
    return {
        "train": samples[place >= n_test + n_val],
        "val": samples[(place >= n_test) & (place < n_test + n_val)] if val_size else test,
        "test": test,
    }


def full_series(
    times: Tensor, values: Tensor, seen: Tensor, targets: Tensor, labels: Tensor | None = None
) -> SeriesBatch:
    """Put samples of equally many points together; masks as ``values``, bool; no labels: none."""
    n, n_points = times.shape
    if labels is None:
        labels = torch.empty(n, 0, dtype=torch.int64)
    return SeriesBatch(times, values, seen, targets, torch.full((n,), n_points), labels)


def choose_points(
    n_samples: int, n_points: int, n_chosen: int, generator: torch.Generator
) -> Tensor:
    """Choose points of each sample, all subsets equally likely: flags, shape ``(N, T)``, bool."""
    return torch.rand(n_samples, n_points, generator=generator).argsort(dim=1) < n_chosen


class SeriesDataModule(TensorDataModule):
    r"""Base of series with a time grid for each sample: a subclass only loads and scales them.

    A batch is a :class:`~steer_lightning.nn.series.SeriesBatch`, padded to its own longest sample.
    A fifth of the samples is the test set, and the validation set is split off the rest. Each
    split is checked once against the contract of series.

    Args:
        val_size: Samples to validate on; at least so many where whole groups are split. With 0
            nothing is split off, as published: the test set is validated on, and a checkpoint
            that is chosen by validation is then chosen by the test.
        limit_train: Keep this many training samples after the split; ``None`` keeps all. Neither
            the other sets nor any scaling depend on it.

    Example:
        >>> from steer_lightning.nn.series import make_series
        >>> class Ramps(SeriesDataModule):
        ...     n_features = 1
        ...
        ...     def load(self):
        ...         times = [torch.arange(1.0, n) for n in range(2, 32)]
        ...         values = [t[:, None] for t in times]
        ...         return make_series(times, values, [v > 0 for v in values]), None
        >>> data = Ramps(batch_size=4, val_size=4)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.times.shape == (4, batch.lengths.max())
        True
    """

    n_features: ClassVar[int]
    num_classes: ClassVar[int] = 0

    def __init__(
        self,
        batch_size: int = 50,
        eval_batch_size: int | None = None,
        val_size: int = 100,
        limit_train: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        check_at_least(0, val_size=val_size)
        check_at_least(1, limit_train=limit_train)
        self.val_size = val_size
        self.limit_train = limit_train
        self._store: tuple[SeriesBatch, dict[Split, Tensor]] | None = None

    @abstractmethod
    def load(self) -> tuple[SeriesBatch, Tensor | None]:
        """Load all padded samples, whose masks may be bool, once.

        Returns:
            The samples, and the group of each, shape ``(N,)``, int64, which is never split;
            ``None`` if each sample is a group of its own.
        """

    def scale(self, series: SeriesBatch, train: Tensor) -> SeriesBatch:
        """Scale all samples by the training ones, at ``train`` whatever ``limit_train`` is."""
        return series

    def build(self, split: Split) -> SeriesData:
        if self._store is None:
            series, groups = self.load()
            if groups is None:
                groups = torch.arange(len(series.lengths))
            parts = split_samples(groups, self.val_size, self.seed)
            self._store = self.scale(series, parts["train"]), parts
        series, parts = self._store
        data = SeriesData(series, parts[split][: self.limit_train if split == "train" else None])
        for part in torch.split(torch.arange(len(data)), _CHECKED_AT_ONCE):
            try:
                check_series(data.select(part.tolist()))
            except (TypeError, ValueError) as error:
                raise type(error)(
                    f"Expected the {split} set of {type(self).__name__} to keep the contract of "
                    f"series, but samples {part[0]} to {part[-1]} do not. {error}"
                ) from error
        return data
