"""Move horizons, in blocks of this library or by hooks in any model."""

from steer_lightning.steering.contexts import nominal, steer

__all__ = ["nominal", "steer"]
