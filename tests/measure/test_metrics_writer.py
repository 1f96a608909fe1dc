from __future__ import annotations

from detectron2.utils.events import EventStorage

from yolof_d2.measure.metrics_file import read_metrics
from yolof_d2.measure.metrics_writer import MetricsWriter


def test_lines_are_in_the_order_of_their_iterations(tmp_path):
    path = tmp_path / "metrics.json"
    writer = MetricsWriter(str(path))
    with EventStorage() as storage:
        for iteration in range(8):
            storage.iter = iteration
            storage.put_scalar("loss", iteration, smoothing_hint=False)
            if iteration in (2, 6):
                storage.put_scalar("AP", iteration, smoothing_hint=False)
            if iteration == 3:
                storage.put_scalar("once", iteration, smoothing_hint=False)
            if iteration % 4 == 3:
                writer.write()
    writer.close()
    assert read_metrics(path) == [
        {"iteration": 2, "AP": 2},
        {"iteration": 3, "loss": 3, "once": 3},
        {"iteration": 6, "AP": 6},
        {"iteration": 7, "loss": 7},
    ]
