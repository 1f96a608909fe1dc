from .cspdarknet import CSPDarkNet, build_cspdarknet_backbone
from .feature_arrangements import MultipleInSingleOut, SingleInMultipleOut
from .resnet_checks import check_resnet_config
from .timm_backbone import TimmBackbone, build_timm_backbone

__all__ = [
    "CSPDarkNet",
    "MultipleInSingleOut",
    "SingleInMultipleOut",
    "TimmBackbone",
    "build_cspdarknet_backbone",
    "build_timm_backbone",
    "check_resnet_config",
]
