from .fcos import FCOS
from .retinanet_plus import ImplicitObjectnessRetinaNetHead, RetinaNetPlus

__all__ = ["FCOS", "ImplicitObjectnessRetinaNetHead", "RetinaNetPlus"]
