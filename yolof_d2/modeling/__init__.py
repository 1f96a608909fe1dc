"""The YOLOF meta-architecture and its pluggable parts. Importing this package registers them."""

from .decoder import DECODER_REGISTRY, Decoder, build_decoder
from .encoder import ENCODER_REGISTRY, Encoder, build_encoder
from .losses import LOSS_REGISTRY, DetectionLoss, build_loss
from .matcher import MATCHER_REGISTRY, GroundTruth, Matcher, MatchResult, build_matcher
from .meta_arch import FCOS, RetinaNetPlus
from .meta_arch.build import build_model
from .meta_arch.yolof import YOLOF

__all__ = [
    "DECODER_REGISTRY",
    "ENCODER_REGISTRY",
    "FCOS",
    "LOSS_REGISTRY",
    "MATCHER_REGISTRY",
    "YOLOF",
    "Decoder",
    "DetectionLoss",
    "Encoder",
    "GroundTruth",
    "MatchResult",
    "Matcher",
    "RetinaNetPlus",
    "build_decoder",
    "build_encoder",
    "build_loss",
    "build_matcher",
    "build_model",
]
