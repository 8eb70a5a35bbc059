import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from steer_lightning.modules import ImageFlowModule
from steer_lightning.nn import CNF, ConcatSquashField, Flow, Transport
from steer_lightning.utils.seeding import stream
from tests.helpers.models import image_flow, lively, tiny_trainer
from tests.helpers.watching import Log, weights

N, BATCH_SIZE = 7, 3  # the last batch is short


def grey_images(n=N):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 1, 4, 4), generator=generator).float()


def loader(images=None, batch_size=BATCH_SIZE):
    return DataLoader(TensorDataset(grey_images() if images is None else images), batch_size)


def make_module(**settings):
    torch.manual_seed(0)
    return ImageFlowModule(lively(image_flow((1, 4, 4))), **settings)


def identity_module(**settings):
    """The logit and a normal density, and nothing else."""
    flow = image_flow((1, 4, 4), alpha=0.05)
    for block in flow.blocks:
        nn.init.zeros_(block.vector_field.layers[-1].bias)
    return ImageFlowModule(flow, **settings)


def identity_bits(x):
    """Bits per dimension of ``logit(x) ~ N(0, 1)``, for each image."""
    s = 0.05 + 0.9 * x.double().numpy()
    y = np.log(s / (1.0 - s))
    log_p = stats.norm.logpdf(y) + np.log(0.9 / (s * (1.0 - s)))
    return 8.0 - log_p.reshape(len(x), -1).mean(1) / math.log(2.0)


class Ruler(Flow):
    """Costs ``8 + mean(u)`` bits per dimension, and keeps every ``u``."""

    def __init__(self):
        super().__init__((1, 4, 4))
        self.zero = nn.Parameter(torch.zeros(()))
        self.seen = []

    def transport(self, x, *, generator=None, regularize=False):
        u = 256.0 * x - (256.0 * x).floor()
        self.seen.append(u.detach().clone())
        # What the base's density at zero adds is taken off again.
        nats = -u.flatten(1).sum(1) * math.log(2.0) + 8.0 * math.log(2.0 * math.pi)
        return Transport(torch.zeros_like(x).flatten(1), nats + self.zero)

    def inverse(self, z):
        return z.view(-1, 1, 4, 4)


def test_validation_and_bin_centres_in_closed_form(trainer):
    module = identity_module()
    (found,) = trainer.validate(module, loader(), verbose=False)
    u = [
        torch.rand(len(grey), 1, 4, 4, generator=module.noise_stream("val", i))
        for i, (grey,) in enumerate(loader())
    ]
    expected = identity_bits((grey_images() + torch.cat(u)) / 256).mean()
    assert found == {"val/bits_per_dim": pytest.approx(expected, abs=1e-4)}
    (found,) = trainer.test(module, loader(), verbose=False)
    expected = identity_bits((grey_images() + 0.5) / 256).mean()
    assert found["test/bits_per_dim_center"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("test_draws", [2, 5])
def test_mean_and_standard_error_over_the_draws(trainer, test_draws):
    flow = Ruler()
    (found,) = trainer.test(ImageFlowModule(flow, test_draws=test_draws), loader(), verbose=False)
    batches = [flow.seen[i : i + 1 + test_draws] for i in range(0, len(flow.seen), 1 + test_draws)]
    assert [len(batch[0]) for batch in batches] == [3, 3, 1]
    draws = [torch.cat([batch[1 + draw] for batch in batches]) for draw in range(test_draws)]
    means = np.array([8.0 + u.double().mean().item() for u in draws])  # all images weigh the same
    assert found["test/bits_per_dim"] == pytest.approx(means.mean(), abs=1e-5)
    stderr = means.std(ddof=1) / math.sqrt(test_draws)
    assert found["test/bits_per_dim_stderr"] == pytest.approx(stderr, abs=1e-5)
    assert stderr > 1e-4
    assert found["test/bits_per_dim_center"] == pytest.approx(8.5)
    assert len({round(mean, 6) for mean in means}) == test_draws
    assert stats.kstest(torch.cat(draws).flatten().numpy(), "uniform").pvalue > 0.01


def test_a_second_test_starts_afresh(trainer):
    module = make_module()
    first, second = (trainer.test(module, loader(), verbose=False) for _ in range(2))
    assert first == second
    (other,) = trainer.test(module, loader(255.0 - grey_images()), verbose=False)
    assert all(other[key] != value for key, value in first[0].items())
    assert trainer.test(module, loader(), verbose=False) == first


def fit(module, ckpt_path=None, **settings):
    """The trainer, the losses, and what the validations gave."""
    log = Log()
    settings = {"max_epochs": 2, "num_sanity_val_steps": 0, **settings}
    trainer = tiny_trainer(log, **settings)
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path, weights_only=True)
    return trainer, log.losses, [metrics.get("val/bits_per_dim") for metrics in log.val]


