"""Tables of the report: figures worked out by hand, and nothing left out."""

from __future__ import annotations

import json

from experiments.report.write import write_report
from tests.experiments.finished import CONFIG, cells, changed, csv_of, summary


def test_means_deviations_differences_and_what_is_missing(ledger):
    text, _ = write_report(ledger, "study")
    # Of 30 and 32: mean 31, sample deviation sqrt(2) = 1.41.
    assert cells(text, "1") == [
        "1", "31.0 ± 1.4", "51.0 ± 1.4", "31.0 ± 1.4", "—", "31.0 ± 1.4", "31.0 ± 1.4",
        "baseline", "—", "0.250", "900", "—", "2 seeds",
    ]  # fmt: skip
    two = cells(text, "2")
    # Seed 0 is all that both have: 35 - 30, and no interval.
    assert (two[1], two[7], two[12]) == ("35.0", "+5.0, n=1", "1 of 2 seeds; seed 1 failed")
    three = cells(text, "3")
    assert (three[1], three[7]) == ("—", "—")
    assert three[12] == "0 of 2 seeds; seeds 0, 1 not submitted"
    assert "3 of 6 runs have results; without: k=2,seed=1, k=3,seed=0, k=3,seed=1" in text
    assert "Commit: abc123" in text and "8 ranks a run" in text and "Seeds: 0, 1" in text
    assert "Evaluated on: coco_val (sha256 bbbbbbbb)" in text
    assert "Started more than once: k=1,seed=0 2" in text


def test_all_runs_are_listed_with_hash_state_starts_and_requeues(sweep):
    attempts = [{"token": "a"}, {"token": "a"}, {"token": "b"}]
    sweep.add({"k": "1"}, 0, summary(30.0), attempts=attempts)
    sweep.add({"k": "2"}, 0, state="failed", reason="RuntimeError: boom")
    text, _ = write_report(sweep.close(), "study", plots=False)
    assert cells(text, "k=1,seed=0") == [
        "k=1,seed=0", "`000000000000`", "finished", "3", "1", "2026-11-25T03:42:10Z", "30.00",
    ]  # fmt: skip
    assert cells(text, "k=2,seed=0")[2:5] == ["failed: RuntimeError: boom", "1", "0"]
    assert "Started more than once: k=1,seed=0 3 (1 requeued)" in text


def test_differences_are_paired_by_seed_and_have_an_interval(sweep):
    for seed, ap in enumerate((30.0, 40.0, 50.0)):
        sweep.add({"k": "1"}, seed, summary(ap))
        sweep.add({"k": "2"}, seed, summary(ap + seed + 1))
    text, _ = write_report(sweep.close(), "study", plots=False)
    # 1, 2, 3: 2 +- 4.303 * 1 / sqrt(3), though the rows themselves scatter by 10.
    assert cells(text, "2")[7] == "+2.0 [-0.5, +4.5], n=3"
    assert cells(text, "1")[1] == "40.0 ± 10.0"


def test_a_seed_without_a_figure_is_not_averaged_away(sweep):
    sweep.add({"k": "1"}, 0, summary(30.0))
    sweep.add({"k": "1"}, 1, summary(31.0, results__bbox__AP=None))  # it predicted nothing
    text, _ = write_report(sweep.close(), "study", plots=False)
    assert cells(text, "1")[1] == "30.0 (1 of 2)"


def test_the_table_is_the_csv_rounded_and_the_csv_is_the_summaries(sweep):
    aps = (33.438837441562505, 24.441898193021608)
    folders = [sweep.add({"k": str(k)}, 0, summary(ap)) for k, ap in enumerate(aps)]
    text, files = write_report(sweep.close(), "study", plots=False)
    for folder, line in zip(folders, csv_of(files), strict=True):
        content = json.loads((folder / "summary.json").read_text())
        assert line["AP"] == repr(content["results"]["bbox"]["AP"])
        row = cells(text, line["k"])
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        assert row[1:7] == [f"{float(line[name]):.1f}" for name in names]
        assert row[8:12] == [
            f"{float(line['images_per_second']):.1f}",
            f"{float(line['seconds_per_iteration']):.3f}",
            f"{float(line['memory_mib']):.0f}",
            f"{float(line['eval_seconds']):.1f}",
        ]


def test_errors_and_positives_stand_beside_their_differences(sweep):
    for k, missed, positives in (("1", 4.0, 7.0), ("2", 2.5, 8.5)):
        keys = {"results__errors__missed": missed, "matching__positives_per_gt_small": positives}
        sweep.add({"k": k}, 0, summary(30.0, matching__ignored_anchor_share=0.0125, **keys))
    text, _ = write_report(sweep.close(), "study", plots=False)
    assert cells(text, "1", 1)[6] == "4.0" and cells(text, "2", 1)[6] == "2.5 (-1.5)"
    assert cells(text, "2", 2)[2] == "8.5" and cells(text, "2", 2)[6] == "1.25"


def test_knobs_are_listed_with_their_part_in_the_question(ledger):
    text, _ = write_report(ledger, "study", plots=False)
    assert cells(text, "MODEL.YOLOF.MATCHER.TOPK") == [
        "MODEL.YOLOF.MATCHER.TOPK", "question", "1", "2", "4",
    ]  # fmt: skip


def test_many_rows_share_a_line_of_a_knob(sweep):
    for k in range(12):
        config = changed(CONFIG, SOLVER__BASE_LR=0.5 if k == 7 else 0.12)
        sweep.add({"k": str(k)}, 0, summary(30.0 + k), config=config)
    text, _ = write_report(sweep.close(), "study", plots=False)
    assert cells(text, "SOLVER.BASE_LR") == [
        "SOLVER.BASE_LR", "also differs", "0.12 (11 rows); 0.5 (k=7)",
    ]  # fmt: skip
