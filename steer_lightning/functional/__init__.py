"""Pure functions: tensors in, tensors out. Nothing here knows of modules, solvers or Lightning."""

from steer_lightning.functional.end_time import EndTimeDraw, FixedOffset, end_time_offset
from steer_lightning.functional.likelihood import (
    bits_per_dim,
    dequantize,
    importance_bound,
    masked_gaussian_log_prob,
    standard_normal_kl,
    standard_normal_log_prob,
)
from steer_lightning.functional.random_streams import stream, stream_key
from steer_lightning.functional.time_warp import TimeWarp
from steer_lightning.functional.trace import (
    exact_divergence,
    exact_jacobian,
    trace_noise,
    value_and_tangent,
)
from steer_lightning.functional.walk import WalkPlan, plan_walk, walking_order

__all__ = [
    "EndTimeDraw",
    "FixedOffset",
    "TimeWarp",
    "WalkPlan",
    "bits_per_dim",
    "dequantize",
    "end_time_offset",
    "exact_divergence",
    "exact_jacobian",
    "importance_bound",
    "masked_gaussian_log_prob",
    "plan_walk",
    "standard_normal_kl",
    "standard_normal_log_prob",
    "stream",
    "stream_key",
    "trace_noise",
    "value_and_tangent",
    "walking_order",
]
