from __future__ import annotations

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """The images that :data:`.good.GOOD` lists."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "empty.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name)
    return tmp_path
