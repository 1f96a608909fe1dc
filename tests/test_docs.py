"""What the documents say exists, runs, and agrees with the records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY

from yolof_d2.config import build_cfg, iter_keys
from yolof_d2.modeling import (
    DECODER_REGISTRY,
    ENCODER_REGISTRY,
    LOSS_REGISTRY,
    MATCHER_REGISTRY,
    build_encoder,
)

ROOT = Path(__file__).parents[1]
BASE = ROOT / "configs" / "Base-YOLOF.yaml"
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "MODEL_ZOO.md", "CHANGELOG.md"]
DOCUMENTS += [str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_repository_paths_lead_somewhere(name: str) -> None:
    file = ROOT / name
    text = file.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    folders = "configs|docs|experiments|yolof_d2|tests|requirements|records"
    paths = re.findall(rf"\b(?:{folders})/[\w/.-]*\w\.\w+", text)
    named = {file.parent / link for link in links} | {ROOT / path for path in paths}
    named = {path for path in named if path.name not in ("x.py", "test_x.py")}
    assert named
    assert [path for path in sorted(named) if not path.exists()] == []


@pytest.mark.parametrize("name", ["README.md", "MODEL_ZOO.md"])
def test_every_config_key_in_a_command_exists(name: str) -> None:
    known = set(iter_keys(build_cfg()))
    text = (ROOT / name).read_text()
    text = re.sub(r"```python.*?```", "", text, flags=re.DOTALL)  # a part brings keys of its own
    written = set(re.findall(r"\b((?:MODEL|SOLVER|DATASETS|INPUT|TEST)(?:\.[A-Z0-9_]+)+)\b", text))
    assert written
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in (1, 2, 3)}
    assert written - known - nodes == set()


def test_the_encoder_of_the_readme_works_as_written(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "ENCODER_REGISTRY.register()" in block]
    try:
        plugin = tmp_path / "my_parts.py"
        plugin.write_text(code)
        name = ["MODEL.YOLOF.ENCODER.NAME", "OneConvEncoder"]
        cfg = build_cfg(str(BASE), ["PLUGINS", f"('{plugin}',)", *name])
        encoder = build_encoder(cfg, ShapeSpec(channels=8, stride=32))
        assert encoder(torch.zeros(2, 8, 3, 5)).shape == (2, 256, 3, 5)
        assert encoder.output_shape() == ShapeSpec(channels=256, stride=32)
    finally:
        ENCODER_REGISTRY._obj_map.pop("OneConvEncoder", None)


def test_the_readme_names_every_part_and_what_it_is_compared_with() -> None:
    text = (ROOT / "README.md").read_text()
    registries = (ENCODER_REGISTRY, DECODER_REGISTRY, MATCHER_REGISTRY, LOSS_REGISTRY)
    registries += (META_ARCH_REGISTRY,)
    own = [
        name
        for registry in registries
        for name, part in registry
        if part.__module__.startswith("yolof_d2.")
    ]
    assert len(own) > 15
    assert [name for name in own if f"`{name}`" not in text and name != "YOLOF"] == []


def test_the_benchmark_in_the_readme_is_that_of_its_record() -> None:
    record = json.loads((ROOT / "records" / "benchmark" / "cpu.json").read_text())
    yolof, retinanet = record["models"]
    assert record["settings"]["size"] == [800, 1216] and not record["commit"].endswith("-dirty")
    rows = {}
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("|") and line.count("|") == 5:
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name.split(",")[0].split(" of a ")[0]] = cells

    def expect(mode: str) -> list[str]:
        ratio = retinanet[mode]["ratio_to_first"]
        seconds = [f"{model[mode]['median_seconds']:.2f} s" for model in (yolof, retinanet)]
        return [*seconds, f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"]

    def expect_amounts(amounts: list[float], form: str) -> list[str]:
        return [*(form.format(x) for x in amounts), f"{amounts[1] / amounts[0]:.2f}"]

    memory = [model["peak_memory_mib"]["training"]["process"] for model in (yolof, retinanet)]
    work = [sum(model["multiply_adds"].values()) / 1e9 for model in (yolof, retinanet)]
    size = [
        sum(sum(part.values()) for part in model["parameters"].values()) / 1e6
        for model in (yolof, retinanet)
    ]
    assert rows["training step"] == expect("training")
    assert rows["inference"] == expect("inference")
    assert rows["peak memory"] == expect_amounts(memory, "{:.0f} MiB")
    assert rows["multiply-adds"] == expect_amounts(work, "{:.1f} G")
    assert rows["parameters"] == expect_amounts(size, "{:.1f} M")
