from .build import build_backbone, check_backbone
from .cspdarknet import CSPDarkNet, build_cspdarknet_backbone
from .miso import MultipleInSingleOut
from .simo import SingleInMultipleOut
from .timm_backbone import TimmBackbone, build_timm_backbone

__all__ = [
    "CSPDarkNet",
    "MultipleInSingleOut",
    "SingleInMultipleOut",
    "TimmBackbone",
    "build_backbone",
    "build_cspdarknet_backbone",
    "build_timm_backbone",
    "check_backbone",
]
