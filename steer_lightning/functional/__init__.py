"""Pure functions: tensors in, tensors out. Nothing here knows of modules, solvers or Lightning."""

from steer_lightning.functional.end_time import (
    EndTimeDraw,
    FixedOffset,
    end_time_offset,
    stream_key,
)
from steer_lightning.functional.likelihood import standard_normal_log_prob
from steer_lightning.functional.time_warp import TimeWarp
from steer_lightning.functional.trace import exact_divergence

__all__ = [
    "EndTimeDraw",
    "FixedOffset",
    "TimeWarp",
    "end_time_offset",
    "exact_divergence",
    "standard_normal_log_prob",
    "stream_key",
]
