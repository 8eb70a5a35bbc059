r"""The unroll of an ODE-RNN as one operation, whose backward pass is written out.

The gradient in the state goes back step by step, and that in a parameter is one product for all
steps. Gradients are marked by a bar. An Euler step :math:`\mu' = \mu + \Delta t\, f(\mu)`, with
:math:`\lambda` the gradient that it arrives with:

.. math::
    \bar\mu = \lambda + (\partial f / \partial \mu)^T (\Delta t\, \lambda), \qquad
    \overline{\Delta t} = f^T \lambda.

A tanh network, with :math:`x_0` its input, :math:`a_1 = W_0 x_0 + o`, :math:`x_i = \tanh a_i`,
:math:`a_{i+1} = W_i x_i + b_i` and the last :math:`a` its output; the offset :math:`o` holds the
bias and what else the first layer reads:

.. math::
    \bar a_i = W_i^T \bar a_{i+1} \odot (1 - x_i^2), \quad \bar o = \bar a_1, \quad
    \bar W_i = \sum \bar a_{i+1} x_i^T, \quad \bar b_i = \sum \bar a_{i+1}.

The gated update of a state :math:`s = (\mu, \sigma)`, by a network :math:`g` of both gates and a
network :math:`c` of the new state, with :math:`\Sigma` the sum over mean and standard deviation:

.. math::
    (u, r) &= \operatorname{sigmoid} g(s), \quad q = r \odot s, \quad p = c(q), \quad
    n = (p_\mu, |p_\sigma|), \quad s' = n + u \odot (s - n) \\
    \bar p &= \bar s' \odot (1 - u) \odot (1, \operatorname{sign} p_\sigma), \qquad
    \bar q = (\partial c / \partial q)^T \bar p \\
    \bar g &= (\Sigma\, \bar s' \odot (s - n) \odot u (1 - u),\;
               \Sigma\, \bar q \odot s \odot r (1 - r)) \\
    \bar s &= \bar s' \odot u + \bar q \odot r + (\partial g / \partial s)^T \bar g.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steer_lightning.nn.series.unroll import UnrollSteps

Network = tuple[Tensor, ...]
"""``(W_0, W_1, b_1, W_2, b_2, ...)``; the bias of the first layer is in its offset."""


def fused_unroll(
    steps: UnrollSteps, networks: Sequence[Network], offsets: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Unroll from a state of zeros; differentiable in every tensor, once.

    Args:
        steps: Of all samples, ``A`` of them with ``N`` updates.
        networks: The field, from the mean; both gates, from the state; the new state, from the
            state that is not reset.
        offsets: What they read beside the state, biases included: shapes ``(A, H)``, ``(N, 2 H)``
            and ``(N, H)``.

    Returns:
        Means on arrival, shape ``(A, R)``, and states of mean and standard deviation after the
        update, if there is one, shape ``(A, 2 R)``.
    """
    field, gates, new = networks
    tensors = (steps.dt, *offsets, *gates, *new, *field)
    saves = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return _FusedUnroll.apply(steps.active, steps.updating, steps.rows, saves, *tensors)


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
        # Transposed once for all steps.
        gates, new, field = (
            [part.t() if part.ndim == 2 else part for part in network]
            for network in (tensors[4:7], tensors[7:10], tensors[10:])
        )
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
            evaluation = _apply(field, of_field, state[:n, :n_states])
            arrival = torch.addcmul(evaluation[0], dt_m, evaluation[-1])
            state = torch.cat([arrival, state[:n, n_states:]], dim=1)
            if n_updates or not arrivals:  # the first step always, so that there is one to keep
                after, tape = _update(gates, new, of_gates, of_new, state.index_select(0, some))
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
        field = _NetworkGradient(weights[6:], inputs, active)
        update = _UpdateGradient(weights[:3], weights[3:6], kept[-6:], updating)
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
        to_dt = None
        if needs[0]:
            to_dt = (torch.cat(arrivals[::-1]) * derivatives).sum(1, keepdim=True)
        field_offset, *to_field = field.gradients(needs[10:])
        gates_offset, *to_gates = update.gates.gradients(needs[4:7])
        new_offset, *to_new = update.new.gradients(needs[7:10])
        offsets = (field_offset, gates_offset, new_offset)
        return None, None, None, None, to_dt, *offsets, *to_gates, *to_new, *to_field


