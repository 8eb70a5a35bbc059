"""Vector fields and the blocks that solve them, without Lightning."""

from steer_lightning.nn.augmented import Augmented
from steer_lightning.nn.compiled import CompiledField
from steer_lightning.nn.fields import ConcatField, ConvField, MLPField
from steer_lightning.nn.flows.cnf import CNF
from steer_lightning.nn.flows.concat_squash import ConcatSquashField
from steer_lightning.nn.flows.conv_flow_field import ConvFlowField
from steer_lightning.nn.flows.flow import Flow, Transport
from steer_lightning.nn.flows.multiscale import MultiScaleCNF
from steer_lightning.nn.ode_block import ODEBlock
from steer_lightning.nn.relaxation import RelaxationField
from steer_lightning.nn.series.encoders import (
    Observations,
    ODERNNEncoder,
    RNNEncoder,
    observations,
)
from steer_lightning.nn.series.forecaster import Forecast, ODERNNForecaster
from steer_lightning.nn.series.latent_ode import LatentDecoder, LatentODE
from steer_lightning.nn.series.ode_rnn import ODERNN, Posterior, PosteriorGRU, Unroll

__all__ = [
    "Augmented",
    "CNF",
    "Posterior",
    "PosteriorGRU",
    "CompiledField",
    "ConcatField",
    "ConcatSquashField",
    "ConvField",
    "ConvFlowField",
    "Flow",
    "Forecast",
    "LatentDecoder",
    "LatentODE",
    "MLPField",
    "MultiScaleCNF",
    "ODEBlock",
    "ODERNN",
    "ODERNNEncoder",
    "ODERNNForecaster",
    "Observations",
    "RNNEncoder",
    "RelaxationField",
    "Transport",
    "Unroll",
    "observations",
]
