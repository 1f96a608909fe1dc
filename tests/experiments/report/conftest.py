from __future__ import annotations

from pathlib import Path

import pytest

from experiments.store.ledger import Ledger
from tests.experiments.finished import CONFIG, FinishedSweep, changed, old_summary


@pytest.fixture
def sweep(tmp_path: Path) -> FinishedSweep:
    """A sweep without runs."""
    return FinishedSweep(tmp_path)


@pytest.fixture
def ledger(sweep: FinishedSweep) -> Ledger:
    """k=1: AP 30 and 32; k=2: AP 35, the other failed; k=3: not submitted."""
    for k, seed, ap in ((1, 0, 30.0), (1, 1, 32.0), (2, 0, 35.0)):
        points = [[50, 9.0], [100, ap]]
        config = changed(CONFIG, MODEL__YOLOF__MATCHER__TOPK=k)
        overrides = {"MODEL.YOLOF.MATCHER.TOPK": k}
        sweep.add(
            {"k": str(k)}, seed, old_summary(ap), config=config, overrides=overrides,
            evaluations=points, attempts=[{"token": "a"}, {"token": "b"}],
        )  # fmt: skip
    sweep.add({"k": "2"}, 1, state="failed", reason="RuntimeError: boom")
    for seed in (0, 1):
        sweep.add({"k": "3"}, seed)
    return sweep.close()
