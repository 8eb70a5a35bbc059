import pytest
from torch.utils.data import DistributedSampler

from datamodules.resumable_loader import ResumableLoader


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_iterator_reads_its_sampler_with_the_first_batch(num_workers):
    sampler = DistributedSampler(range(50), num_replicas=1, rank=0)
    loader = ResumableLoader(range(50), batch_size=50, sampler=sampler, num_workers=num_workers)
    batches = iter(loader)
    sampler.set_epoch(1)
    assert next(batches).tolist() == list(sampler)


@pytest.mark.parametrize(
    ("batch_size", "batches", "said"), [(4, 3, 0), (5, 3, 1), (5, 0, 0), (8, 5, 1)]
)
def test_an_epoch_that_goes_on_with_other_batches_is_warned_of(batch_size, batches, said, recwarn):
    loader = ResumableLoader(range(40), batch_size=batch_size)
    loader.load_state_dict({"epoch": 0, "batches": batches, "samples": 4, "length": 10})
    next(iter(loader))
    message = f"of 4 samples a step, but now a step has {batch_size}"
    assert [message in str(w.message) for w in recwarn] == [True] * said
