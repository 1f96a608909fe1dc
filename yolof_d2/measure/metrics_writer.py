"""Write ``metrics.json``; :mod:`.metrics_file` reads it."""

from __future__ import annotations

import json
import os
from collections import defaultdict

from detectron2.utils.events import JSONWriter, get_event_storage


class MetricsWriter(JSONWriter):
    """Write lines in the order of iterations.

    Detectron2's writer has them in the order in which names first came up. Only sorted lines tell a
    reader that a run went back to a checkpoint.
    """

    _last_write: int

    def write(self) -> None:
        """Append the new scalars, one line per iteration."""
        new: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write:
                new[iteration][name] = value
        for iteration in sorted(new):
            record = {**new[iteration], "iteration": iteration}
            self._file_handle.write(json.dumps(record, sort_keys=True) + "\n")
            self._last_write = iteration
        self._file_handle.flush()
        os.fsync(self._file_handle.fileno())