def test_the_global_stream_neither_moves_the_noise_nor_is_moved_by_it(trainer):
    module, batch = make_module(kinetic_weight=1.0), grey_images(3)
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="`self.trainer` reference is not registered"):
        first = module.training_step(batch, 0)
    module.evaluate(batch)
    module.predict_step(batch, 0)
    assert torch.equal(torch.get_rng_state(), before)
    other = make_module(kinetic_weight=1.0)
    seed = torch.initial_seed()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.rand(5)
        with pytest.warns(UserWarning, match="`self.trainer` reference is not registered"):
            assert torch.equal(other.training_step(batch, 0), first)


def test_the_seed_is_agreed_from_rank_zero_and_ranks_draw_apart(trainer, monkeypatch):
    module = make_module()
    monkeypatch.setattr(trainer.strategy, "broadcast", lambda obj, src=0: 99)
    trainer.validate(module, loader(), verbose=False)

    def noise():
        return torch.rand(4, generator=module.noise_stream("train", 5))

    expected = torch.rand(4, generator=stream("cpu", "flow", 99, "train", 5, 0))
    assert torch.equal(noise(), expected)
    monkeypatch.setattr(ImageFlowModule, "global_rank", 1)
    assert not torch.equal(noise(), expected)


def test_the_seed_decides_the_noise_and_a_resumed_run_continues_it(tmp_path, monkeypatch):
    settings = {"kinetic_weight": 0.1, "jacobian_weight": 0.1}
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    whole, first = make_module(**settings), make_module(**settings)
    _, losses, checks = fit(whole, max_epochs=4)
    trainer, first_losses, first_checks = fit(first)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    _, other_losses, other_checks = fit(make_module(**settings))
    assert all(a != b for a, b in zip(first_losses, other_losses, strict=True))
    assert first_checks != other_checks
    second = make_module(**settings)  # the seed of the checkpoint stays
    _, rest, rest_checks = fit(second, tmp_path / "half.ckpt", max_epochs=4)
    assert first_losses + rest == losses
    assert first_checks + rest_checks == checks
    assert torch.equal(weights(second), weights(whole))
    assert not torch.equal(weights(first), weights(whole))


def test_the_state_of_the_noise_is_plain_and_may_be_missing():
    module, checkpoint = make_module(), {}
    module.on_load_checkpoint(checkpoint)
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["noise"] == {"seed": None, "batches": 0}


def test_predictions_are_samples_within_the_unit_cube(trainer):
    module = make_module(temperature=3.0)
    predictions = trainer.predict(module, loader())
    assert [images.shape for images in predictions] == [(n, 1, 4, 4) for n in (3, 3, 1)]
    images = torch.cat(predictions)
    assert len(images.unique(dim=0)) == N
    again = torch.cat(trainer.predict(module, loader(255.0 - grey_images())))
    assert torch.equal(images, again)  # they depend on how many images there are, and on no image
    with torch.inference_mode():
        samples = module.flow.sample(3, module.noise_stream("samples", 0), 3.0)
    assert float(samples.min()) < 0.0
    assert torch.equal(images[:3], samples.clamp(0.0, 1.0))


@pytest.mark.parametrize("batch", ["tensor", "tuple", "list", "bytes"])
def test_images_alone_or_at_the_front_of_a_batch(batch):
    module, grey = make_module(), grey_images(3)
    kinds = {"tuple": (grey, torch.arange(3)), "list": [grey], "bytes": grey.to(torch.uint8)}
    given = kinds.get(batch, grey)
    found = module.evaluate(given)
    assert found["loss"] is found["bits_per_dim"]
    assert torch.equal(found["loss"], module.evaluate(grey)["loss"])


def test_bytes_have_the_precision_of_the_trainer(monkeypatch):
    batch, module = grey_images(3).to(torch.uint8), make_module().double()
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float64)  # as in `64-true`
    assert module.evaluate(batch)["loss"].dtype == torch.float64


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (grey_images() / 255.0, "whole numbers 0 to 255, but got values from 0."),
        (grey_images() + 255.0, "to 5"),
        (grey_images() - 255.0, "but got values from -2"),
        (grey_images() + 0.5, "`--data.pixels=uint8`"),
        (grey_images() * torch.nan, "but got values from nan to nan"),
        (grey_images()[..., :3], "Expected images of shape (B, 1, 4, 4), but got (3, 1, 4, 3)"),
        (grey_images().expand(N, 3, 4, 4), "of shape (B, 1, 4, 4), but got (3, 3, 4, 4)"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_other_images_are_refused_in_the_first_batch(trainer, stage, images, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(trainer, stage)(make_module(), loader(images))
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_draws": 1}, "`test_draws` >= 2, so that there is a standard error, but got 1"),
        (
            {"flow": CNF(ConcatSquashField(2, (4,)), (2,))},
            "Expected a flow of images (C, H, W), but got one of (2,). CNFModule trains flows of",
        ),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageFlowModule(**{"flow": image_flow((1, 4, 4)), **arguments})
