"""Boxes that tests of box arithmetic, losses and the box transform share."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

COORDINATE = st.integers(0, 20)
BOXES = st.lists(st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE), min_size=1, max_size=6)


def random_boxes(num: int, seed: int = 0, largest: float = 500.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(num, 2, generator=generator) * largest
    return torch.cat((corner, corner + 1 + torch.rand(num, 2, generator=generator) * largest), 1)
