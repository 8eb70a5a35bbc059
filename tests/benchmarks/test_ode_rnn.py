"""The plain code of the benchmark computes what the library does, where both should agree."""

import pytest
import torch
from torchdiffeq import odeint, odeint_adjoint

from benchmarks import ode_rnn
from benchmarks.configs import build
from benchmarks.timing import relative_difference
from steer_lightning.modules import LatentODEModule
from steer_lightning.nn import LatentODE, MLPField, Observations, ODERNNEncoder, observations
from steer_lightning.nn.series import make_series
from steer_lightning.solvers import AdaptiveSolver
from tests.helpers.models import seeded

GRID = torch.tensor([0.1, 0.13, 0.5, 0.9, 1.4], dtype=torch.float64)


def encoder(time_dependent=False):
    def build():
        field = MLPField(3, (8,), time_dependent=time_dependent)
        return ODERNNEncoder(field, n_features=2, n_states=3, n_latents=2, max_step=0.1)

    return seeded(build).double()


def module():
    def build():
        network = LatentODE(
            2, n_latents=3, n_states=4, max_step=0.1, solver=AdaptiveSolver(rtol=1e-9, atol=1e-9)
        )
        return LatentODEModule(network, noise_std=0.5, kl_wait_epochs=0)

    built = seeded(build).double()
    built.kl_wait_epochs -= 80  # the divergence counts
    return built


def batch(masked=False):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    mask = torch.ones_like(values)
    if masked:
        mask[0, 2], mask[:, 3], mask[1, 0, 1] = 0.0, 0.0, 0.0
    return make_series([GRID] * 3, list(values), list(mask))


@pytest.mark.parametrize("time_dependent", [False, True])
def test_the_union_unroll_is_the_librarys_on_a_shared_grid(time_dependent):
    # Not by `observations`, which leaves out what a sample does not observe.
    seen = Observations(*(getattr(batch(masked=True), name) for name in Observations._fields))
    own = encoder(time_dependent)
    expected = own(seen)
    assert own.rnn.stats.nfe_forward == 1 + 1 + 3 + 4 + 4  # the library counts a step to the end
    own.rnn.stats.reset()
    torch.testing.assert_close(ode_rnn.UnionUnroll(own)(seen), expected, rtol=1e-10, atol=1e-12)
    assert own.rnn.stats.nfe_forward == 1 + 3 + 4 + 4


def test_a_union_holds_every_observation_once():
    times = [torch.tensor([0.0, 0.5]), torch.tensor([0.0, 0.2, 0.5, 1.0])]
    values = [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0], [5.0], [6.0]])]
    series = make_series(times, values, [torch.ones_like(value) for value in values])
    union = ode_rnn.union_of(observations(series))
    assert torch.equal(union.times, torch.tensor([0.0, 0.2, 0.5, 1.0]))
    assert union.inputs[0].tolist() == [[1.0, 1.0], [0.0, 0.0], [2.0, 1.0], [0.0, 0.0]]
    assert union.inputs[1].tolist() == [[3.0, 1.0], [4.0, 1.0], [5.0, 1.0], [6.0, 1.0]]


def test_gaps_are_cut_by_the_range_of_the_batch():
    times = torch.tensor([0.0, 0.1, 0.5, 1.0])
    assert ode_rnn.euler_pieces(times, max_step=0.2) == [1, 2, 3]


@pytest.mark.parametrize("integrate", [odeint, odeint_adjoint])
def test_the_plain_loss_and_gradient_are_the_librarys_if_all_is_observed(integrate):
    own, series = module(), batch()
    loss, gradient, (nfe, _) = ode_rnn.training(own, series).step()
    assert own.kl_weight > 0.5
    plain = ode_rnn.training(ode_rnn.plain(own, integrate), series).step()
    torch.testing.assert_close(plain[0], loss, rtol=1e-7, atol=0.0)
    assert len(gradient) == sum(p.numel() for p in own.parameters())
    assert relative_difference(plain[1], gradient) < 1e-6
    assert nfe > own.network.encoder.rnn.stats.nfe_forward > 0
    assert (plain[2][1] > 0) == (integrate is odeint_adjoint)


@pytest.mark.parametrize("contend", [ode_rnn.encoding, ode_rnn.training])
@pytest.mark.parametrize("masked", [False, True])
def test_the_unrolls_are_told_apart_where_not_all_is_observed(contend, masked):
    own, series = module(), batch(masked)
    (loss, gradient, _), (plain_loss, plain_gradient, _) = (
        contend(model, series).step() for model in (own, ode_rnn.plain(own))
    )
    for difference in (relative_difference(loss, plain_loss),
                       relative_difference(gradient, plain_gradient)):  # fmt: skip
        assert (difference > 1e-10) == masked


def test_missing_data_is_told_and_nothing_measured(tmp_path):
    told = ode_rnn.run_physionet(tmp_path / "absent")
    assert "absent does not exist; give STEER_DATA_DIR" in told


@pytest.mark.parametrize("name", ["physionet", "periodic"])
def test_modules_are_those_of_the_configs(name):
    built, data = build(f"latent_ode/{name}", "--data.init_args.batch_size=7")
    assert data.batch_size == 7
    encoder = built.network.encoder
    assert encoder.rnn.max_step == 0.02
    assert encoder.rnn.n_states == {"physionet": 40, "periodic": 20}[name]
    assert built.network.n_features == data.n_features
