"""A step whose penalties can be looked at."""

from contextlib import contextmanager

from steer_lightning.penalties import (
    Acceleration,
    JacobianNorm,
    KineticEnergy,
    TrajectoryPolynomial,
)
from steer_lightning.penalties.control import Penalizing

POINTS = [KineticEnergy(1.0), JacobianNorm(1.0), Acceleration(1.0), TrajectoryPolynomial(1.0)]


@contextmanager
def looking(model, *penalties, step=0, vector_fields=None):
    """A step in which all penalties weigh one."""
    penalizing = Penalizing(model, penalties, vector_fields)
    penalizing.start(seed=0, step=step, weights={p.name: 1.0 for p in penalties})
    yield penalizing
    penalizing.release()
