from __future__ import annotations

from experiments.store.ledger import Ledger
from experiments.store.records import ResolvedConfig, RunRecord, SweepRecord, SweepRun


def test_each_run_claims_its_place_in_the_submission(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.claim("t", ["a", "b", "c"])
    claims = [ledger.read_claim(identity) for identity in ("a", "b", "c")]
    assert [(each.token, each.index) for each in claims if each] == [("t", 0), ("t", 1), ("t", 2)]


def test_the_first_record_of_a_run_stays_and_links_move_with_the_folder(tmp_path):
    ledger = Ledger(tmp_path / "runs")
    run = SweepRun(id="1", name="a", row="a", cells={}, seed=0)
    for name in ("first", "second"):
        sweep = SweepRecord(sweep=name, question="?", baseline="a", runs=[run])
        ledger.write_sweep(sweep, [RunRecord(id="1", sweep=name, config=ResolvedConfig({}))])
    assert ledger.require_run("1").sweep == "first"
    moved = (tmp_path / "runs").rename(tmp_path / "moved")
    assert (moved / "sweeps" / "second" / "a" / "run.json").is_file()
