"""The multi-scale image model of the public FFJORD and RNODE code, written anew from its layout.

Its ``state_dict`` has their names. Nothing here uses this project's own code.
"""

import math
from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchdiffeq import odeint


class ConcatConv(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self._layer = nn.Conv2d(c_in + 1, c_out, 3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self._layer(torch.cat([torch.ones_like(y[:, :1]) * t, y], dim=1))


class Diffeq(nn.Module):
    def __init__(self, channels: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        widths = pairwise([channels, *hidden, channels])
        self.layers = nn.ModuleList(ConcatConv(c_in, c_out) for c_in, c_out in widths)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            y = F.softplus(layer(t, y))
        return last(t, y)


class Odefunc(nn.Module):
    def __init__(self, diffeq: nn.Module) -> None:
        super().__init__()
        self.diffeq = diffeq
        self.register_buffer("_num_evals", torch.tensor(0.0))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.diffeq(t, y)


class RegularizedOdefunc(nn.Module):
    def __init__(self, odefunc: nn.Module) -> None:
        super().__init__()
        self.odefunc = odefunc

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.odefunc(t, y)


class Block(nn.Module):
    def __init__(self, odefunc: nn.Module, end_time: float) -> None:
        super().__init__()
        self.odefunc = odefunc
        self.register_buffer("sqrt_end_time", torch.tensor(end_time).sqrt())

    def forward(self, y: Tensor) -> Tensor:
        t = torch.stack([torch.zeros_like(self.sqrt_end_time), self.sqrt_end_time**2])
        return odeint(self.odefunc, y, t, method="dopri5", rtol=1e-9, atol=1e-9)[-1]


class Squeeze(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        b, c, h, w = y.shape
        windows = y.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return windows.reshape(b, 4 * c, h // 2, w // 2)


class LogitTransform(nn.Module):
    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        s = self.alpha + (1 - 2 * self.alpha) * x
        return torch.log(s) - torch.log(1 - s)


class Chain(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.chain = nn.Sequential(*layers)

    def forward(self, y: Tensor) -> Tensor:
        return self.chain(y)


class ReleasedModel(nn.Module):
    """Carries images to latents; half of the channels leave after each scale but the last."""

    def __init__(
        self,
        event_shape: tuple[int, int, int],
        hidden: tuple[int, ...],
        n_blocks: int = 2,
        alpha: float = 1e-5,
        end_time: float = 1.0,
        regularized: bool = False,
    ) -> None:
        super().__init__()

        def blocks(channels: int) -> list[nn.Module]:
            fields = [Odefunc(Diffeq(channels, hidden)) for _ in range(n_blocks)]
            if regularized:
                fields = [RegularizedOdefunc(field) for field in fields]
            return [Block(field, end_time) for field in fields]

        c, h, w = event_shape
        layers: list[nn.Module] = [LogitTransform(alpha)]
        self.transforms = nn.ModuleList()
        while min(h // 2, w // 2) >= 4:
            self.transforms.append(Chain(*layers, *blocks(c), Squeeze(), *blocks(4 * c)))
            layers, c, h, w = [], 2 * c, h // 2, w // 2
        self.transforms.append(Chain(*layers, *blocks(c)))

    def forward(self, x: Tensor) -> Tensor:
        latents = []
        *scales, last = self.transforms
        for scale in scales:
            y = scale(x)
            x, latent = y[:, : y.shape[1] // 2], y[:, y.shape[1] // 2 :]
            latents.append(latent)
        return torch.cat([y.reshape(len(y), -1) for y in (*latents, last(x))], dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of one image ``(C, H, W)``, by the determinant of the whole Jacobian."""
        n = x.numel()
        copies = x.expand(n, *x.shape).clone().requires_grad_()
        z = self(copies)
        (jacobian,) = torch.autograd.grad(z.diagonal().sum(), copies)
        log_normal = -0.5 * (z[0].square().sum() + n * math.log(2 * math.pi))
        return (log_normal + torch.linalg.slogdet(jacobian.reshape(n, n))[1]).detach()


def released_weights(model: ReleasedModel, parallel: bool = False) -> OrderedDict[str, Tensor]:
    """Its ``state_dict``, as of a model trained in parallel or not."""
    prefix = "module." if parallel else ""
    return OrderedDict((prefix + name, tensor) for name, tensor in model.state_dict().items())
