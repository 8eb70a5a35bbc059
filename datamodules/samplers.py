"""Which samples a rank evaluates."""

from collections.abc import Iterator, Sized
from typing import Any, cast

from torch.utils.data import Dataset, DistributedSampler


class ShareSampler(DistributedSampler[Any]):
    """One rank's share of a set in its order: every sample once, none repeated.

    A ``DistributedSampler`` repeats samples so that all ranks get as many, which training needs
    and which makes means over an evaluation wrong. Here the first ranks may get one sample more,
    and with it one batch more.

    Args:
        dataset: The set, with at least one sample for each rank.
        num_replicas: Number of ranks.
        rank: Which one.

    Example:
        >>> [list(ShareSampler(range(5), num_replicas=2, rank=rank)) for rank in range(2)]
        [[0, 2, 4], [1, 3]]
    """

    def __init__(self, dataset: Dataset[Any], num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        self._share = range(rank, len(cast(Sized, dataset)), num_replicas)

    def __iter__(self) -> Iterator[int]:
        return iter(self._share)

    def __len__(self) -> int:
        return len(self._share)
