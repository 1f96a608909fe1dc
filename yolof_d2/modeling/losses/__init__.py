from .build import LOSS_REGISTRY, DetectionLoss, build_loss
from .focal_box import FocalBoxLoss

__all__ = ["LOSS_REGISTRY", "DetectionLoss", "FocalBoxLoss", "build_loss"]
