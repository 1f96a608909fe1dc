from __future__ import annotations

from experiments.jobs.status import status_table
from tests.experiments.finished import FinishedSweep, summary


def test_the_table_has_states_reasons_progress_and_ap(tmp_path):
    sweep = FinishedSweep(tmp_path)
    sweep.add({"k": "1"}, 0, summary(32.0), evaluations=[[100, 32.0]])
    sweep.add({"k": "2"}, 0, state="failed", reason="RuntimeError: boom")
    sweep.add({"k": "3"}, 0)
    table = status_table(sweep.close(), "study")
    assert "study: 1 not submitted, 1 finished, 1 failed" in table
    lines = {line.split()[0]: line for line in table.splitlines() if line.startswith("k=")}
    assert "RuntimeError: boom" in lines["k=2,seed=0"] and "100/100" in lines["k=2,seed=0"]
    assert "32.0" in lines["k=1,seed=0"] and "finished" in lines["k=1,seed=0"]
