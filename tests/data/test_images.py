import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.base import keep_batch
from datamodules.images import EpochSampler, ImageData, ImageDataModule
from tests.helpers.data_sets import everything, same


def noise(train: bool) -> Tensor:
    """Noise whose top row is the image's number in red, also when mirrored."""
    n, first = (60, 0) if train else (20, 100)
    generator = torch.Generator().manual_seed(int(train))
    images = torch.randint(256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[:, 0, 0] = torch.arange(first, first + n, dtype=torch.uint8)[:, None]
    return images


class Noise(ImageDataModule):
    title, folder_name, layout = "Noise", "noise", "nothing"
    native_shape = (3, 8, 8)
    num_classes = 10

    def __init__(self, **arguments) -> None:
        arguments = {"val_size": 12, "batch_size": 16, "image_size": 8} | arguments
        super().__init__("nowhere", **arguments)
        self.calls: list[str] = []

    def check_files(self) -> None:
        self.calls.append("check")

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        self.calls.append("read train" if train else "read test")
        images = noise(train)
        return images, torch.arange(len(images)) % 10


def training(epoch: int = 0, **arguments) -> tuple[Tensor, Tensor]:
    """An epoch of training images in the order of their numbers, and those numbers."""
    data = Noise(pixels="uint8", **arguments)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    images, labels = everything(loader)
    numbers = images[:, 0, 0, 0].long()
    assert torch.equal(labels, numbers % 10)
    order = numbers.argsort()
    return images[order], numbers[order]


def mirrored(images: Tensor, numbers: Tensor) -> Tensor:
    """Flags of the mirrored images, after a check that all others are as in the file."""
    originals = noise(train=True)[numbers].float()
    flags = (images == originals.flip(-1)).flatten(1).all(1)
    assert torch.equal(images[~flags], originals[~flags])
    return flags


@pytest.mark.parametrize("epoch", [0, 5])
def test_epoch_sampler_is_a_distributed_sampler_with_the_epoch(epoch):
    parts = []
    for rank in range(2):
        arguments = {"num_replicas": 2, "rank": rank, "seed": 3}
        plain = torch.utils.data.DistributedSampler(range(10), **arguments)
        sampler = EpochSampler(range(10), **arguments)
        for each in (plain, sampler):
            each.set_epoch(epoch)
        assert list(sampler) == [(epoch, index) for index in plain]
        assert len(sampler) == len(plain)
        parts += [index for _, index in sampler]
    assert sorted(parts) == list(range(10))


@pytest.mark.parametrize("window", [1, 2, 4, 8])
def test_smaller_images_are_averages_and_whole_in_uint8(window):
    images = noise(train=True)
    exact = F.avg_pool2d(images.double(), window)
    unit, whole = (
        ImageData(images, torch.zeros(60), pixels=pixels, window=window).select(list(range(60)))[0]
        for pixels in ("unit", "uint8")
    )
    torch.testing.assert_close(unit.double(), exact / 255.0, atol=1e-6, rtol=0)
    assert torch.equal(whole.double(), exact.round())
    assert 0.0 <= float(whole.min()) < float(whole.max()) <= 255.0


def test_images_are_not_copied_and_read_once():
    data = Noise()
    for stage in (None, "fit", "validate", "test", "predict"):
        data.setup(stage)
    assert data.calls == ["check", "read train", "check", "read test"]
    train, val = data._datasets["train"], data._datasets["val"]
    assert train.tensors[0].data_ptr() == val.tensors[0].data_ptr()


def test_one_image_has_no_batch_axis_and_iteration_ends():
    data = Noise(image_size=4).build("val")
    image, label = data[3]
    assert (image.shape, label.shape) == ((3, 4, 4), ())
    assert len(list(data)) == len(data) == 12


def test_split_is_disjoint_complete_and_keyed_by_seed():
    def split(seed: int) -> tuple[set[int], set[int]]:
        data = Noise(seed=seed)
        train, val = (set(data.build(part).chosen.tolist()) for part in ("train", "val"))
        assert (len(train), len(val)) == (48, 12)
        assert train | val == set(range(60))
        return train, val

    assert split(0) == split(0)
    assert split(0) != split(1)


def test_mirror_images_are_the_same_set_keyed_by_seed_and_epoch():
    assert not mirrored(*training(1)).any()
    flags = set()
    for seed, epoch in itertools.product((0, 1), repeat=2):
        images, numbers = training(epoch, seed=seed, horizontal_flip=True)
        again = training(epoch, seed=seed, horizontal_flip=True)[0]
        assert torch.equal(again, images)
        assert torch.equal(numbers, training(seed=seed)[1])
        flags.add(tuple(mirrored(images, numbers).tolist()))
    assert len(flags) == 4


def test_half_of_the_images_are_mirrored():
    n = 20_000
    data = ImageData(torch.zeros(n, 1, 2, 2, dtype=torch.uint8), torch.zeros(n), flip_seed=0)
    first, second = data.mirrored(0).clone(), data.mirrored(1)
    for flags in (first, second, first ^ second):
        assert float(flags.float().mean()) == pytest.approx(0.5, abs=5 * 0.5 / n**0.5)
    assert torch.equal(data.mirrored(0), first)


def test_an_images_mirroring_depends_on_neither_order_nor_limit():
    images, numbers = training(3, horizontal_flip=True)
    few_images, few = training(3, horizontal_flip=True, limit_train=10, batch_size=3)
    whole = dict(zip(numbers.tolist(), mirrored(images, numbers).tolist(), strict=True))
    assert mirrored(few_images, few).tolist() == [whole[number] for number in few.tolist()]


def test_only_training_images_are_mirrored():
    data = Noise(horizontal_flip=True, pixels="uint8")
    data.setup()
    originals = noise(train=True).float()
    for _ in range(2):
        val, _ = everything(data.val_dataloader())
        assert torch.equal(val, originals[val[:, 0, 0, 0].long()])
    assert torch.equal(everything(data.test_dataloader())[0], noise(train=False).float())


def test_a_plain_loader_reads_the_mirror_images_of_epoch_0():
    data = Noise(horizontal_flip=True).build("train")
    plain, _ = everything(DataLoader(data, batch_size=7, collate_fn=keep_batch))
    assert torch.equal(plain, data.select(list(range(48)), epoch=0)[0])


def test_workers_that_stay_mirror_as_one_process_does_in_every_epoch():
    loaders = []
    for n_workers in (0, 2):
        data = Noise(horizontal_flip=True, num_workers=n_workers)
        data.setup("fit")
        loaders.append(data.train_dataloader())
    for epoch in (5, 0, 1):  # a resumed run begins anywhere
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        assert same(*map(everything, loaders))


def test_without_a_validation_set_the_test_set_is_validated_on_and_all_others_train():
    data = Noise(val_size=0)
    data.setup()
    assert len(everything(data.train_dataloader())[0]) == 60
    assert same(everything(data.val_dataloader()), everything(data.test_dataloader()))


def test_validation_must_leave_something_to_train_on():
    with pytest.raises(ValueError, match="smaller than the 60 training images in nowhere, but go"):
        Noise(val_size=60).setup("fit")
