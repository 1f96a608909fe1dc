from .build import DECODER_REGISTRY, Decoder, build_decoder
from .implicit_objectness import ImplicitObjectnessDecoder

__all__ = ["DECODER_REGISTRY", "Decoder", "ImplicitObjectnessDecoder", "build_decoder"]
