from __future__ import annotations

import json
import xml.etree.ElementTree as ET

from PIL import Image

from tests.small import ROOT
from yolof_d2.benchmark.parts import PARTS
from yolof_d2.benchmark.render import draw, render


def test_table_and_picture_show_every_model_and_every_part(tmp_path):
    record = json.loads((ROOT / "records" / "benchmark" / "cpu.json").read_text())
    text = render(record)
    for model in record["models"]:
        assert model["name"] in text
    for part in set(PARTS["training"]) | set(PARTS["inference"]):
        assert part in text
    ratio = record["models"][1]["inference"]["ratio_to_first"]["median"]
    assert f"inference 1 : {ratio:.2f}" in text
    files = [tmp_path / "a.png", tmp_path / "a.svg"]
    draw(record, files)
    assert Image.open(files[0]).size[0] > 800
    ET.fromstring(files[1].read_text())
