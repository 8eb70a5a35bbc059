"""Lightning callbacks: hooks only; what they do lives below."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from steer_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from steer_lightning.callbacks.hyperparameters import HyperparameterLog
from steer_lightning.callbacks.last_checkpoint import LastCheckpoint
from steer_lightning.callbacks.nfe_monitor import NFEMonitor
from steer_lightning.callbacks.penalty import PenaltyCallback
from steer_lightning.callbacks.prediction_writer import PredictionWriter
from steer_lightning.callbacks.progress_bar import SolverProgressBar
from steer_lightning.callbacks.steer import SteerCallback
from steer_lightning.callbacks.step_memories import StepMemories
from steer_lightning.callbacks.training_clock import TrainingClock

if TYPE_CHECKING:
    from steer_lightning.callbacks.plots.end_time_sweep import EndTimeSweep
    from steer_lightning.callbacks.plots.features import FeaturePlot
    from steer_lightning.callbacks.plots.flow import FlowPlot
    from steer_lightning.callbacks.plots.samples import SampleGrid, SampleWriter
    from steer_lightning.callbacks.plots.series import SeriesPlot
    from steer_lightning.callbacks.plots.stiff import StiffPlot

__all__ = [
    "AtomicCheckpointIO",
    "EndTimeSweep",
    "FeaturePlot",
    "FlowPlot",
    "HyperparameterLog",
    "LastCheckpoint",
    "NFEMonitor",
    "PenaltyCallback",
    "PredictionWriter",
    "SampleGrid",
    "SampleWriter",
    "SeriesPlot",
    "SolverProgressBar",
    "SteerCallback",
    "StepMemories",
    "StiffPlot",
    "TrainingClock",
]

_HOMES = {
    "EndTimeSweep": "plots.end_time_sweep",
    "FeaturePlot": "plots.features",
    "FlowPlot": "plots.flow",
    "SampleGrid": "plots.samples",
    "SampleWriter": "plots.samples",
    "SeriesPlot": "plots.series",
    "StiffPlot": "plots.stiff",
}


if not TYPE_CHECKING:  # to a type checker every name would be there

    def __getattr__(name: str) -> Any:
        """Import on first use what needs matplotlib, which the package does not ask for."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"steer_lightning.callbacks.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
