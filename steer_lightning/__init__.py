"""STEER for PyTorch Lightning: random end times of integration for training Neural ODEs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steer_lightning.callbacks import NFEMonitor, PenaltyCallback, SteerCallback
    from steer_lightning.penalties.control import penalize, penalty
    from steer_lightning.steering import nominal, steer

__version__ = "0.1.0"
__all__ = [
    "NFEMonitor",
    "PenaltyCallback",
    "SteerCallback",
    "nominal",
    "penalize",
    "penalty",
    "steer",
]

_HOMES = {
    "NFEMonitor": "steer_lightning.callbacks",
    "PenaltyCallback": "steer_lightning.callbacks",
    "SteerCallback": "steer_lightning.callbacks",
    "nominal": "steer_lightning.steering",
    "penalize": "steer_lightning.penalties.control",
    "penalty": "steer_lightning.penalties.control",
    "steer": "steer_lightning.steering",
}


if not TYPE_CHECKING:  # to a type checker every name would be there

    def __getattr__(name: str) -> Any:
        """Import on first use, so that ``steer_lightning.nn`` does not pull in Lightning."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
