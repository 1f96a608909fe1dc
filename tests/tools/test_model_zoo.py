from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from yolof_d2.tools.model_zoo import main, published, read_records

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def rows(text: str, column: str) -> list[dict[str, str]]:
    """Rows of the table that has such a column."""
    tables = re.findall(r"((?:^\|.*\n)+)", text, re.MULTILINE)
    for table in tables:
        lines = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")
        ]
        header, _, *body = [line for line in lines if len(line) > 1]
        if column in header:
            return [dict(zip(header, line, strict=True)) for line in body]
    raise AssertionError(f"no table has a column {column}")


@pytest.fixture(scope="module")
def zoo() -> str:
    return (ROOT / "MODEL_ZOO.md").read_text()


def test_the_file_in_the_repository_is_what_the_command_writes():
    assert main(["--check"]) == 0


def test_every_figure_of_a_run_is_that_of_its_record(zoo):
    found = rows(zoo, "record")
    assert len(found) == len(list((ROOT / "records").glob("*.json"))) > 0
    for row in found:
        (path,) = re.findall(r"\((records/[\w.]+)\)", row["record"])
        record = json.loads((ROOT / path).read_text())
        for column in ("AP", "AP50", "AP75"):
            assert row[column] == f"{record['results']['bbox'][column]:.1f}", (path, column)
        assert row["iterations"] == str(record["iterations"])
        assert row["s/iter"] == f"{record['median_seconds_per_iteration']:.2f}"
        assert row["minutes"] == f"{record['training_minutes']:.1f}"
        assert row["MiB"] == f"{record['peak_memory_mib']['process']:.0f}"
        assert row["seed"] == str(record["seed"])
        assert row["commit"] == record["commit"]
        assert row["command"] == f"`{record['command']}`"


def test_every_config_that_can_be_run_has_a_row_and_nothing_else(zoo):
    links = {re.search(r"\((.+)\)", row["config"]).group(1) for row in rows(zoo, "published")}
    files = {str(file.relative_to(ROOT)) for file in (ROOT / "configs").rglob("*.yaml")}
    unlisted = {file.split("/")[-1] for file in files - links}
    assert links <= files
    assert {name for name in unlisted if not name.startswith("Base-")} == {
        file.name for file in (ROOT / "configs" / "fragments").iterdir()
    }


def test_what_was_never_run_is_said_to_be_not_trained(zoo):
    ours = {row["config"].split("]")[0][1:]: row["ours"] for row in rows(zoo, "published")}
    assert ours["yolof_R_50_C5_1x"] == "not trained"
    record = json.loads((ROOT / "records" / "bccd_R_50_DC5.json").read_text())
    assert ours["bccd_R_50_DC5"].startswith(f"[{record['results']['bbox']['AP']:.1f}](records/")


def test_the_published_model_has_the_derived_figures(zoo):
    (row,) = [row for row in rows(zoo, "published") if "[yolof_R_50_C5_1x]" in row["config"]]
    assert row["published"].startswith("37.7 AP")
    assert row["parameters"] == "44.17"
    # Encoder and decoder 4.75 and 16.9, as derived by hand; the backbone by fvcore, see below.
    assert row["GMAC"] == "104.1"
    assert row["input"] == "800 x 1333"
    parts = (row[name] for name in ("backbone", "encoder", "decoder", "matcher", "box loss"))
    assert [*parts] == ["ResNet-50", "Dilated", "ImplicitObjectness", "Uniform", "giou"]


# Mistakes


@pytest.fixture
def small_zoo(tmp_path):
    """Folders of one config and its record, and the arguments that name them."""
    (tmp_path / "records").mkdir()
    for file in ("Base-YOLOF.yaml", "yolof_R_50_C5_1x.yaml", "fragments/yolof_1x.yaml"):
        target = tmp_path / "configs" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "configs" / file, target)
    names = ("configs", "records")
    arguments = [word for name in names for word in (f"--{name}", str(tmp_path / name))]
    return tmp_path, [*arguments, "--output", str(tmp_path / "zoo.md")]


def test_a_new_record_appears_and_makes_the_old_file_out_of_date(small_zoo):
    folder, arguments = small_zoo
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    assert "not trained" in (folder / "zoo.md").read_text()
    record = json.loads((ROOT / "records" / "synthetic.json").read_text())
    config = folder / "configs" / "yolof_R_50_C5_1x.yaml"
    record["command"] = f"python train_net.py --config-file {config}"
    record["results"]["bbox"]["AP"] = 37.65
    (folder / "records" / "run.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match=r"out of date; run python -m yolof_d2\.tools\.model_zoo"):
        main([*arguments, "--check"])
    assert main(arguments) == 0
    assert f"[37.6]({folder / 'records' / 'run.json'})" in (folder / "zoo.md").read_text()


def test_a_config_without_a_published_line_is_named(small_zoo):
    folder, arguments = small_zoo
    (folder / "configs" / "bare.yaml").write_text('# Bare\n_BASE_: "yolof_R_50_C5_1x.yaml"\n')
    with pytest.raises(SystemExit, match=r"bare\.yaml: expected a header line '# Published:"):
        main(arguments)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"command": "python train_net.py"}'])
def test_a_file_that_is_no_record_is_named(small_zoo, text):
    folder, arguments = small_zoo
    (folder / "records" / "odd.json").write_text(text)
    with pytest.raises(SystemExit, match=r"odd\.json: expected the summary\.json of a run"):
        main(arguments)


def test_a_missing_folder_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["--configs", "no/such"])
    assert "no folder no/such" in capsys.readouterr().err


def test_the_source_stands_with_the_published_figure():
    assert published(ROOT / "configs" / "yolof_R_50_C5_1x.yaml").startswith("37.7 AP on COCO")
    assert set(read_records(ROOT / "records")) == {
        *(f"configs/small_data/{name}.yaml" for name in ("bccd_R_50_C5_240it", "bccd_R_50_DC5")),
        "configs/small_data/coco8_overfit.yaml",
        "configs/quick/synthetic.yaml",
    }
