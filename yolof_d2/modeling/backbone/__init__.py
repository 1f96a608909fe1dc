from .build import build_backbone, check_backbone
from .cspdarknet import CSPDarkNet
from .miso import MultipleInSingleOut
from .simo import SingleInMultipleOut
from .timm_backbone import TimmBackbone

__all__ = [
    "CSPDarkNet",
    "MultipleInSingleOut",
    "SingleInMultipleOut",
    "TimmBackbone",
    "build_backbone",
    "check_backbone",
]
