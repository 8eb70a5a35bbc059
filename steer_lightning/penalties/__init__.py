"""Regularisers of trajectories, STEER's rivals: one file each."""

from steer_lightning.nn.probes import Probed
from steer_lightning.penalties.acceleration import Acceleration
from steer_lightning.penalties.base import Penalty
from steer_lightning.penalties.jacobian_norm import JacobianNorm
from steer_lightning.penalties.kinetic_energy import KineticEnergy
from steer_lightning.penalties.local_error import LocalError
from steer_lightning.penalties.stiffness import Stiffness
from steer_lightning.penalties.trajectory_polynomial import TrajectoryPolynomial

__all__ = [
    "Acceleration",
    "JacobianNorm",
    "KineticEnergy",
    "LocalError",
    "Penalty",
    "Probed",
    "Stiffness",
    "TrajectoryPolynomial",
]
