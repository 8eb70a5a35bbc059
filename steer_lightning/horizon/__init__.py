r"""Horizons: where an integration ends, and how STEER moves that end.

A horizon turns a nominal solve, over times that never change, into the solve that is in force.
Models hold horizons; whoever trains them (a callback, a context manager) moves them:
``perturb(draw)`` before a training step, ``reset()`` after it.
"""

from steer_lightning.horizon.base import Horizon, WarpedField
from steer_lightning.horizon.end_time import Draw, EndTimeDraw, FixedOffset
from steer_lightning.horizon.grid import GridHorizon
from steer_lightning.horizon.span import SpanHorizon
from steer_lightning.horizon.time_warp import TimeWarp

__all__ = [
    "Draw",
    "EndTimeDraw",
    "FixedOffset",
    "GridHorizon",
    "Horizon",
    "SpanHorizon",
    "TimeWarp",
    "WarpedField",
]
