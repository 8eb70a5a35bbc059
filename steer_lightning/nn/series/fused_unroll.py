r"""The unroll of an ODE-RNN as one operation, whose backward pass is written out.

Autograd would keep a tape of every operation, and multiply matrices for each parameter in each
step. Here the gradient in the state goes back step by step, and that in a parameter is one product
for all steps. With :math:`\lambda` the gradient in the mean that an Euler step
:math:`\mu' = \mu + \Delta t\, f(\mu)` arrives with,

.. math::
    \bar\mu = \lambda + (\partial f / \partial \mu)^T (\Delta t\, \lambda), \qquad
    \overline{\Delta t} = f^T \lambda;

:mod:`steer_lightning.nn.series.network_gradient` has the rest of the field's gradient,
:mod:`steer_lightning.nn.series.gated_update` that of the updates.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from steer_lightning.nn.series.gated_update import UpdateGradient, gated_update
from steer_lightning.nn.series.network_gradient import (
    Network,
    NetworkGradient,
    apply_network,
    transposed,
)
from steer_lightning.nn.series.unroll_steps import UnrollSteps


class UnrollNetworks(NamedTuple):
    """What an unroll applies to mean or state.

    Args:
        field: From the mean to its derivative.
        gates: From the state to both gates.
        new: From the state that is not reset to the new one.
    """

    field: Network
    gates: Network
    new: Network


class UnrollOffsets(NamedTuple):
    """What the networks read beside the state.

    Args:
        field: In each step, shape ``(A, H)``.
        gates: In each update, shape ``(N, 2 H)``.
        new: Likewise, shape ``(N, H)``.
    """

    field: Tensor
    gates: Tensor
    new: Tensor


def fused_unroll(
    steps: UnrollSteps, networks: UnrollNetworks, offsets: UnrollOffsets
) -> tuple[Tensor, Tensor]:
    """Unroll from a state of zeros; differentiable in every tensor, once.

    Returns:
        Means on arrival, shape ``(A, R)``, and states of mean and standard deviation after the
        update, if there is one, shape ``(A, 2 R)``.

    Raises:
        RuntimeError: In a backward pass with ``create_graph=True``.
    """
    tensors = (steps.dt, *offsets, *networks.gates, *networks.new, *networks.field)
    saves = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    unrolled: tuple[Tensor, Tensor] = _FusedUnroll.apply(
        steps.active, steps.updating, steps.rows, saves, *tensors
    )
    return unrolled


class _FusedUnroll(torch.autograd.Function):
    """Of tensors: four of the steps, three of the gates, three of the new state, the field's."""

    @staticmethod
    def forward(
        ctx: Any,
        active: list[int],
        updating: list[int],
        rows: Tensor,
        saves: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        dt, *offsets = tensors[:4]
        gates, new, field = map(transposed, (tensors[4:7], tensors[7:10], tensors[10:]))
        steps = zip(
            active,
            updating,
            rows.split_with_sizes(updating),
            dt.split_with_sizes(active),
            offsets[0].split_with_sizes(active),
            offsets[1].split_with_sizes(updating),
            offsets[2].split_with_sizes(updating),
            strict=True,
        )
        n_states = new[-1].shape[0] // 2
        state = dt.new_zeros(active[0], 2 * n_states)
        arrivals: list[Tensor] = []
        states, evaluations, updates = [], [], []
        for n, n_updates, some, dt_m, of_field, of_gates, of_new in steps:
            evaluation = apply_network(field, of_field, state[:n, :n_states])
            arrival = torch.addcmul(evaluation[0], dt_m, evaluation[-1])
            state = torch.cat([arrival, state[:n, n_states:]], dim=1)
            if n_updates or not arrivals:  # the first step always, so that there is one to keep
                before = state.index_select(0, some)
                after, tape = gated_update(gates, new, (of_gates, of_new), before)
                state.index_copy_(0, some, after)
                if saves:
                    updates.append(tape)
            arrivals.append(arrival)
            states.append(state)
            if saves:
                evaluations.append(evaluation)
        if saves:
            ctx.active, ctx.updating = active, updating
            kept = [torch.cat(parts) for parts in zip(*evaluations, strict=True)]
            kept += [torch.cat(parts) for parts in zip(*updates, strict=True)]
            ctx.save_for_backward(rows, *tensors, *kept)
        return torch.cat(arrivals), torch.cat(states)

    @staticmethod
    def backward(ctx: Any, to_arrivals: Tensor, to_states: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # Not `once_differentiable`, which passes where the loss is linear in the unroll.
            raise RuntimeError(
                "Expected a backward pass without create_graph=True: the fused unroll of "
                "an ODE-RNN has no second derivative. A forward hook on its field makes it unroll "
                "step by step, by autograd."
            )
        active, updating, needs = ctx.active, ctx.updating, ctx.needs_input_grad[4:]
        rows, *saved = ctx.saved_tensors
        dt, weights, kept = saved[0], saved[4 : len(needs)], saved[len(needs) :]
        *inputs, derivatives = kept[:-6]  # the last six are the updates'
        field = NetworkGradient(weights[6:], inputs, active)
        update = UpdateGradient(weights[:3], weights[3:6], kept[-6:], updating)
        some = rows.split_with_sizes(updating)
        steps = zip(
            dt.split_with_sizes(active),
            to_arrivals.split_with_sizes(active),
            to_states.split_with_sizes(active),
            strict=True,
        )
        n_states = to_arrivals.shape[1]
        whole = to_states.new_zeros(active[0], 2 * n_states)
        arrivals = []
        for m, (dt_m, to_arrival, to_state) in reversed(list(enumerate(steps))):
            state = whole[: active[m]].add_(to_state)
            if updating[m] or m == 0:
                before = update.pull(m, state.index_select(0, some[m]))
                state.index_copy_(0, some[m], before)
            mean = state[:, :n_states]
            arrival = mean + to_arrival
            torch.addmm(arrival, field.pull(m, dt_m * arrival), weights[6], out=mean)
            arrivals.append(arrival)
        to_dt = (
            (torch.cat(arrivals[::-1]) * derivatives).sum(1, keepdim=True) if needs[0] else None
        )
        field_offset, *to_field = field.gradients(needs[10:])
        gates_offset, *to_gates = update.gates.gradients(needs[4:7])
        new_offset, *to_new = update.new.gradients(needs[7:10])
        offsets = (field_offset, gates_offset, new_offset)
        return None, None, None, None, to_dt, *offsets, *to_gates, *to_new, *to_field
