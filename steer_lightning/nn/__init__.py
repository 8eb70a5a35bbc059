"""Vector fields and the blocks that solve them, without Lightning."""

from steer_lightning.nn.augmented import Augmented
from steer_lightning.nn.cnf import CNF
from steer_lightning.nn.compiled import CompiledField
from steer_lightning.nn.concat_squash import ConcatSquashField
from steer_lightning.nn.conv_flow_field import ConvFlowField
from steer_lightning.nn.fields import ConvField, MLPField
from steer_lightning.nn.flow import Flow, Transport
from steer_lightning.nn.latent_ode import (
    LatentDecoder,
    Observations,
    ODERNNEncoder,
    RNNEncoder,
    observations,
)
from steer_lightning.nn.multiscale import MultiScaleCNF
from steer_lightning.nn.ode_block import ODEBlock
from steer_lightning.nn.ode_rnn import ODERNN, Belief, BeliefGRU

__all__ = [
    "Augmented",
    "CNF",
    "Belief",
    "BeliefGRU",
    "CompiledField",
    "ConcatSquashField",
    "ConvField",
    "ConvFlowField",
    "Flow",
    "LatentDecoder",
    "MLPField",
    "MultiScaleCNF",
    "ODEBlock",
    "ODERNN",
    "ODERNNEncoder",
    "Observations",
    "RNNEncoder",
    "Transport",
    "observations",
]
