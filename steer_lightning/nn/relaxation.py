"""A vector field that can be stiff, and learned to be."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from steer_lightning.nn.fields import ACTIVATIONS, feedforward
from steer_lightning.utils.checks import check_choice, check_widths


class RelaxationField(nn.Module):
    r"""Each component relaxes to a target, at a rate that may span many orders of magnitude.

    .. math:: f_i(y) = s_i\, e^{\gamma r_i(y)}\, (c_i(y) - y_i)

    One network gives all logarithms of rates :math:`r_i` and all targets :math:`c_i`. It sees the
    state through :math:`\operatorname{asinh}(y / \epsilon) / \operatorname{asinh}(1 / \epsilon)`,
    as it looks at several magnitudes :math:`\epsilon`. A network whose output is the derivative
    itself would have to be right to as many digits as the rates differ by.

    At first the rates are ``rates`` and the targets ``target``, whatever the state is: linear, and
    stiff where the rates differ. It ignores time.

    Args:
        rates: Rates :math:`s_i` at first, one for each component of the state, in inverse units
            of time.
        hidden: Width of each hidden layer.
        magnitudes: The :math:`\epsilon`, in units of the state.
        target: All targets at first.
        sharpness: The factor :math:`\gamma`.
        activation: ``"tanh"``, ``"softplus"`` or ``"relu"``.

    Raises:
        ValueError: If a rate or magnitude is not positive and finite, there is none, a width is
            not positive or ``activation`` is unknown.

    References:
        After the scaling of equations in Kim et al., *Stiff neural ordinary differential
        equations*, Chaos 31, 2021, and liquid time constants, Hasani et al., AAAI 2021.

    Example:
        >>> field = RelaxationField(rates=[1.0, 1000.0], hidden=[8])
        >>> field(torch.tensor(0.0), torch.tensor([[1.0, 1.0]])).round().tolist()
        [[-1.0, -1000.0]]
    """

    autonomous = True
    rates: Tensor

    def __init__(
        self,
        rates: Sequence[float],
        hidden: Sequence[int] = (32, 32),
        magnitudes: Sequence[float] = (1.0,),
        target: float = 0.0,
        sharpness: float = 3.0,
        activation: Literal["tanh", "softplus", "relu"] = "tanh",
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        for name, values in (("rates", rates), ("magnitudes", magnitudes)):
            if not values or not all(0.0 < value < math.inf for value in values):
                raise ValueError(
                    f"Expected one or more positive and finite `{name}`, but got {list(values)}."
                )
        dim = len(rates)
        check_widths(dim, hidden)
        self.register_buffer("rates", torch.tensor(rates), persistent=False)
        self.magnitudes = tuple(magnitudes)
        self.sharpness = sharpness
        self.network = feedforward([dim * len(magnitudes), *hidden, 2 * dim], activation, None)
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        nn.init.constant_(last.bias[dim:], target)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        seen = [torch.asinh(y / size) / math.asinh(1.0 / size) for size in self.magnitudes]
        log_rate, target = self.network(torch.cat(seen, dim=-1)).chunk(2, dim=-1)
        return self.rates * torch.exp(self.sharpness * log_rate) * (target - y)
