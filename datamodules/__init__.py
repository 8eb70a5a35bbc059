"""Data sets of the experiments as LightningDataModules; in the repository only, not installed."""

from datamodules.base import TensorDataModule
from datamodules.mnist import MNISTDataModule
from datamodules.stiff import StiffBatch, StiffODEDataModule, StiffTrajectory
from datamodules.toy import ToyDensityDataModule

__all__ = [
    "MNISTDataModule",
    "StiffBatch",
    "StiffODEDataModule",
    "StiffTrajectory",
    "TensorDataModule",
    "ToyDensityDataModule",
]
