"""LightningModules: loss, metrics and optimiser around the blocks of ``steer_lightning.nn``."""

from steer_lightning.modules.classifier import ClassifierModule
from steer_lightning.modules.cnf import CNFModule
from steer_lightning.modules.image_flow import ImageFlowModule
from steer_lightning.modules.latent_ode import LatentODEModule
from steer_lightning.modules.ode_rnn import ODERNNModule
from steer_lightning.modules.regression import RegressionModule
from steer_lightning.modules.stiff import StiffODEModule

__all__ = [
    "CNFModule",
    "ClassifierModule",
    "ImageFlowModule",
    "LatentODEModule",
    "ODERNNModule",
    "RegressionModule",
    "StiffODEModule",
]
