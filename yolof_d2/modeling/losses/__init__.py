from .build import LOSS_REGISTRY, DetectionLoss, build_loss
from .focal_giou import FocalGIoULoss

__all__ = ["LOSS_REGISTRY", "DetectionLoss", "FocalGIoULoss", "build_loss"]
