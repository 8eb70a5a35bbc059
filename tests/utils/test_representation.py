import pytest

from steer_lightning.callbacks import (
    EndTimeSweep,
    LastCheckpoint,
    NFEMonitor,
    PenaltyCallback,
    SampleGrid,
    SteerCallback,
)
from steer_lightning.guard import SolverGuard
from steer_lightning.penalties import Acceleration
from steer_lightning.solvers import (
    AdaptiveSolver,
    FixedGridSolver,
    RosenbrockSolver,
    TorchdiffeqSolver,
)
from steer_lightning.utils.representation import Shown
from steer_lightning.utils.schedule import Schedule


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (
            AdaptiveSolver("tsit5", 1e-3),
            "AdaptiveSolver(method='tsit5', rtol=0.001, atol=1e-05, max_nfe=10000, "
            "first_step='auto', checkpoint=False, compile=False, stiff='ignore')",
        ),
        (
            RosenbrockSolver("rodas4", max_nfe=None),
            "RosenbrockSolver(method='rodas4', rtol=1e-05, atol=1e-05, max_nfe=None, "
            "first_step='auto', checkpoint=False, compile=False, max_dimension=256)",
        ),
        (
            FixedGridSolver("heun", 3),
            "FixedGridSolver(method='heun', n_steps=3, checkpoint=False, compile=False)",
        ),
        (
            TorchdiffeqSolver("rk4", options={"step_size": 0.1}),
            "TorchdiffeqSolver(method='rk4', rtol=1e-05, atol=1e-05, gradient='autograd', "
            "seminorm=False, max_nfe=10000, options={'step_size': 0.1})",
        ),
        (
            SteerCallback(0.5, horizons=["flow"]),
            "SteerCallback(b=0.5, epsilon=0.001, distribution='uniform', scope='batch', "
            "horizons=('flow',))",
        ),
        (
            SteerCallback(Schedule(0.5, 0.0, 9), seed=0),
            "SteerCallback(b=Schedule(start=0.5, end=0.0, length=9, shape='linear', "
            "unit='step'), epsilon=0.001, distribution='uniform', scope='batch', seed=0)",
        ),
        (
            PenaltyCallback(Acceleration(0.1), seed=3),
            "PenaltyCallback(Acceleration(weight=Schedule.constant(0.1), order=2), seed=3)",
        ),
        (NFEMonitor(), "NFEMonitor(steps=False)"),
        (LastCheckpoint(100), "LastCheckpoint(every_n_train_steps=100)"),
        (
            SolverGuard("skip", max_rejected=0.25),
            "SolverGuard(policy='skip', max_consecutive=10, save_batches=False, min_dt=1e-07, "
            "max_rejected=0.25, random_fields='warn')",
        ),
        (
            EndTimeSweep(0.5),
            "EndTimeSweep(b=0.5, n_points=11, n_batches=1, split='test', max_nfe=1000)",
        ),
        (
            SampleGrid(2, [1.0], every_n_checks=3),
            "SampleGrid(n_samples=2, temperatures=(1.0,), seed=0, every_n_checks=3)",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_it_is_the_call_that_makes_it(shown, expected):
    assert repr(shown) == expected


def test_what_a_class_does_not_keep_is_left_out():
    class Scaled(Shown):
        def __init__(self, factor, label="none"):
            self.factor = factor

    class Doubled(Scaled):
        def __init__(self, *settings):
            super().__init__(2, *settings)

    assert repr(Scaled(2)) == "Scaled(factor=2)"
    assert repr(Doubled("one")) == "Doubled()"


def test_settings_of_a_steer_callback_are_public_and_fixed():
    callback = SteerCallback(0.5, ["field"], 0.0, 2.0, distribution="normal", scope="rank")
    assert (callback.b, callback.vector_fields, callback.t0, callback.t1) == (
        0.5, ("field",), 0.0, 2.0,
    )  # fmt: skip
    assert (callback.distribution, callback.scope, callback.horizons) == ("normal", "rank", None)
    with pytest.raises(AttributeError, match="property 'b'"):
        callback.b = 0.25
