"""The contract between irregular time series and the models that learn from them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class SeriesBatch(NamedTuple):
    """Series with a time grid of their own, padded to the longest of the batch.

    Every sample has its own times. At each of them some features may be observed (``mask``), and
    some are to be predicted (``target_mask``): reconstruction has both alike, interpolation few
    observed and all to be predicted, extrapolation the first ones observed and the rest to be
    predicted.

    Args:
        times: Times, shape ``(B, T)``, floating, strictly increasing within each sample's length;
            padding repeats the last time.
        values: Values, shape ``(B, T, D)``, floating; zero where neither mask is one.
        mask: One where a value is observed, shape ``(B, T, D)``, of the dtype of ``values``.
        target_mask: One where a value is to be predicted, shape ``(B, T, D)``, likewise.
        lengths: Number of times of each sample, shape ``(B,)``, int64; the rest is padding.
        labels: Classes, int64: of each sample, shape ``(B,)``, or of each time, ``(B, T)``, with
            -1 where there is none; shape ``(B, 0)`` if the data has no labels.

    Example:
        >>> batch = make_series(
        ...     times=[torch.tensor([0.0, 0.5]), torch.tensor([0.2])],
        ...     values=[torch.ones(2, 3), torch.ones(1, 3)],
        ...     masks=[torch.ones(2, 3), torch.ones(1, 3)],
        ... )
        >>> batch.times
        tensor([[0.0000, 0.5000],
                [0.2000, 0.2000]])
    """

    times: Tensor
    values: Tensor
    mask: Tensor
    target_mask: Tensor
    lengths: Tensor
    labels: Tensor

    @property
    def valid(self) -> Tensor:
        """True at the times that are no padding, shape ``(B, T)``."""
        steps = torch.arange(self.times.shape[1], device=self.times.device)
        return steps < self.lengths[:, None]

    @property
    def observed(self) -> Tensor:
        """True at the times where something is observed, shape ``(B, T)``."""
        return self.mask.any(2)

    @property
    def asked(self) -> Tensor:
        """True at the times where something is to be predicted, or that have a label."""
        asked = self.target_mask.any(2)
        if self.labels.ndim == 2 and self.labels.shape[1]:
            asked = asked | (self.labels >= 0)
        return asked


def make_series(
    times: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor],
    target_masks: Sequence[Tensor] | None = None,
    labels: Sequence[Tensor] | None = None,
) -> SeriesBatch:
    """Pad samples to a batch.

    Args:
        times: Times of each sample, shape ``(T_i,)``.
        values: Values of each sample, shape ``(T_i, D)``; anything where neither mask is one.
        masks: One where observed, shape ``(T_i, D)``, of any dtype.
        target_masks: One where to be predicted, shape ``(T_i, D)``; ``masks`` if not given.
        labels: Class of each sample, shape ``()``, or of each time, ``(T_i,)``.

    Raises:
        ValueError: If there is no sample, or one without a time.
    """
    if not times or any(not len(t) for t in times):
        raise ValueError(
            f"Expected one or more samples of one or more times, but got the lengths "
            f"{[len(t) for t in times]}. Drop samples without times."
        )
    device, longest = times[0].device, max(map(len, times))
    lengths = torch.tensor([len(t) for t in times], device=device)
    padded_times = torch.stack([torch.cat([t, t[-1:].expand(longest - len(t))]) for t in times])

    def pad(parts: Sequence[Tensor], by: float = 0.0) -> Tensor:
        return pad_sequence(list(parts), batch_first=True, padding_value=by)

    dtype = values[0].dtype
    mask = pad(masks).to(dtype)
    target_mask = mask if target_masks is None else pad(target_masks).to(dtype)
    if labels is None:
        stacked = torch.empty(len(times), 0, dtype=torch.int64, device=device)
    elif labels[0].ndim:
        stacked = pad(labels, by=-1)
    else:
        stacked = torch.stack(list(labels))
    # Not a product: what is not observed may be NaN.
    values_padded = pad(values).masked_fill(torch.maximum(mask, target_mask) == 0, 0.0)
    return SeriesBatch(padded_times, values_padded, mask, target_mask, lengths, stacked)


def keep_times(batch: SeriesBatch, keep: Tensor) -> SeriesBatch:
    """Leave times out, but not the first one, and pad what is left to the longest sample again.

    Args:
        batch: Series; labels of times go with their times.
        keep: True at the times to keep besides the first, and not in the padding, ``(B, T)``.

    Raises:
        ValueError: If padding is to be kept.

    Example:
        >>> t, values = torch.tensor([0.0, 1.0, 2.0]), torch.ones(3, 1)
        >>> batch = make_series([t], [values], [values])
        >>> keep_times(batch, torch.tensor([[False, False, True]])).times
        tensor([[0., 2.]])
    """
    if bool((keep & ~batch.valid).any()):
        raise ValueError("Expected no padding among the times to keep; use `keep & batch.valid`.")
    keep = keep.clone()
    keep[:, 0] = True
    lengths = keep.sum(1)
    # A stable sort puts what is kept in front, in the order of time.
    order = (~keep).byte().argsort(dim=1, stable=True)[:, : int(lengths.max())]
    padding = torch.arange(order.shape[1], device=order.device) >= lengths[:, None]
    order = torch.where(padding, order.gather(1, lengths[:, None] - 1), order)
    wide = order[..., None].expand(-1, -1, batch.values.shape[2])
    labels = batch.labels
    if labels.ndim == 2 and labels.shape[1]:
        labels = labels.gather(1, order).masked_fill(padding, -1)

    def pick(part: Tensor) -> Tensor:
        return part.gather(1, wide).masked_fill(padding[..., None], 0.0)

    return SeriesBatch(
        times=batch.times.gather(1, order),
        values=pick(batch.values),
        mask=pick(batch.mask),
        target_mask=pick(batch.target_mask),
        lengths=lengths,
        labels=labels,
    )


def check_series(batch: SeriesBatch) -> None:
    """Raise unless a batch keeps the contract of :class:`SeriesBatch`, in a few passes over it.

    Raises:
        TypeError: If it is no :class:`SeriesBatch`, or a dtype is wrong.
        ValueError: If shapes, values, times, masks, lengths, labels or padding break the contract,
            or a sample has no observation.
    """
    if not isinstance(batch, SeriesBatch):
        raise TypeError(
            f"Expected a SeriesBatch, but got {type(batch).__name__}. Let the datamodule yield "
            f"steer_lightning.nn.series.SeriesBatch; make_series pads samples to one."
        )
    times, values, mask, target_mask, lengths, labels = batch
    found = {name: part.dtype for name, part in batch._asdict().items()}
    for name in ("times", "values"):
        if not found[name].is_floating_point:
            raise TypeError(f"Expected `{name}` to be floating, but got {found[name]}.")
    whole = torch.int64
    dtypes = {"mask": values.dtype, "target_mask": values.dtype, "lengths": whole, "labels": whole}
    for name, dtype in dtypes.items():
        if found[name] != dtype:
            raise TypeError(f"Expected `{name}` to be of {dtype}, but got {found[name]}.")
    shape = tuple(values.shape)
    if len(shape) != 3 or times.shape != shape[:2] or lengths.shape != shape[:1]:
        raise ValueError(
            f"Expected times (B, T), values (B, T, D) and lengths (B,), but got "
            f"{tuple(times.shape)}, {shape} and {tuple(lengths.shape)}."
        )
    for name, part in (("mask", mask), ("target_mask", target_mask)):
        if part.shape != shape or not bool(((part == 0) | (part == 1)).all()):
            raise ValueError(
                f"Expected `{name}` of zeros and ones of the shape {shape} of the values, but got "
                f"shape {tuple(part.shape)}, values {sorted(set(part.flatten().tolist()))[:4]}."
            )
    if labels.shape not in ((shape[0],), shape[:2], (shape[0], 0)):
        raise ValueError(
            f"Expected labels of samples (B,), of times (B, T) or none (B, 0), but got "
            f"{tuple(labels.shape)} for B = {shape[0]}, T = {shape[1]}."
        )
    if not bool((lengths >= 1).all() & (lengths <= shape[1]).all()):
        raise ValueError(f"Expected lengths from 1 to T = {shape[1]}, but got {lengths.tolist()}.")
    valid = batch.valid
    seen = torch.maximum(mask, target_mask).bool()
    _refuse("finite times", valid & ~times.isfinite())
    _refuse("finite values where a mask is one", seen & ~values.isfinite())
    _refuse("values of zero where neither mask is one", ~seen & (values != 0))
    _refuse("masks of zero in the padding", seen & ~valid[..., None])
    _refuse("strictly increasing times", (times.diff(dim=1) <= 0) & valid[:, 1:])
    _refuse("padding that repeats the last time", (times.diff(dim=1) != 0) & ~valid[:, 1:])
    if labels.ndim == 2 and labels.shape[1]:
        _refuse("labels of -1 in the padding", ~valid & (labels != -1))
    _refuse("at least one observation in every sample", ~mask.flatten(1).any(1)[:, None])


def _refuse(what: str, broken: Tensor) -> None:
    """Raise a ``ValueError`` naming the first samples where ``broken`` holds."""
    samples = broken.flatten(1).any(1).nonzero().flatten().tolist()
    if samples:
        raise ValueError(
            f"Expected {what}, but not so in sample {', '.join(map(str, samples[:5]))} of the "
            f"batch. Clean the series before it is batched: sort times, merge equal ones, drop "
            f"series without observations; make_series pads as is expected."
        )
