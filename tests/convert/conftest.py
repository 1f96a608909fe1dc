from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from tests.convert.checkpoints import SMALL_YOLOF, Weights, make_mmdet_weights
from tests.modeling.images import randomise


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_YOLOF)
    return path


@pytest.fixture
def resnet18() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    randomise(model)
    return model


@pytest.fixture
def mmdet_weights() -> Weights:
    return make_mmdet_weights()
