"""Latent ODEs: an encoder, a decoder that is one smooth solve, and what is read off it."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from steer_lightning.horizon import GridHorizon
from steer_lightning.nn.block import Block
from steer_lightning.nn.fields import autonomous_field, feedforward
from steer_lightning.nn.series import SeriesBatch, keep_times
from steer_lightning.nn.series.encoders import ODERNNEncoder, RNNEncoder, observations
from steer_lightning.nn.series.forecaster import Forecast
from steer_lightning.nn.series.ode_rnn import Posterior
from steer_lightning.solvers import AdaptiveSolver, Solver
from steer_lightning.utils.checks import check_choice, check_state
from steer_lightning.utils.problem import default_times


class LatentDecoder(Block):
    """Follow a latent state through each sample's own times, in one smooth solve for all.

    The field ignores time, so that samples may start together: the solve runs over the longest
    elapsed time, and each sample is read where its own times are. STEER stretches each interval
    between neighbouring times; the stretched intervals add up to new times to be read. Samples
    share the steps of the solve, and so influence each other within its tolerance.

    Args:
        vector_field: ``f(t, z)`` that ignores ``t``.
        solver: Integrator that can be read between its steps; dopri5 at ``rtol=1e-3, atol=1e-4``
            if not given.
        eval_solver: Integrator in eval mode; ``solver`` if not given.

    Raises:
        ValueError: If the field does not say that it ignores time (``autonomous = True``).

    Example:
        >>> from steer_lightning.nn import MLPField
        >>> decoder = LatentDecoder(MLPField(4, (8,), time_dependent=False))
        >>> times = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.3, 0.3]])
        >>> decoder(torch.zeros(5, 2, 4), times, torch.tensor([3, 2])).shape
        torch.Size([5, 2, 3, 4])
    """

    horizon: GridHorizon

    def __init__(
        self,
        vector_field: nn.Module,
        solver: Solver | None = None,
        eval_solver: Solver | None = None,
    ) -> None:
        super().__init__()
        if not getattr(vector_field, "autonomous", False):
            raise ValueError(
                "Expected a vector field that ignores time, with `autonomous = True`, so that "
                "samples with other times can share a solve. MLPField has `time_dependent=False`."
            )
        solver = solver or AdaptiveSolver(rtol=1e-3, atol=1e-4)
        self.set_up(vector_field, solver, eval_solver, GridHorizon())

    def forward(self, z0: Tensor, times: Tensor, lengths: Tensor) -> Tensor:
        """Follow ``z0``, ``S`` states of each sample at its first time, shape ``(S, B, L)``.

        ``times``, ``(B, T)``, increase and are padded by the last one; ``lengths``, ``(B,)``,
        counts them.

        Returns:
            States at every time, shape ``(S, B, T, L)``; in the padding that at the last time.

        Raises:
            ValueError: If times decrease or are not finite.
        """
        check_state(z0)
        elapsed, gaps = times - times[:, :1], times.diff(dim=1)
        if not bool((gaps >= 0.0).all()):
            raise ValueError("Expected `times` to be finite and to increase along each series.")
        rates = self.horizon.rates(times, lengths)
        if rates is not None:
            stretched = (rates * gaps).cumsum(1)
            elapsed = torch.cat([elapsed[:, :1], stretched], dim=1)
        end = float(elapsed.detach().max())
        if not end > 0:  # one time for each sample
            return z0[:, :, None].expand(-1, -1, times.shape[1], -1)
        ends = default_times(z0, 0.0, end)
        nominal = default_times(z0, 0.0, float((times - times[:, :1]).max()))
        solution = self.solve_at(
            self.vector_field, z0.flatten(0, 1), ends, nominal=nominal, dense=True
        )
        z: Tensor = solution.at(elapsed.repeat(len(z0), 1))
        return z.view(*z0.shape[:2], *z.shape[1:])


class LatentODE(nn.Module):
    r"""Encode a series into a latent state at its first time, follow that, read values off it.

    .. math::
        z_0 \sim q(z_0 \mid x) = \mathcal{N}(\mu, \sigma^2), \qquad
        \frac{dz}{dt} = f(z), \qquad \hat{x}(t) = W z(t) + c

    Args:
        n_features: Features ``D`` of the series.
        n_latents: Width ``L`` of the latent state.
        n_states: Width of the encoder's state.
        encoder: ``"ode_rnn"`` unrolls back over the observations and follows an ODE between them,
            ``"rnn"`` has a GRU that reads the gaps; or a module from ``Observations`` to the
            ``Posterior`` about the latent state.
        n_hidden: Width of the hidden layers of the ODE-RNN's gates.
        recognition_hidden: Hidden layers of the ODE-RNN's field.
        generative_hidden: Hidden layers of the latent field.
        max_step: Longest Euler step of the ODE-RNN, as a fraction of a sample's time range.
        vector_field: Latent field ``f(t, z)`` that ignores ``t``; if not given, a tanh network of
            ``generative_hidden``.
        solver: Of the latent ODE; dopri5 at ``rtol=1e-3, atol=1e-4`` if not given.
        eval_solver: The same in eval mode; ``solver`` if not given.

    Raises:
        ValueError: If ``encoder`` is unknown, a width is not positive or the field has time.

    References:
        Rubanova et al., *Latent ODEs*, NeurIPS 2019, arXiv:1907.03907.

    Example:
        >>> from steer_lightning.nn.series import make_series
        >>> t, x = torch.tensor([0.0, 0.4, 1.0]), torch.ones(3, 2)
        >>> latent_ode = LatentODE(n_features=2, n_latents=4)
        >>> latent_ode(make_series([t], [x], [x]), n_draws=3).mean.shape
        torch.Size([3, 1, 3, 2])
    """

    def __init__(
        self,
        n_features: int,
        n_latents: int = 10,
        n_states: int = 20,
        encoder: Literal["ode_rnn", "rnn"] | nn.Module = "ode_rnn",
        n_hidden: int = 50,
        recognition_hidden: Sequence[int] = (50, 50),
        generative_hidden: Sequence[int] = (50, 50),
        max_step: float = 0.02,
        vector_field: nn.Module | None = None,
        solver: Solver | None = None,
        eval_solver: Solver | None = None,
    ) -> None:
        super().__init__()
        self.n_features = n_features
        if isinstance(encoder, nn.Module):
            self.encoder = encoder
        elif encoder == "rnn":
            self.encoder = RNNEncoder(n_features, n_states, n_latents)
        else:
            check_choice("encoder", encoder, ("ode_rnn", "rnn"))
            recognition = autonomous_field(n_states, recognition_hidden)
            self.encoder = ODERNNEncoder(
                recognition, n_features, n_states, n_latents, n_hidden, max_step
            )
        if vector_field is None:
            vector_field = autonomous_field(n_latents, generative_hidden)
        self.decoder = LatentDecoder(vector_field, solver, eval_solver)
        self.readout = feedforward([n_latents, n_features])

    def forward(
        self, batch: SeriesBatch, n_draws: int = 1, generator: torch.Generator | None = None
    ) -> Forecast:
        """Predict at the times that are asked for, and at the first one of each sample.

        ``n_draws`` latent states are drawn with a ``generator`` on the device of the batch.
        """
        posterior = self.encode(batch)
        asked = keep_times(batch, batch.asked)
        z0 = self.draw(posterior, n_draws, generator)
        z = self.decoder(z0, asked.times, asked.lengths)
        return Forecast(asked, self.readout(z), z, z0, posterior)

    def encode(self, batch: SeriesBatch) -> Posterior:
        """Posterior of the latent state, given what is observed, in the dtype of the values."""
        posterior: Posterior = self.encoder(observations(batch))
        # Cast because autocast lowers what an encoder's last layer gives.
        return Posterior(*(part.to(batch.values.dtype) for part in posterior))

    def draw(
        self, posterior: Posterior, n_draws: int, generator: torch.Generator | None
    ) -> Tensor:
        mean, std = posterior
        shape = (n_draws, *mean.shape)
        noise = torch.randn(shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + std * noise

    def predict_at(
        self,
        batch: SeriesBatch,
        times: Tensor,
        n_draws: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Values ``(S, B, G, D)`` at any times ``(B, G)``, also past a sample's end.

        They increase, none before the sample's first one.
        """
        z0 = self.draw(self.encode(batch), n_draws, generator)
        grid = torch.cat([batch.times[:, :1], times], dim=1)
        z = self.decoder(z0, grid, batch.lengths.new_full((len(grid),), grid.shape[1]))
        return self.readout(z[:, :, 1:])
