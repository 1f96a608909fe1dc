"""A transformer encoder: self-attention over all cells (Carion et al., ECCV 2020)."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from yolof_d2.checks import check_at_least
from yolof_d2.errors import ConfigError

from .build import ENCODER_REGISTRY, Encoder


def sine_positions(feature: Tensor, num_channels: int, temperature: float = 10000.0) -> Tensor:
    """Return a fixed encoding of each cell's position (supplementary material, section A.4).

    Half of the channels encode the row, half the column: of all C channels one quarter each is the
    sine and the cosine of t * temperature^(-4j / C), j = 0 ... C/4 - 1, where t grows evenly to
    2 pi in the last row or column, whatever the size of the map.

    Args:
        feature: (..., H, W), for its size and device.
        num_channels: C, divisible by 4.
        temperature: ratio of the longest to the shortest wave, if j went on to C/4.

    Returns:
        float32 (H * W, C).
    """
    height, width = feature.shape[-2:]
    num_frequencies = num_channels // 4
    exponents = torch.arange(num_frequencies, device=feature.device) / num_frequencies
    frequencies = temperature**-exponents

    def encode(length: int) -> Tensor:
        steps = torch.arange(1, length + 1, device=feature.device)
        angles = (2 * math.pi * steps / length)[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=1)

    rows, columns = encode(height)[:, None], encode(width)[None]
    grid = (rows.expand(-1, width, -1), columns.expand(height, -1, -1))
    return torch.cat(grid, dim=-1).flatten(0, 1)


class TransformerLayer(nn.Module):
    """Self-attention, then a two-layer perceptron; a residual sum and a layer norm after each."""

    def __init__(self, channels: int, *, num_heads: int, feedforward_channels: int, dropout: float):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.attention_norm = nn.LayerNorm(channels)
        self.feedforward = nn.Sequential(
            nn.Linear(channels, feedforward_channels),
            nn.ReLU(inplace=True),
            nn.Linear(feedforward_channels, channels),
        )
        self.feedforward_norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, cells: Tensor, positions: Tensor) -> Tensor:
        """Update ``cells``, float (N, H * W, C), with ``positions`` float32 (H * W, C)."""
        placed = cells + positions.to(cells.dtype)
        attended, _ = self.attention(placed, placed, cells, need_weights=False)
        cells = self.attention_norm(cells + self.dropout(attended))
        return self.feedforward_norm(cells + self.dropout(self.feedforward(cells)))


@ENCODER_REGISTRY.register()
class TransformerEncoder(Encoder):
    """DETR's encoder on one map: a 1x1 convolution, then layers of self-attention over all cells.

    As in section 3.2 and supplementary section A.4: the norms come after the residual sums, and the
    positions are added to queries and keys of every layer, not to values. Time and, without a fused
    attention kernel, memory grow with the square of the number of cells.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_channels: int,
        num_layers: int = 6,
        num_heads: int = 8,
        feedforward_channels: int = 2048,
        dropout: float = 0.1,
    ):
        """
        Args:
            input_shape: channels and stride of the backbone's feature.
            num_channels: width of the output; divisible by 4, for the positions, and by
                ``num_heads``.
            num_layers: attention layers.
            num_heads: heads of each attention.
            feedforward_channels: width inside the perceptrons.
            dropout: share of values dropped after each attention and each perceptron, before the
                residual sum; in [0, 1).

        Raises:
            ConfigError: a number below 1, ``num_channels`` that cannot be divided so, or
                ``dropout`` outside [0, 1).
        """
        super().__init__()
        node = "MODEL.YOLOF.ENCODER.TRANSFORMER"
        check_at_least(
            1,
            node,
            NUM_CHANNELS=num_channels,
            NUM_LAYERS=num_layers,
            NUM_HEADS=num_heads,
            FEEDFORWARD_CHANNELS=feedforward_channels,
        )
        if num_channels % 4 or num_channels % num_heads:
            raise ConfigError(
                f"{node}.NUM_CHANNELS must be divisible by 4 and by NUM_HEADS ({num_heads}), "
                f"got {num_channels}"
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"{node}.DROPOUT must lie in [0, 1), got {dropout}")
        self._output_shape = ShapeSpec(channels=num_channels, stride=input_shape.stride)

        self.input_proj = nn.Conv2d(input_shape.channels, num_channels, kernel_size=1)
        self.layers = nn.ModuleList(
            TransformerLayer(
                num_channels,
                num_heads=num_heads,
                feedforward_channels=feedforward_channels,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )

        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.YOLOF.ENCODER.TRANSFORMER
        return {
            "input_shape": input_shape,
            "num_channels": node.NUM_CHANNELS,
            "num_layers": node.NUM_LAYERS,
            "num_heads": node.NUM_HEADS,
            "feedforward_channels": node.FEEDFORWARD_CHANNELS,
            "dropout": node.DROPOUT,
        }

    def forward(self, feature: Tensor) -> Tensor:
        """Encode float (N, C_in, H, W) to float (N, ``num_channels``, H, W)."""
        projected = self.input_proj(feature)
        positions = sine_positions(projected, projected.shape[1])
        cells = projected.flatten(2).transpose(1, 2)
        for layer in self.layers:
            cells = layer(cells, positions)
        return cells.transpose(1, 2).reshape(projected.shape)

    def output_shape(self) -> ShapeSpec:
        return self._output_shape
