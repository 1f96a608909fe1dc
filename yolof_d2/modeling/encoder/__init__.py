from .build import ENCODER_REGISTRY, Encoder, build_encoder
from .dilated import DilatedEncoder

__all__ = ["ENCODER_REGISTRY", "DilatedEncoder", "Encoder", "build_encoder"]
