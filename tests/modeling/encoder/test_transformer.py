from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec

from tests.modeling.images import randomise
from yolof_d2.errors import ConfigError
from yolof_d2.modeling.encoder import TransformerEncoder, transformer

INPUT = ShapeSpec(channels=6, stride=32)


def make_encoder(**options) -> TransformerEncoder:
    torch.manual_seed(0)
    small = {"num_channels": 8, "num_layers": 2, "num_heads": 2, "feedforward_channels": 12}
    return TransformerEncoder(INPUT, **{**small, **options})


def positions_by_loop(height: int, width: int, channels: int) -> np.ndarray:
    """Of each cell in turn, rows first: sines and cosines of the row, then of the column."""
    table = []
    for y in range(height):
        for x in range(width):
            encoding = []
            for step, length in ((y, height), (x, width)):
                angle = 2 * math.pi * (step + 1) / length
                waves = [angle / 10000 ** (4 * j / channels) for j in range(channels // 4)]
                encoding += [math.sin(wave) for wave in waves]
                encoding += [math.cos(wave) for wave in waves]
            table.append(encoding)
    return np.array(table)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 2)])
@pytest.mark.parametrize("channels", [4, 8, 20])
def test_positions_agree_with_a_loop(size, channels):
    positions = transformer.sine_positions(torch.empty(2, 6, *size), channels)
    assert positions.dtype == torch.float32
    expected = positions_by_loop(*size, channels)
    np.testing.assert_allclose(positions, expected, rtol=0, atol=1e-5)


def encode_by_hand(weights: dict, image: np.ndarray, num_layers: int, num_heads: int):
    """DETR's equations in float64, one head and one cell at a time."""
    w = {key: value.double().numpy() for key, value in weights.items()}
    _, height, width = image.shape
    kernel = w["input_proj.weight"][:, :, 0, 0]
    cells = image.reshape(len(image), -1).T @ kernel.T + w["input_proj.bias"]
    channels = cells.shape[1]
    positions = positions_by_loop(height, width, channels)
    size = channels // num_heads

    def layer_norm(x, name):
        centred = x - x.mean(1, keepdims=True)
        scale = np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    for i in range(num_layers):
        name = f"layers.{i}"
        in_weight = np.split(w[f"{name}.attention.in_proj_weight"], 3)
        in_bias = np.split(w[f"{name}.attention.in_proj_bias"], 3)
        sources = (cells + positions, cells + positions, cells)
        query, key, value = (
            x @ m.T + b for x, m, b in zip(sources, in_weight, in_bias, strict=True)
        )
        attended = np.zeros_like(cells)
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            for cell in range(len(cells)):
                similarity = np.exp(key[:, part] @ query[cell, part] / math.sqrt(size))
                attended[cell, part] = similarity / similarity.sum() @ value[:, part]
        attended = attended @ w[f"{name}.attention.out_proj.weight"].T
        attended += w[f"{name}.attention.out_proj.bias"]
        cells = layer_norm(cells + attended, f"{name}.attention_norm")

        hidden = cells @ w[f"{name}.feedforward.0.weight"].T + w[f"{name}.feedforward.0.bias"]
        change = hidden.clip(min=0) @ w[f"{name}.feedforward.2.weight"].T
        change += w[f"{name}.feedforward.2.bias"]
        cells = layer_norm(cells + change, f"{name}.feedforward_norm")
    return cells.T.reshape(-1, height, width)


@pytest.mark.parametrize("size", [(3, 4), (1, 5), (1, 1)])
@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_agrees_with_the_papers_equations(size, num_heads):
    encoder = make_encoder(num_heads=num_heads).eval()
    randomise(encoder)
    feature = torch.randn(2, 6, *size)
    with torch.no_grad():
        encoded = encoder(feature)
    for image, ours in zip(feature.double().numpy(), encoded, strict=True):
        expected = encode_by_hand(encoder.state_dict(), image, 2, num_heads)
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


def test_only_the_positions_tell_cells_apart(monkeypatch):
    encoder = make_encoder().eval()
    feature = torch.randn(1, 6, 3, 4)
    order = torch.randperm(12)

    def shuffle(x):
        return x.flatten(2)[..., order].view_as(x)

    with torch.no_grad():
        moved = encoder(shuffle(feature)), shuffle(encoder(feature))
        assert (moved[0] - moved[1]).abs().max() > 0.01
        monkeypatch.setattr(transformer, "sine_positions", lambda x, c: torch.zeros(12, c))
        torch.testing.assert_close(encoder(shuffle(feature)), shuffle(encoder(feature)))


def test_weights_start_xavier_uniform_and_biases_at_zero():
    encoder = make_encoder(num_channels=64, feedforward_channels=256)
    for name, parameter in encoder.named_parameters():
        if parameter.dim() > 1:
            limit = math.sqrt(6 / sum(parameter.shape[:2]))
            assert 0.9 * limit < parameter.abs().max() <= limit, name
            assert parameter.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1), name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name


def test_dropout_acts_on_attention_and_perceptron_in_training_only():
    encoder = make_encoder(num_layers=1, dropout=0.5)
    feature = torch.randn(1, 6, 3, 4)
    assert torch.equal(encoder.eval()(feature), encoder(feature))
    encoder.train()
    (layer,) = encoder.layers
    for silenced in ("attention.out_proj", "feedforward.2"):  # what remains is the other one's
        encoder.load_state_dict(make_encoder(num_layers=1).state_dict())
        torch.nn.init.zeros_(layer.get_submodule(silenced).weight)
        assert not torch.equal(encoder(feature), encoder(feature))


def test_without_dropout_training_is_as_evaluation():
    encoder = make_encoder(dropout=0.0)
    feature = torch.randn(1, 6, 3, 4)
    torch.testing.assert_close(encoder.train()(feature), encoder.eval()(feature))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 6, "num_heads": 2}, r"NUM_CHANNELS must be divisible by 4 .*, got 6"),
        ({"num_channels": 8, "num_heads": 3}, r"and by NUM_HEADS \(3\), got 8"),
        ({"num_layers": 0}, "NUM_LAYERS must be 1 or more, got 0"),
        ({"num_heads": 0}, "NUM_HEADS must be 1 or more, got 0"),
        ({"feedforward_channels": 0}, "FEEDFORWARD_CHANNELS must be 1 or more, got 0"),
        ({"dropout": 1.0}, r"DROPOUT must lie in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"DROPOUT must lie in \[0, 1\), got -0.1"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"MODEL.YOLOF.ENCODER.TRANSFORMER.*{message}"):
        make_encoder(**options)
