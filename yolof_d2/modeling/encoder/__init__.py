from .aspp import ASPPEncoder
from .build import ENCODER_REGISTRY, Encoder, build_encoder
from .dilated import DilatedEncoder
from .projector import ProjectorEncoder
from .transformer import TransformerEncoder

__all__ = [
    "ENCODER_REGISTRY",
    "ASPPEncoder",
    "DilatedEncoder",
    "Encoder",
    "ProjectorEncoder",
    "TransformerEncoder",
    "build_encoder",
]
