from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolof_d2.measure.metrics_file import read_metrics, summarise


def test_it_needs_no_torch():
    code = "import sys, yolof_d2.measure.metrics_file; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(
    starts=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=5),
    torn=st.booleans(),
)
def test_an_interrupted_run_reads_as_one_that_was_not(tmp_path_factory, starts, torn):
    path = tmp_path_factory.mktemp("metrics") / "metrics.json"
    lines, last_start = [], {}
    reached = 0
    for number, (first, count) in enumerate(starts):
        first = min(first, reached)  # a run goes on from what it reached, or from before
        for iteration in range(first, first + count):
            record = {"iteration": iteration, "start": number}
            if torn and iteration == first and number:
                lines[-1] += '{"iteration": 99, "sta'  # killed while it wrote
            lines.append(json.dumps(record) + "\n")
        reached = first + count
        # What an earlier start did from here on is not part of the run.
        last_start = {i: n for i, n in last_start.items() if i < first}
        last_start |= dict.fromkeys(range(first, reached), number)
    path.write_text("".join(lines))
    found = read_metrics(path)
    assert [(r["iteration"], r["start"]) for r in found] == sorted(last_start.items())


def test_what_is_not_a_record_is_left_out(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_bytes(
        b'{"iteration": 1, "a": NaN}\n\n\xff\xfe\n[3]\n{"a": 1}\n{"iteration": 2}\n{"it'
    )
    first, second = read_metrics(path)
    assert math.isnan(first["a"]) and second == {"iteration": 2}


def test_a_run_without_metrics_has_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.json") == []


def test_the_digest_of_a_run_worked_out_by_hand():
    records = [
        {"iteration": 9, "time": 1.0, "train/memory_process_mib": 300.04, "match/x": 2.0},
        {"iteration": 19, "time": 9.0, "train/memory_process_mib": 100.0, "match/x": math.nan},
        {"iteration": 20, "eval/seconds": 5.0, "eval/memory_process_mib": 900.0, "match/x": 4.0},
        {"iteration": 29, "time": 2.0, "train/images_per_second": 8.0, "checkpoint/seconds": 0.5},
    ]
    found = summarise(records)
    assert found["median_seconds_per_iteration"] == 2.0
    assert found["training_minutes"] == pytest.approx((10 * 1 + 10 * 9 + 10 * 2) / 60)
    assert found["images_per_second"] == 8.0 and found["data_time_share"] is None
    assert found["peak_memory_mib"] == {"process": 300.0}
    assert found["evaluation"] == {
        "seconds": 5.0,
        "images_per_second": None,
        "peak_memory_mib": {"process": 900.0},
    }
    assert found["checkpoint_seconds"] == 0.5
    assert found["matching"] == {"x": 3.0}


def test_a_run_in_which_nothing_was_measured_has_a_digest():
    found = summarise([{"iteration": 0}])
    assert found["median_seconds_per_iteration"] is None and found["peak_memory_mib"] == {}
