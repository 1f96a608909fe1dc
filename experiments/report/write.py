"""Write the report of a sweep from the files of its runs: tables, plots, and a page to mail."""

from __future__ import annotations

from pathlib import Path

from experiments.errors import ExperimentError
from experiments.store.ledger import Ledger
from experiments.store.record_files import write_text

from .fairness import find_mixes
from .outcomes import compare, read_outcomes
from .page import to_html, to_latex, to_markdown
from .spreadsheet import to_csv
from .tables import compose, results_table


def write_report(
    ledger: Ledger, name: str, *, plots: bool = True, allow_mixed: bool = False
) -> tuple[str, list[Path]]:
    """Write ``report.md``, ``.csv``, ``.tex``, ``.html``, ``.png`` and ``plots/`` of a sweep.

    With ``allow_mixed``, runs of different data or schedules are compared, with a warning.

    Returns:
        The Markdown text, and the files written.

    Raises:
        ExperimentError: the sweep was never submitted, its runs cannot be compared, or the folder
        cannot be written.
    """
    sweep = ledger.read_sweep(name)
    outcomes, remark = read_outcomes(ledger, sweep)
    mixes = find_mixes([outcome for outcome in outcomes if outcome.summary])
    if mixes and not allow_mixed:
        raise ExperimentError(
            f"the runs of {name} were not trained and evaluated alike, so that their figures "
            "cannot be compared:"
            + "".join(f"\n  {mix}" for mix in mixes)
            + "\nExpected the same data and as many images for all. Make a sweep of each kind, or "
            f"compare them all the same: python -m experiments report {name} --allow-mixed"
        )
    comparison = compare(sweep, outcomes)
    folder = ledger.sweep_folder(name)
    drawn = None
    if plots:
        from .plots import draw_plots

        drawn = draw_plots(comparison, folder)
    document = compose(comparison, mixes, drawn, remark)
    text = to_markdown(document)
    table = results_table(comparison)
    contents = {
        "report.md": text,
        "report.csv": to_csv(outcomes),
        "report.tex": to_latex(table, caption=sweep.question, label=name),
        "report.html": to_html(document, folder),
    }
    for file, content in contents.items():
        write_text(folder / file, content, durable=False)
    return text, [*(folder / file for file in contents), *(drawn or {}).values()]
