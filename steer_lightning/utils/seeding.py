"""Random streams that depend on what they are for, and never on the global one."""

import hashlib
import os

import torch


def stream_key(*parts: object) -> int:
    r"""Hash what identifies a draw into a 63-bit seed; equal parts give equal seeds everywhere.

    Args:
        parts: Values with a stable ``str``: a seed, a step count, the path of a horizon.

    Returns:
        A seed for :class:`torch.Generator`, the same on every machine and in every process.

    Example:
        >>> stream_key(0, 1, "flow") == stream_key(0, 1, "flow")
        True
        >>> stream_key(0, 1, "flow") == stream_key(0, 2, "flow")
        False
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(device: torch.device | str, *parts: object) -> torch.Generator:
    """A random stream keyed by what it is for; see :func:`stream_key`.

    Args:
        device: Where the draws are made; another kind of device draws other numbers.
        parts: What identifies the stream.

    Example:
        >>> a, b = stream("cpu", 0, "noise"), stream("cpu", 0, "noise")
        >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
        True
    """
    return torch.Generator(device=device).manual_seed(stream_key(*parts))


def default_seed() -> int:
    """The seed of a run that was given none: Lightning's global seed, else torch's initial one."""
    return int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))
