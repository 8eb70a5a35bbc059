"""A loader that goes on in the middle of an epoch."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader, DistributedSampler

from steer_lightning.utils.processes import in_process_group


class ResumableLoader(DataLoader[Any]):
    """A loader that goes on in the middle of an epoch, and begins only when a batch is asked for.

    Lightning saves and restores its ``state_dict``. The order of an epoch must depend on the
    sampler's seed and the epoch's number alone, as a sampler's with ``set_epoch`` does.

    Workers wait for the first batch, since Lightning creates the iterator of a run's first epoch
    before it tells the sampler the epoch.

    Example:
        >>> loader = ResumableLoader([1, 2, 3, 4, 5], batch_size=2)
        >>> batches = iter(loader)
        >>> next(batches)
        tensor([1, 2])
        >>> again = ResumableLoader([1, 2, 3, 4, 5], batch_size=2)
        >>> again.load_state_dict(loader.state_dict())
        >>> list(again)
        [tensor([3, 4]), tensor([5])]
        >>> len(list(again))  # the next epoch is whole
        3
    """

    trainer: Trainer | None = None  # the one that trains with it
    _read = 0
    _resume: Mapping[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._check_ranks()
        resume, self._resume = self._resume, None
        skip = 0
        if resume is not None and resume["epoch"] == self._epoch:
            done = resume["batches"] % resume.get("length", len(self))
            skip = done % len(self)
            before = resume.get("samples", self._samples)
            if done and before != self._samples:
                rank_zero_warn(
                    f"The checkpoint is from within an epoch of {before} samples a step, but now "
                    f"a step has {self._samples}: some samples of this epoch are left out or come "
                    f"twice. Go on with the same batch size and number of processes, or from the "
                    f"end of an epoch."
                )
        # Read and thrown away: the batches that workers hold follow the sampler.
        for self._read, batch in enumerate(super().__iter__(), start=1):
            if self._read > skip:
                yield batch

    def state_dict(self) -> dict[str, int]:
        seed = {"seed": self.sampler.seed} if isinstance(self.sampler, DistributedSampler) else {}
        batches = self._read
        if self.trainer is not None:  # Lightning repeats a batch that did not end
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
            batches = progress.processed
        size = {"samples": self._samples, "length": len(self)}
        return {"epoch": self._epoch, "batches": batches, **size, **seed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._resume = dict(state)
        if isinstance(self.sampler, DistributedSampler) and "seed" in state:
            self.sampler.seed = state["seed"]

    def _check_ranks(self) -> None:
        """Refuse to give every rank the same samples, which Lightning takes for its share."""
        sampler = self.sampler
        if not isinstance(sampler, DistributedSampler) or isinstance(
            sampler, UnrepeatedDistributedSampler
        ):
            return
        n_shares: int = sampler.num_replicas
        if in_process_group() and (n_ranks := torch.distributed.get_world_size()) != n_shares:
            raise ValueError(
                f"Expected a training loader for {n_ranks} ranks, but this one was made for "
                f"{n_shares}. Give the Trainer the datamodule, which then knows how many there "
                f"are, in place of the loader: trainer.fit(model, data)."
            )

    @property
    def _samples(self) -> int:
        """Samples in a batch of all ranks."""
        return (self.batch_size or 1) * int(getattr(self.sampler, "num_replicas", 1))

    @property
    def _epoch(self) -> int:
        return int(getattr(self.sampler, "epoch", 0))
