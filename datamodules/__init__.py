"""Data sets of the experiments as LightningDataModules; in the repository only, not installed."""

from datamodules.base import TensorDataModule
from datamodules.cifar10 import CIFAR10DataModule
from datamodules.imagenet32 import ImageNet32DataModule
from datamodules.images import ImageDataModule
from datamodules.mnist import MNISTDataModule
from datamodules.stiff import StiffBatch, StiffODEDataModule, StiffTrajectory
from datamodules.toy import ToyDensityDataModule

__all__ = [
    "CIFAR10DataModule",
    "ImageDataModule",
    "ImageNet32DataModule",
    "MNISTDataModule",
    "StiffBatch",
    "StiffODEDataModule",
    "StiffTrajectory",
    "TensorDataModule",
    "ToyDensityDataModule",
]
