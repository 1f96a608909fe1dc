"""Write ``metrics.json`` and TensorBoard's file; :mod:`.metrics_file` reads the former."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import IO, Any

from detectron2.utils.events import (
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from yolof_d2.files import write_text

from .metrics_file import read_metrics

_WINDOW = 20  # iterations over which the writers smooth; Detectron2's default


def storage_state(storage: EventStorage) -> dict[str, Any]:
    """Return what the next values that are written will depend on, for a checkpoint."""
    hints = storage.smoothing_hints()
    return {
        name: {"smoothed": hints[name], "values": [list(v) for v in history.values()[-_WINDOW:]]}
        for name, history in storage.histories().items()
    }


def restore_storage(storage: EventStorage, state: dict[str, Any]) -> None:
    """Put the values of :func:`storage_state` into a new storage, with their iterations."""
    for name, each in state.items():
        for value, iteration in each["values"]:
            storage.put_scalar(name, value, smoothing_hint=each["smoothed"], cur_iter=iteration)


class MetricsWriter(JSONWriter):
    """Write lines in the order of iterations.

    Detectron2's writer has them in the order in which names first came up. Only sorted lines tell a
    reader that a run went back to a checkpoint.
    """

    _file_handle: IO[str]
    _last_write: int

    def __init__(self, json_file: str):
        super().__init__(json_file, _WINDOW)
        self._path = Path(json_file)

    @property
    def written(self) -> int:
        """The last iteration that has a line; -1 before the first."""
        return self._last_write

    def resume(self, written: int) -> None:
        """Go on as after ``written``: the lines of later iterations are removed."""
        kept = [each for each in read_metrics(self._path) if each["iteration"] <= written]
        self._file_handle.close()
        write_text(self._path, "".join(map(_line, kept)))
        self._file_handle = self._path.open("a")
        self._last_write = written

    def write(self) -> None:
        """Append the new scalars, one line per iteration."""
        new: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write:
                new[iteration][name] = value
        for iteration in sorted(new):
            self._file_handle.write(_line({**new[iteration], "iteration": iteration}))
            self._last_write = iteration
        self._file_handle.flush()
        os.fsync(self._file_handle.fileno())


def _line(record: dict[str, float]) -> str:
    return json.dumps(record, sort_keys=True) + "\n"


class TensorboardWriter(TensorboardXWriter):
    """Detectron2's, which a resumed run makes forget what comes again."""

    def resume(self, written: int) -> None:
        """Go on as after ``written``."""
        self._writer_args["purge_step"] = written + 1
        self._last_write = written
