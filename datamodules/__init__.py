"""Data sets of the experiments as LightningDataModules; in the repository only, not installed."""

from datamodules.activity import HumanActivityDataModule
from datamodules.base import TensorDataModule
from datamodules.hopper import MuJoCoHopperDataModule
from datamodules.image_sets import CIFAR10DataModule, MNISTDataModule, SVHNDataModule
from datamodules.imagenet32 import ImageNet32DataModule
from datamodules.images import ImageDataModule
from datamodules.periodic import PeriodicDataModule
from datamodules.physionet import PhysioNetDataModule
from datamodules.series import SeriesData, SeriesDataModule
from datamodules.stiff import StiffBatch, StiffODEDataModule, StiffTrajectory
from datamodules.stiff_trajectories import StiffSystemDataModule
from datamodules.toy import ToyDensityDataModule

__all__ = [
    "CIFAR10DataModule",
    "HumanActivityDataModule",
    "ImageDataModule",
    "ImageNet32DataModule",
    "MNISTDataModule",
    "MuJoCoHopperDataModule",
    "PeriodicDataModule",
    "PhysioNetDataModule",
    "SVHNDataModule",
    "SeriesData",
    "SeriesDataModule",
    "StiffBatch",
    "StiffODEDataModule",
    "StiffSystemDataModule",
    "StiffTrajectory",
    "TensorDataModule",
    "ToyDensityDataModule",
]
