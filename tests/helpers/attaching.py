"""Horizons attached to vector fields of somebody else's."""

import pytest
from torchdiffeq import odeint, odeint_adjoint

from steer_lightning.horizon.end_time import FixedOffset
from steer_lightning.steering.attach import AttachedHorizon

TIGHT = {"rtol": 1e-9, "atol": 1e-9}  # tolerances
both_calls = pytest.mark.parametrize("call", [odeint, odeint_adjoint])


def attached(field, offset=None, t0=0.0, t1=1.0):
    horizon = AttachedHorizon(field, "flow.func", (t0, t1))
    if offset is not None:
        horizon.perturb(FixedOffset(offset))
    return horizon
