from .build import DECODER_REGISTRY, Decoder, build_decoder
from .implicit_objectness import ImplicitObjectnessDecoder
from .plain import PlainDecoder

__all__ = [
    "DECODER_REGISTRY",
    "Decoder",
    "ImplicitObjectnessDecoder",
    "PlainDecoder",
    "build_decoder",
]
