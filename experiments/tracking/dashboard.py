"""Create or update a Weights & Biases workspace and report of a sweep.

Both plot the figures that runs log (``docs/measurements.md``) and are filtered by run id: neither
the group nor the name of a run says which sweeps contain it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from experiments.errors import ExperimentError, RecordError
from experiments.store.ledger import Ledger
from experiments.store.record_files import read_record, write_record
from experiments.store.records import ERRORS, METRICS, SHARES, SIZES, Record, RunRecord, Summary

from .wandb_identity import wandb_identity

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

TESTED = "0.4.13"
"""Version of wandb-workspaces, a public preview, that this module was tested with."""

PER_CLASS = "AP per class"


@dataclass(frozen=True)
class Content:
    """What a dashboard shows of a sweep."""

    name: str
    question: str
    entity: str  # user or team; empty stands for the key's own
    project: str
    runs: list[str]  # ids in Weights & Biases
    baseline: str | None  # id; None where the baseline has no folder
    memory: tuple[str, ...]  # kinds that all runs have, the one to compare them by first
    ranks: int  # the highest number of any run
    classes: list[str]  # empty until a run is finished
    commits: list[str]  # of finished runs
    report: str | None  # report.md without title and pictures; None where it is missing


class MadeView(BaseModel):
    """A workspace or a report on the server."""

    id: str = ""
    url: str


class DashboardRecord(Record):
    """``dashboard.json``: what was made for a sweep, and where."""

    entity: str
    project: str
    report: MadeView | None = None
    workspace: MadeView | None = None


class ViewSpec(Record):
    """``dashboard/*.json``: what would be sent, as the package serialises it."""

    entity: str
    project: str
    title: str
    description: str
    spec: Any


def dashboard(ledger: Ledger, name: str, *, dry_run: bool) -> str:
    """Create the workspace and the report of a sweep, or update those of an earlier call.

    ``dashboard.json`` in the sweep's folder records what was made, and where. An update replaces
    panels, text and filter; colours and hidden runs that people chose in the app stay. With
    ``dry_run``, what would be sent is written into ``dashboard/`` there, without key or network.

    Returns:
        What was made, and where, for people.

    Raises:
        ExperimentError: the sweep was never submitted; there is no key, network, entity or
        project; or wandb-workspaces has another version.
    """
    content = _gather(ledger, name)
    folder = ledger.sweep_folder(name)
    with _explained(name):
        text = _write_specs(content, folder) if dry_run else _save(content, folder)
    if not content.classes:
        text += f"\nNo run is finished: give the command again later for the section {PER_CLASS!r}."
    if content.report is None:
        command = f"python -m experiments report {name}"
        text += f"\nThe report has no table yet; see its text, or {command}"
    return text


def _gather(ledger: Ledger, name: str) -> Content:
    """Read the content of a dashboard from the files of the sweep and its runs."""
    sweep = ledger.read_sweep(name)
    records = {run.id: record for run in sweep.runs if (record := ledger.read_run(run.id))}
    if not records:
        raise ExperimentError(
            f"no run of sweep {name!r} has a folder in {ledger.root}; expected at least one. "
            f"Make them: python -m experiments submit {name}"
        )
    logged = {identity: wandb_identity(ledger, identity).id for identity in records}
    baselines = (logged.get(run.id) for run in sweep.runs if run.row == sweep.baseline)
    summaries = []
    for identity in records:
        with suppress(RecordError):  # `report` shows it
            file = ledger.run_folder(identity) / "summary.json"
            summaries.append(read_record(file, Summary) or Summary())
    metrics = dict.fromkeys(name for each in summaries for name in each.results.get("bbox", {}))
    commits = dict.fromkeys(summary.commit for summary in summaries if summary.commit)
    on_cpu = any(record.config["MODEL.DEVICE"] == "cpu" for record in records.values())
    return Content(
        name=name,
        question=sweep.question,
        entity=_choose("ENTITY", records.values(), default=""),
        project=_choose("PROJECT", records.values(), default="yolof_d2"),
        runs=list(logged.values()),
        baseline=next(filter(None, baselines), None),
        memory=("process",) if on_cpu else ("allocated", "reserved", "process"),
        ranks=max(record.ranks for record in records.values()),
        classes=[metric.removeprefix("AP-") for metric in metrics if metric.startswith("AP-")],
        commits=list(commits),
        report=_read_report(ledger.sweep_folder(name) / "report.md", sweep.question),
    )


def _choose(key: str, records: Iterable[RunRecord], default: str) -> str:
    """Return the value of the environment, else of the configs; old ones have none."""
    variable = f"WANDB_{key}"
    if given := os.environ.get(variable):
        return given
    values = {record.config.get(f"WANDB.{key}") or default for record in records}
    if len(values) > 1:
        raise ExperimentError(
            f"the runs have more than one WANDB.{key}: {', '.join(map(repr, sorted(values)))}; "
            f"expected one, for a workspace shows one. Set {variable} to the one to show"
        )
    return values.pop()


def _read_report(path: Path, question: str) -> str | None:
    """Return ``report.md`` less what the app's report shows elsewhere, or cannot show."""
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(("# ", "![")) and line != question]
    return "\n".join(kept).strip()


def _panels(content: Content) -> dict[str, list[Any]]:
    """Return section -> panels, new at each call."""
    import wandb_workspaces.reports.v2 as wr

    def curve(*names: str) -> Any:
        # The app draws ten runs unless told otherwise.
        return wr.LinePlot(x="iteration", y=list(names), max_runs_to_show=len(content.runs))

    def curves(*names: str) -> list[Any]:
        return [curve(name) for name in names]

    memory = [f"{phase}/memory_{kind}_mib" for phase in ("train", "eval")
              for kind in content.memory]  # fmt: skip
    costs = {
        "peak memory of training": memory[0],
        "speed of training": "train/images_per_second",
        "speed of evaluation": "eval/images_per_second",
    }
    sections = {
        "AP": curves(*(f"bbox/{name}" for name in METRICS)),
        "AP against cost": [
            wr.ScatterPlot(title=f"AP against {cost}", x=name, y="bbox/AP")
            for cost, name in costs.items()
        ],
        PER_CLASS: curves(*(f"bbox/AP-{name}" for name in content.classes)),
        "Errors": curves(*(f"errors/{name}" for name in ERRORS)),
        "Matching": curves(
            *(f"match/positives_per_gt{size}" for size in SIZES),
            *(f"match/{name}_anchor_share" for name in SHARES),
        ),
        "Training": curves("total_loss", "loss_cls", "loss_box_reg", "lr", "train/grad_norm"),
        "Speed": curves(
            "train/images_per_second", "time", "train/data_time_share", "eval/images_per_second"
        ),
        "Memory": curves(*memory),
    }
    if content.ranks > 1:
        name = f"per_rank/train_memory_{content.memory[0]}_mib_rank"
        sections["Memory"].append(curve(*(f"{name}{rank}" for rank in range(content.ranks))))
    return {name: panels for name, panels in sections.items() if panels}


def _title(name: str) -> str:
    """Return a name that the package and its URLs take: no symbols, at most 128 characters."""
    return re.sub(r"[^\w .,-]", "-", name)[:128]


def _workspace(content: Content) -> ws.Workspace:
    import wandb_workspaces.workspaces as ws

    pinned = ("bbox/AP", f"train/memory_{content.memory[0]}_mib", "train/images_per_second")
    return ws.Workspace(
        entity=content.entity,
        project=content.project,
        name=_title(content.name),
        sections=[
            ws.Section(name=name, panels=panels, is_open=name != PER_CLASS)
            for name, panels in _panels(content).items()
        ],
        settings=ws.WorkspaceSettings(x_axis="iteration", max_runs=len(content.runs)),
        runset_settings=ws.RunsetSettings(
            filters=_filter(content),
            baseline_run=content.baseline,
            pinned_columns=[f"summary:{name}" for name in pinned],
        ),
    )


def _filter(content: Content) -> ws.And:
    """Return a filter for the runs of the sweep.

    By id: the package turns filters into a text and back, and every "=" in it, which names of runs
    have too, into "==". With ``in``: ``==`` is reported not to work (wandb-workspaces issue 34).
    """
    import wandb_workspaces.workspaces as ws

    return ws.And(ws.Metric("ID").isin(content.runs))


def _report(content: Content, *, look_up: bool) -> wr.Report:
    """Describe the report; ``look_up`` names the project, which asks the server."""
    import wandb_workspaces.reports.v2 as wr

    table = content.report or (
        f"No table yet: `python -m experiments report {content.name}` writes it, and "
        f"`python -m experiments dashboard {content.name}` brings it here."
    )
    blocks: list[Any] = [wr.MarkdownBlock(table)]
    for name, panels in _panels(content).items():
        if name == PER_CLASS:  # up to 80 of COCO: for the workspace, not for a page to read
            continue
        runs = wr.Runset(name=content.name, filters=_filter(content))
        if look_up:
            runs.entity, runs.project = content.entity, content.project
        # The list of runs stands under the first grid only.
        grid = wr.PanelGrid(runsets=[runs], panels=panels, hide_run_sets=len(blocks) > 1)
        blocks += [wr.H2(name), grid]
    commits = ", ".join(content.commits) or "(no run is finished)"
    footer = (
        f"{len(content.runs)} runs, commit {commits}. Made by `python -m experiments dashboard "
        f"{content.name}`; the next call replaces all of it."
    )
    return wr.Report(
        entity=content.entity,
        project=content.project,
        title=_title(content.name),
        description=content.question,
        blocks=[*blocks, wr.HorizontalRule(), wr.MarkdownBlock(footer)],
        width="fluid",
    )


def _write_specs(content: Content, sweep_folder: Path) -> str:
    folder, remark = sweep_folder / "dashboard", ""
    if not content.entity:
        content = replace(content, entity="default-entity")
        remark = "\nNo WANDB_ENTITY is set: the key's own takes the place of 'default-entity'."
    report = _plain(_report(content, look_up=False)._to_model().spec)
    for block in report["blocks"]:
        for runs in block.get("metadata", {}).get("runSets", ()):
            # What the package adds when it saves, but for an id that only the server knows.
            runs["project"] = {"name": content.project, "entityName": content.entity}
    specs = {"workspace": _plain(_workspace(content)._to_model().spec), "report": report}
    for name, spec in specs.items():
        text = content.question if name == "report" else ""
        view = ViewSpec(entity=content.entity, project=content.project,
                        title=_title(content.name), description=text, spec=spec)  # fmt: skip
        write_record(folder / f"{name}.json", view)
    return f"Nothing was sent. What would be: {folder}/workspace.json, {folder}/report.json{remark}"


def _plain(spec: Any) -> Any:
    """Serialise a spec as the package does."""
    return json.loads(spec.model_dump_json(by_alias=True, exclude_none=True))


def _save(content: Content, sweep_folder: Path) -> str:
    import wandb

    path = sweep_folder / "dashboard.json"
    api = wandb.Api()
    content = replace(content, entity=content.entity or api.default_entity or "")
    if not content.entity:
        raise ExperimentError(
            "the key has no default entity; expected a user or a team. Set WANDB_ENTITY"
        )
    made = read_record(path, DashboardRecord)
    if made is None or (made.entity, made.project) != (content.entity, content.project):
        made = DashboardRecord(entity=content.entity, project=content.project)
    # The report comes first, since the package asks for the project before it makes one. Each is
    # recorded at once, so that a later failure does not lead to a second one.
    report, report_verb = _save_report(api, content, made.report)
    made = made.model_copy(update={"report": MadeView(id=report.id, url=report.url)})
    write_record(path, made)
    workspace, workspace_verb = _save_workspace(content, made.workspace)
    write_record(path, made.model_copy(update={"workspace": MadeView(url=workspace.url)}))
    return f"workspace {workspace_verb}: {workspace.url}\nreport {report_verb}: {report.url}"


def _save_report(api: Any, content: Content, made: MadeView | None) -> tuple[wr.Report, str]:
    import wandb_workspaces.reports.v2 as wr

    new = _report(content, look_up=True)
    reports = api.reports(f"{content.entity}/{content.project}") if made else ()
    if made is None or made.id not in {report.id for report in reports}:
        return new.save(), "created"
    old = wr.Report.from_url(made.url)  # with people's comments
    old.title, old.description, old.blocks = new.title, new.description, new.blocks
    old.width = new.width
    return old.save(), "updated"


def _save_workspace(content: Content, made: MadeView | None) -> tuple[ws.Workspace, str]:
    import wandb_workspaces.workspaces as ws

    new = _workspace(content)
    try:
        old = ws.Workspace.from_url(made.url) if made else None
    except ValueError as error:
        if "not found" not in str(error):  # there, but not readable
            raise
        old = None
    if old is None:
        return new.save(), "created"
    new.runset_settings.run_settings = old.runset_settings.run_settings  # colours, hidden runs
    old.name, old.sections, old.settings = new.name, new.sections, new.settings
    old.runset_settings = new.runset_settings
    return old.save(), "updated"


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Raise what the packages raise as an ExperimentError that blames package or server."""
    try:
        yield
    except ExperimentError:
        raise
    except (ImportError, AttributeError, LookupError, TypeError, ValidationError) as error:
        raise ExperimentError(
            f"wandb-workspaces {_installed()} cannot make this dashboard: "
            f"{type(error).__name__}: {_one_line(error)}. Expected version {TESTED} (a public "
            f"preview, which changes): pip install wandb-workspaces=={TESTED}"
        ) from error
    except Exception as error:  # the clients raise private classes and plain ValueError
        raise ExperimentError(
            f"Weights & Biases took no dashboard: {_one_line(error)}. Expected a key "
            "(WANDB_API_KEY, or `wandb login`), a network, and a project with the runs "
            f"(python -m experiments push {name}). With none of them, --dry-run writes what would "
            "be sent"
        ) from error


def _installed() -> str:
    try:
        return importlib.metadata.version("wandb-workspaces")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _one_line(error: Exception) -> str:
    return textwrap.shorten(str(error), 300, placeholder="...").rstrip(".")
