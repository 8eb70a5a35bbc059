"""The processes of ``torch.distributed``, where it is built in and they were started."""

import torch


def in_process_group() -> bool:
    """Whether this process is one of a group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def current_rank() -> int:
    """Rank of this process; zero where there is no group."""
    return torch.distributed.get_rank() if in_process_group() else 0


def agreed_seed() -> int:
    """Torch's initial seed, that of the first process if there are several."""
    seeds = [torch.initial_seed()]
    if in_process_group():
        torch.distributed.broadcast_object_list(seeds)
    return seeds[0]
