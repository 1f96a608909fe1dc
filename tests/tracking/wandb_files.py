"""Reads the files that W&B's client writes, with the client's own reader."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record, RunRecord
from wandb.sdk.internal.datastore import DataStore


@dataclass
class LocalRun:
    """What one folder of W&B's has."""

    run: RunRecord
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def read_run(folder: Path) -> LocalRun:
    """Read ``run-<id>.wandb`` in a folder."""
    (file,) = folder.glob("*.wandb")
    store = DataStore()
    store.open_for_scan(str(file))
    found = LocalRun(RunRecord())
    while data := store.scan_data():
        record = Record.FromString(data)
        if record.HasField("run"):
            found.run = record.run
            found.config |= _items(record.run.config)
        elif record.HasField("config"):
            found.config |= _items(record.config)
        elif record.HasField("history"):
            row = {_name(item): json.loads(item.value_json) for item in record.history.item}
            step = record.history.step.num if record.history.HasField("step") else row["_step"]
            found.rows.append({**row, "_step": step})
        elif record.HasField("summary"):
            found.summary |= _items(record.summary)
    return found


def _items(record: Any) -> dict[str, Any]:
    return {_name(item): json.loads(item.value_json) for item in record.update}


def _name(item: Any) -> str:
    return item.key or ".".join(item.nested_key)
