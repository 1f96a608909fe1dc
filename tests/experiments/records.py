"""Write and read records as plain JSON, with any fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": 1, **content}))


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