def _apply(network: Sequence[Tensor], offset: Tensor, x: Tensor) -> list[Tensor]:
    """Inputs of all layers of a transposed network, ``x`` the first of them, and the output."""
    found = [x]
    x = torch.addmm(offset, x, network[0])
    for weight, bias in zip(network[1::2], network[2::2], strict=True):
        found.append(x.tanh_())
        x = torch.addmm(bias, x, weight)
    return [*found, x]


def _update(
    gates: Sequence[Tensor], new: Sequence[Tensor], of_gates: Tensor, of_new: Tensor, state: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """States ``(N, 2 R)`` after their update, and the tape that its gradient reads."""
    *_, hidden, gate = _apply(gates, of_gates, state)
    gate.sigmoid_()
    keep, reset = _halves(gate).chunk(2, dim=1)
    halves = _halves(state)
    *inputs, found = _apply(new, of_new, (halves * reset).view_as(state))
    after = torch.lerp(_proper(found), halves, keep).view_as(state)
    return after, (state, hidden, gate, *inputs, found)


def _halves(state: Tensor) -> Tensor:
    """Mean and standard deviation apart, or the two gates, shape ``(N, 2, R)``."""
    n, width = state.shape
    return state.view(n, 2, width // 2)


def _proper(found: Tensor) -> Tensor:
    """The new state, whose standard deviation is not negative, shape ``(N, 2, R)``."""
    mean, std = found.chunk(2, dim=1)
    return _halves(torch.cat([mean, std.abs()], dim=1))


class _NetworkGradient:
    """The gradient of a network, step by step from the last one back."""

    def __init__(
        self, network: Sequence[Tensor], inputs: Sequence[Tensor], counts: list[int]
    ) -> None:
        self.network = network
        self.inputs = inputs
        derivatives = [(1.0 - x.square()).split_with_sizes(counts) for x in reversed(inputs[1:])]
        self._derivatives = list(zip(*derivatives, strict=True)) or [()] * len(counts)
        self._found: list[list[Tensor]] = []

    def pull(self, m: int, output: Tensor) -> Tensor:
        """Gradient in the offset of step ``m``; times ``W_0`` it is that in the input."""
        found = [output]
        for weight, derivative in zip(self.network[-2:0:-2], self._derivatives[m], strict=True):
            output = torch.mm(output, weight).mul_(derivative)
            found.append(output)
        self._found.append(found)
        return output

    def gradients(self, needs: Sequence[bool]) -> list[Tensor | None]:
        """Gradient in the offsets of all steps, and those in the network which are needed."""
        outputs = [torch.cat(steps[::-1]) for steps in zip(*self._found, strict=True)][::-1]
        network: list[Tensor | None] = [None] * len(self.network)
        for i in (i for i, needed in enumerate(needs) if needed):
            layer = (i + 1) // 2
            is_weight = i == 0 or i % 2 == 1
            output = outputs[layer]
            network[i] = output.t() @ self.inputs[layer] if is_weight else output.sum(0)
        return [outputs[0], *network]


class _UpdateGradient:
    """The gradient of updates, likewise; ``tape`` is :func:`_update`'s, of all steps."""

    def __init__(
        self, gates: Sequence[Tensor], new: Sequence[Tensor], tape: list[Tensor], counts: list[int]
    ) -> None:
        state, hidden, gate, *inputs, found = tape
        self.gates = _NetworkGradient(gates, (state, hidden), counts)
        self.new = _NetworkGradient(new, inputs, counts)
        halves, (keep, reset) = _halves(state), _halves(gate).chunk(2, dim=1)
        sign = _halves(found.sign())
        sign[:, 0] = 1.0
        to_new = (1.0 - keep) * sign
        to_keep = (halves - _proper(found)) * (keep * (1.0 - keep))
        to_reset = halves * (reset * (1.0 - reset))
        factors = (keep, reset, to_new, to_keep, to_reset)
        self._factors = list(
            zip(*(factor.split_with_sizes(counts) for factor in factors), strict=True)
        )

    def pull(self, m: int, after: Tensor) -> Tensor:
        """Gradient in the states before step ``m``'s update, from that in those after it."""
        keep, reset, to_new, to_keep, to_reset = self._factors[m]
        halves = _halves(after)
        new_offset = self.new.pull(m, (halves * to_new).view_as(after))
        reset_state = _halves(torch.mm(new_offset, self.new.network[0]))
        gate = torch.cat([(halves * to_keep).sum(1), (reset_state * to_reset).sum(1)], dim=1)
        direct = (halves * keep).addcmul_(reset_state, reset).view_as(after)
        return torch.addmm(direct, self.gates.pull(m, gate), self.gates.network[0])
