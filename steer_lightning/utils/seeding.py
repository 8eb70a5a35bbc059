"""Random streams that depend on what they are for, and never on the global one."""

import hashlib
import os

import torch


def stream_key(*parts: object) -> int:
    """Hash what identifies a draw (a seed, a step count, the path of a horizon) into a seed.

    Equal parts give the same 63 bits on every machine and in every process.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(device: torch.device | str, *parts: object) -> torch.Generator:
    """A random stream keyed by what it is for; another kind of device draws other numbers."""
    return torch.Generator(device=device).manual_seed(stream_key(*parts))


def default_seed() -> int:
    """The seed of a run that was given none: Lightning's global seed, else torch's initial one."""
    return int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))
