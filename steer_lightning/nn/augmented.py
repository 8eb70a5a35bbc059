"""Room for trajectories to pass each other: states with zeros appended."""

import torch
from torch import Tensor, nn


class Augmented(nn.Module):
    """Solve a block from a state with zeros appended, as Augmented Neural ODEs do.

    .. math:: y(t_0) = (x, 0)

    The added dimensions of vectors ``(B, D)``, or channels of images ``(B, C, H, W)``, follow
    those of the input.

    Args:
        block: Maps a state of ``n_extra`` more dimensions than the input, and times if they are
            asked for, to the solution: :class:`~steer_lightning.nn.ODEBlock` for instance.
        n_extra: Number of dimensions or channels to append.

    Raises:
        ValueError: If ``n_extra < 1``, or the input has no axis 1 to append to.

    References:
        Dupont et al., *Augmented Neural ODEs*, NeurIPS 2019, arXiv:1904.01681.

    Example:
        >>> from steer_lightning.nn import ConvField, ODEBlock
        >>> block = Augmented(ODEBlock(ConvField(channels=1 + 5, filters=64)), n_extra=5)
        >>> block(torch.zeros(2, 1, 4, 4)).shape
        torch.Size([2, 6, 4, 4])
    """

    def __init__(self, block: nn.Module, n_extra: int) -> None:
        super().__init__()
        if n_extra < 1:
            raise ValueError(
                f"Expected `n_extra` >= 1, but got {n_extra}. Without dimensions to append, use "
                f"the block itself."
            )
        self.block = block
        self.n_extra = n_extra

    def forward(self, x: Tensor, t_eval: Tensor | None = None) -> Tensor:
        """Features ``(B, C + n_extra, ...)``, or at all times of ``t_eval``, ``(T, B, ...)``."""
        if x.ndim < 2:
            raise ValueError(
                f"Expected an input of shape (B, D) or (B, C, H, W), but got {tuple(x.shape)}. "
                f"Give numbers an axis of length 1: x[:, None]."
            )
        zeros = x.new_zeros(x.shape[0], self.n_extra, *x.shape[2:])
        y0 = torch.cat([x, zeros], dim=1)
        return self.block(y0) if t_eval is None else self.block(y0, t_eval)
