"""Pictures: what is drawn, where nothing is, and that labels do not lie on one another."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from experiments.errors import ExperimentError
from experiments.report import plots
from experiments.report.outcomes import Comparison, compare, read_outcomes
from experiments.report.plots import draw_plots
from tests.experiments.finished import FinishedSweep, old_summary, summary


def comparison_of(sweep: FinishedSweep) -> Comparison:
    ledger = sweep.close()
    record = ledger.read_sweep(sweep.name)
    return compare(record, read_outcomes(ledger, record)[0])


def many(tmp_path: Path, rows: int) -> Comparison:
    sweep = FinishedSweep(tmp_path)
    for row in range(rows):
        cells = {"encoder": f"SomeLongNameOfAnEncoder{row}", "matcher": "UniformMatcher"}
        evaluations = [[50, 20.0 + row / 3], [100, 30.0 + row / 3]]
        sweep.add(cells, 0, summary(30.0 + row / 3), evaluations=evaluations)
    return comparison_of(sweep)


def test_a_sweep_with_all_figures_has_all_pictures(tmp_path):
    sweep = FinishedSweep(tmp_path, question="Is $x_1 a formula?")
    evaluations = [[50, 9.0], [100, 30.0]]
    for seed in (0, 1):
        sweep.add({"run": "$\\frac{"}, seed, summary(30.0 + seed), evaluations=evaluations)
    sweep.add({"run": "b"}, 0, state="running", evaluations=[[50, 12.0], [75, None]])
    drawn = draw_plots(comparison_of(sweep), tmp_path)
    assert list(drawn) == [
        "ap_by_size", "ap_over_iterations", "ap_against_memory", "ap_against_speed", "error_types",
        "positives_per_object", "overview",
    ]  # fmt: skip
    for name, path in drawn.items():
        image = Image.open(path).convert("L")
        assert min(image.size) > 150 and len(image.getcolors()) > 50, name
        if name != "overview":
            assert ET.parse(path.with_suffix(".svg")).getroot().tag.endswith("svg")
    assert drawn["overview"] == tmp_path / "report.png"


def test_there_is_no_picture_without_data_and_an_old_one_is_removed(tmp_path):
    sweep = FinishedSweep(tmp_path)
    sweep.add({"k": "1"}, 0, old_summary(30.0))
    comparison = comparison_of(sweep)
    for name in ("error_types.png", "error_types.svg", "mine.png"):
        (tmp_path / "plots").mkdir(exist_ok=True)
        (tmp_path / "plots" / name).touch()
    drawn = draw_plots(comparison, tmp_path)
    assert list(drawn) == ["ap_by_size", "ap_against_memory", "overview"]
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "ap_by_size.png", "ap_by_size.svg", "ap_against_memory.png", "ap_against_memory.svg",
        "mine.png",
    }  # fmt: skip


def test_nothing_is_drawn_of_nothing(tmp_path):
    sweep = FinishedSweep(tmp_path)
    sweep.add({"k": "1"})
    assert draw_plots(comparison_of(sweep), tmp_path) == {}
    assert not (tmp_path / "plots").exists()


def test_curves_are_those_of_metrics_json_or_else_of_an_old_record(tmp_path):
    sweep = FinishedSweep(tmp_path)
    points = [[50, 8.0], [75, None]]
    folder = sweep.add({"k": "1"}, 0, summary(30.0), evaluations=points)
    sweep.add({"k": "1"}, 1, summary(31.0), evaluations=points)
    records = [(24, 9.0), (49, 12.0), (59, None), (39, float("nan")), (74, 20.0), (100, 30.0)]
    folder.joinpath("metrics.json").write_text(
        "".join(  # of a run that went back to a checkpoint; the last evaluation is of its end
            json.dumps({"iteration": iteration, **({} if ap is None else {"bbox/AP": ap})}) + "\n"
            for iteration, ap in records
        )
    )
    comparison = comparison_of(sweep)
    scene = plots._set_scene(comparison.rows, comparison.baseline.name)
    assert list(scene.curves.values()) == [[(25, 9.0), (75, 20.0), (100, 30.0)], [(50, 8.0)]]
    lines = plots._draw_curves(scene).axes[0].lines
    assert [line.get_xydata().tolist() for line in lines] == [
        [[25, 9.0], [75, 20.0], [100, 30.0]], [[50, 8.0]],
    ]  # fmt: skip


def overlap(texts: list, renderer: object) -> list[tuple[str, str]]:
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    return [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if one.overlaps(two)]


@pytest.mark.parametrize("rows", [1, 24])
@pytest.mark.parametrize("name", ["ap_by_size", "ap_over_iterations", "ap_against_speed"])
def test_labels_do_not_lie_on_one_another(tmp_path, rows, name):
    comparison = many(tmp_path, rows)
    with matplotlib.rc_context(plots._STYLE):
        figure = plots.PICTURES[name](plots._set_scene(comparison.rows, comparison.baseline.name))
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw_without_rendering()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes.xaxis.label]
        low, high = sorted(axes.get_ylim())  # labels beyond it are not drawn
        texts += [each for each in axes.get_yticklabels() if low <= each.get_position()[1] <= high]
    texts = [text for text in texts if text.get_visible() and text.get_text()]
    assert len(texts) >= rows
    assert overlap(texts, renderer) == []
    for legend, axes in itertools.product(figure.legends, figure.axes):
        inside = axes.get_window_extent(renderer)
        assert not inside.overlaps(legend.get_window_extent(renderer))
    page = figure.bbox
    for text in texts:
        box = text.get_window_extent(renderer)
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1


def test_of_many_rows_the_best_and_the_baseline_are_shown_each_with_its_look(tmp_path):
    comparison = many(tmp_path, 30)
    scene = plots._set_scene(comparison.rows, comparison.baseline.name)
    shown = [comparison.rows.index(row) for row in scene.rows]
    assert shown == [0, *range(7, 30)]  # AP rises from row to row
    assert len({(look.color, look.marker) for look in scene.looks.values()}) == plots.MAX_ROWS
    assert [name for name, look in scene.looks.items() if "(baseline)" in look.label] == [
        comparison.baseline.name
    ]


def test_a_folder_that_cannot_be_written(tmp_path):
    sweep = FinishedSweep(tmp_path)
    sweep.add({"k": "1"}, 0, summary())
    (tmp_path / "file").touch()
    with pytest.raises(ExperimentError, match=r"cannot write the pictures.*--no-plots"):
        draw_plots(comparison_of(sweep), tmp_path / "file")
