"""Lightning callbacks: hooks only; what they do lives below."""

from steer_lightning.callbacks.nfe_monitor import NFEMonitor
from steer_lightning.callbacks.pictures import EndTimeSweep, FlowPicture, StiffPicture
from steer_lightning.callbacks.steer import SteerCallback

__all__ = ["EndTimeSweep", "FlowPicture", "NFEMonitor", "SteerCallback", "StiffPicture"]
