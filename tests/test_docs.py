"""What the documents say exists, runs, and agrees with the records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec

from yolof_d2.config import build_cfg, iter_keys
from yolof_d2.modeling import ENCODER_REGISTRY, build_encoder

ROOT = Path(__file__).parents[1]
BASE = ROOT / "configs" / "Base-YOLOF.yaml"
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "MODEL_ZOO.md", "CHANGELOG.md"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_repository_paths_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"\b(?:configs|yolof_d2|tests|requirements|records)/[\w/.-]*\w\.\w+", text)
    named = {path for path in [*links, *paths] if not re.search(r"\b(x|test_x)\.py$", path)}
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "MODEL_ZOO.md"])
def test_every_config_key_in_a_command_exists(name: str) -> None:
    known = set(iter_keys(build_cfg()))
    text = (ROOT / name).read_text()
    written = set(re.findall(r"\b((?:MODEL|SOLVER|DATASETS|INPUT|TEST)(?:\.[A-Z0-9_]+)+)\b", text))
    assert written
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in (1, 2, 3)}
    assert written - known - nodes == set()


def test_the_encoder_of_the_readme_works_as_written() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "ENCODER_REGISTRY.register()" in block]
    try:
        exec(compile(code, "README.md", "exec"), {})
        cfg = build_cfg(str(BASE), ["MODEL.YOLOF.ENCODER.NAME", "OneConvEncoder"])
        encoder = build_encoder(cfg, ShapeSpec(channels=8, stride=32))
        assert encoder(torch.zeros(2, 8, 3, 5)).shape == (2, 256, 3, 5)
        assert encoder.output_shape() == ShapeSpec(channels=256, stride=32)
    finally:
        ENCODER_REGISTRY._obj_map.pop("OneConvEncoder", None)


def _model_zoo_rows() -> list[dict[str, str]]:
    lines = [line for line in (ROOT / "MODEL_ZOO.md").read_text().splitlines() if "|" in line]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_every_figure_of_the_model_zoo_is_that_of_its_record() -> None:
    rows = _model_zoo_rows()
    assert len(rows) == len(list((ROOT / "records").glob("*.json"))) > 0
    for row in rows:
        (path,) = re.findall(r"\((records/[\w.]+)\)", row["record"])
        record = json.loads((ROOT / path).read_text())
        for column in ("AP", "AP50", "AP75"):
            assert row[column] == f"{record['results']['bbox'][column]:.1f}", (path, column)
        assert row["iterations"] == str(record["iterations"])
        assert row["s/iter"] == f"{record['median_seconds_per_iteration']:.2f}"
        assert row["minutes"] == f"{record['training_minutes']:.1f}"
        assert row["MiB"] == f"{record['peak_memory_mib']['process']:.0f}"
        assert row["seed"] == str(record["seed"])
        assert row["commit"] == record["commit"]
