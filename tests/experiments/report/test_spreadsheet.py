"""The CSV has the figures of the summaries, to the last digit."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from experiments.jobs.state import Observation, State
from experiments.report.outcomes import Outcome
from experiments.report.spreadsheet import to_csv
from experiments.store.records import (
    AttemptSpan,
    Progress,
    ResolvedConfig,
    RunRecord,
    Summary,
    SweepRun,
)
from tests.experiments.finished import summary


def outcome_of(content: dict[str, Any], state: State = State.FINISHED, **cells: str) -> Outcome:
    run = SweepRun(id="0" * 12, name="n", row="n", cells=cells or {"k": "1"}, seed=7)
    progress = Progress(attempts=[AttemptSpan(token=token) for token in "ttu"])
    record = RunRecord(config=ResolvedConfig({}))
    return Outcome(
        run, Observation(state, progress=progress), record, Summary.model_validate(content)
    )


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def numbers_in(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from numbers_in(value)
    elif isinstance(tree, (int, float)):
        yield tree


def test_no_figure_of_a_summary_is_lost_or_rounded():
    content = json.loads(json.dumps(summary()))
    del content["hardware"]["cpus"], content["seed"]  # of the machine, and of sweep.json
    (line,) = read(to_csv([outcome_of(content)]))
    assert {json.dumps(number) for number in numbers_in(content)} <= set(line.values())
    assert (line["seed"], line["state"], line["starts"], line["requeues"]) == (
        "7", "finished", "3", "1",
    )  # fmt: skip


def test_each_figure_stands_under_its_name():
    content = summary()
    (line,) = read(to_csv([outcome_of(content)]))
    box, evaluation = content["results"]["bbox"], content["evaluation"]
    expected = {
        "AP": box["AP"], "AP50": box["AP50"], "APs": box["APs"], "AR100": box["AR100"],
        "ARl": box["ARl"], "AP-cat": box["AP-cat"], "AP-traffic light": box["AP-traffic light"],
        "seconds_per_iteration": content["median_seconds_per_iteration"],
        "memory_mib": content["peak_memory_mib"]["allocated"],
        "train_memory_process_mib": content["peak_memory_mib"]["process"],
        "eval_memory_allocated_mib": evaluation["peak_memory_mib"]["allocated"],
        "images_per_second": content["images_per_second"],
        "eval_images_per_second": evaluation["images_per_second"],
        "positives_per_gt_small": content["matching"]["positives_per_gt_small"],
        "contested_anchor_share": content["matching"]["contested_anchor_share"],
        "error_localisation": content["results"]["errors"]["localisation"],
        "batch_size": 16, "ranks": 8, "iterations": 100, "commit": "abc123",
    }  # fmt: skip
    assert {name: line[name] for name in expected} == {n: str(v) for n, v in expected.items()}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_written_as_json_does(value):
    (line,) = read(to_csv([outcome_of(summary(results__bbox__AP=value))]))
    assert line["AP"] == json.dumps(value)


def test_what_a_run_lacks_is_empty_and_every_run_has_its_line():
    old = {"results": {"bbox": {"AP": 30.5, "APs": None}}, "peak_memory_mib": {"process": 900.5}}
    running = outcome_of({}, State.RUNNING, encoder="a,b")
    first, second = read(to_csv([outcome_of(old), running]))
    assert (first["AP"], first["APs"], first["AR1"], first["memory_mib"]) == (
        "30.5", "", "", "900.5",
    )  # fmt: skip
    assert (first["k"], first["encoder"], second["k"], second["encoder"]) == ("1", "", "", "a,b")
    assert second["state"] == "running" and second["AP"] == ""
