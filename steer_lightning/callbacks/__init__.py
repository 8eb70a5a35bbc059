"""Lightning callbacks: hooks only; what they do lives below."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from steer_lightning.callbacks.nfe_monitor import NFEMonitor
from steer_lightning.callbacks.steer import SteerCallback

if TYPE_CHECKING:
    from steer_lightning.callbacks.pictures import EndTimeSweep, FlowPicture, StiffPicture

__all__ = ["EndTimeSweep", "FlowPicture", "NFEMonitor", "SteerCallback", "StiffPicture"]


def __getattr__(name: str) -> Any:
    """Import pictures on first use: they need matplotlib, which the package does not ask for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("steer_lightning.callbacks.pictures"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
