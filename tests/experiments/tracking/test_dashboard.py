"""Dashboards: what is sent, by its JSON; and how often, by a server that speaks enough GraphQL."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from experiments.errors import ExperimentError
from experiments.store.ledger import Ledger
from experiments.tracking.dashboard import dashboard
from tests.experiments.records import read_json, write_json
from tests.waiting import CAP
from tests.wandb_server import API_KEY, WandbServer

ROOT = Path(__file__).parents[3]
TABLE = [row for row in (ROOT / "docs/measurements.md").read_text().split("\n") if row[:3] == "| `"]
LOGGED = [name for row in TABLE for name in re.findall("`([^`]+)`", row.split("|")[1])]


def is_logged(metric: str) -> bool:
    """Whether the documentation names a figure."""
    classless = re.sub("^bbox/AP-.+", "bbox/AP-<class>", metric)
    return re.sub("(^per_rank/.+)_rank[0-9]+$", r"\1", classless) in LOGGED


FIRST, SECOND, THIRD = (f"{number:012x}" for number in range(3))
RUNS = {FIRST: "k=1,seed=0", SECOND: "k=1,seed=1", THIRD: "k=2,seed=0"}


def write_sweep(ledger: Ledger, *, device: str = "cuda") -> None:
    """Write a sweep of k=1, the baseline, and of k=2, which an older sweep ran first."""
    runs = []
    for identity, name in RUNS.items():
        row = name.split(",")[0]
        runs.append({"id": identity, "name": name, "row": row, "cells": {}, "seed": 0})
        group = "study" if row == "k=1" else "older"
        config = {"MODEL": {"DEVICE": device}, "WANDB": {"PROJECT": "p", "ENTITY": ""}}
        record = {"wandb": {"id": identity, "name": name, "group": group}, "config": config}
        record |= {"ranks": 2, "tags": []}
        write_json(ledger.run_folder(identity) / "run.json", record)
    record = {"sweep": "study", "question": "Which k?", "baseline": "k=1", "runs": runs}
    write_json(ledger.sweep_folder("study") / "sweep.json", record)


def finish(ledger: Ledger) -> None:
    """Finish two runs, one with a class that the other lacks, and write a report."""
    for identity, classes in zip(RUNS, (["cat"], ["cat", "traffic light"]), strict=False):
        box = {"AP": 30.0, "APs": None, "AR100": 40.0, **{f"AP-{name}": 30.0 for name in classes}}
        summary = {"commit": "abc123", "results": {"bbox": box}}
        (ledger.run_folder(identity) / "summary.json").write_text(json.dumps(summary))
    text = (
        "# study\n\nWhich k?\n\n| k | AP |\n|---|---|\n| 1 | 30.0 |\n\n![AP](a.png)\n\n- Seeds: 0"
    )
    (ledger.sweep_folder("study") / "report.md").write_text(text)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    for name in ("WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    ledger = Ledger(tmp_path / "runs")
    write_sweep(ledger)
    finish(ledger)
    return ledger


def specs(ledger: Ledger) -> tuple[dict, dict]:
    """Return the workspace and report of a dry run, read without the package."""
    folder = ledger.sweep_folder("study") / "dashboard"
    first, second = (
        json.loads((folder / f"{n}.json").read_text()) for n in ("workspace", "report")
    )
    return first, second


def nodes(value: object) -> Iterator[dict]:
    """Yield all objects in a JSON value."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, (dict, list)):
            yield from nodes(child)


def curves(spec: dict) -> list[dict]:
    return [
        node["config"] for node in nodes(spec) if node.get("viewType") == "Run History Line Plot"
    ]


def scatters(spec: dict) -> list[dict]:
    return [node["config"] for node in nodes(spec) if node.get("viewType") == "Scatter Plot"]


def filters(spec: dict) -> list[dict]:
    return [node["filters"] for node in nodes(spec) if "filterFormat" in node]


# What is sent


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid connections, and processes such as W&B's service, which could make one."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a dry run touched the network")

    for target, name in (
        (socket.socket, "connect"),
        (socket, "getaddrinfo"),
        (subprocess, "Popen"),
    ):
        monkeypatch.setattr(target, name, refuse)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.mark.usefixtures("no_network")
def test_panels_show_what_runs_log_and_only_that(ledger):
    text = dashboard(ledger, "study", dry_run=True)
    workspace, report = specs(ledger)
    assert "workspace.json" in text and "report.json" in text and "default-entity" in text
    sections = {
        section["name"]: [metric for curve in curves(section) for metric in curve["metrics"]]
        for section in workspace["spec"]["section"]["panelBankConfig"]["sections"]
    }
    assert sections["AP"] == [f"bbox/{n}" for n in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
    assert sections["AP per class"] == ["bbox/AP-cat", "bbox/AP-traffic light"]
    assert sections["Memory"][-2:] == [
        f"per_rank/train_memory_allocated_mib_rank{rank}" for rank in (0, 1)
    ]
    assert [len(metrics) for metrics in sections.values()] == [6, 0, 2, 6, 7, 5, 4, 8]
    shown = [metric for metrics in sections.values() for metric in metrics]
    assert all(map(is_logged, shown)), shown
    for curve in curves(workspace) + curves(report):
        assert curve["xAxis"] == "iteration" and curve["limit"] == 3
    for scatter in scatters(workspace) + scatters(report):
        assert scatter["yAxis"] == "summary:bbox/AP"
        assert is_logged(scatter["xAxis"].removeprefix("summary:"))
    in_report = [metric for curve in curves(report) for metric in curve["metrics"]]
    assert in_report == [metric for metric in shown if "AP-" not in metric]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("device, kind", [("cuda", "allocated"), ("cpu", "process")])
def test_memory_is_that_of_the_device(ledger, device, kind):
    write_sweep(ledger, device=device)
    dashboard(ledger, "study", dry_run=True)
    workspace, _ = specs(ledger)
    assert scatters(workspace)[0]["xAxis"] == f"summary:train/memory_{kind}_mib"
    shown = {metric for curve in curves(workspace) for metric in curve["metrics"]}
    assert ("train/memory_allocated_mib" in shown) == (device == "cuda")


@pytest.mark.usefixtures("no_network")
def test_runs_are_found_by_id_whatever_their_group(ledger):
    dashboard(ledger, "study", dry_run=True)
    workspace, report = specs(ledger)
    expected = {
        "key": {"section": "run", "name": "name"},  # the app's word for the id
        "op": "IN",
        "value": list(RUNS),
        "disabled": False,
    }
    found = filters(workspace) + filters(report)
    assert len(found) == 8 and all(each == [expected] for each in found)
    assert {runs["project"]["name"] for n in nodes(report) for runs in n.get("runSets", ())} == {
        "p"
    }


@pytest.mark.usefixtures("no_network")
def test_the_report_has_question_table_commit_and_command(ledger):
    dashboard(ledger, "study", dry_run=True)
    _, report = specs(ledger)
    first, *_, footer = [b["content"] for b in report["spec"]["blocks"] if "content" in b]
    assert (report["title"], report["description"]) == ("study", "Which k?")
    assert first == "| k | AP |\n|---|---|\n| 1 | 30.0 |\n\n\n- Seeds: 0"
    assert "abc123" in footer and "`python -m experiments dashboard study`" in footer


@pytest.mark.usefixtures("no_network")
def test_a_sweep_without_results_says_what_is_missing(ledger):
    for path in ledger.root.rglob("summary.json"):
        path.unlink()
    (ledger.sweep_folder("study") / "report.md").unlink()
    text = dashboard(ledger, "study", dry_run=True)
    workspace, report = specs(ledger)
    assert "AP per class" in text and "python -m experiments report study" in text
    assert "AP per class" not in json.dumps(workspace)
    assert "No table yet" in json.dumps(report)


# How it is sent


LAST_PAGE = {"hasNextPage": False, "endCursor": None}


class Server(WandbServer):
    """Answers the queries of the two packages from ``views``, id -> view."""

    def __init__(self) -> None:
        super().__init__()
        self.views: dict[str, dict] = {}
        self.projects = {"p": 41, "q": 42}
        self.number = itertools.count()
        self.entity: str | None = "team"
        self.refused: str = ""  # type of the views that it does not save

    def _query(self, query: str, values: dict) -> dict:
        if "upsertView" in query:
            return {"upsertView": {"view": self.save(values)}}
        if "viewer" in query:
            return {"viewer": {"id": "u", "username": "me", "entity": self.entity, "flags": "{}"}}
        if "models(" in query:
            rest = {"entityName": "team", "createdAt": "", "isBenchmark": False, "user": None}
            edges = [{"node": {"id": "x", "name": name, **rest}} for name in self.projects]
            return {"models": {"edges": edges, "pageInfo": LAST_PAGE}}
        if "internalId" in query:
            number = self.projects.get(values["projectName"])
            return {"project": number and {"id": "x", "internalId": str(number)}}
        if "allViews" in query:
            of_type = [
                {"node": view, "cursor": "1"}
                for view in self.views.values()
                if view["type"] == values.get("viewType", "runs")
                and view["project"]["name"] == values.get("projectName", values.get("project"))
                and values["viewName"] in (None, view["name"])
            ]
            return {"project": {"allViews": {"edges": of_type, "pageInfo": LAST_PAGE}}}
        assert "view(id" in query, query
        return {"view": self.views.get(values["reportId"])}

    def save(self, values: dict) -> dict:
        if values["type"] == self.refused:
            raise PermissionError("permission denied")
        identity = values.get("id") or f"Vmlldzo{next(self.number):05}"
        assert not values.get("id") or identity in self.views, "an update of what is not there"
        keys = ("type", "name", "displayName", "description", "spec")
        project = {"id": "x", "name": values["projectName"], "entityName": values["entityName"]}
        self.views[identity] = {
            "id": identity, "project": project, **{key: values[key] for key in keys}
        }  # fmt: skip
        return self.views[identity]


@pytest.fixture(scope="module")
def started() -> Iterator[Server]:
    """Start one server, since W&B starts its service process once."""
    import wandb

    with Server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", API_KEY)
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        yield server
        wandb.teardown()


@pytest.fixture
def server(started: Server) -> Server:
    """Return the server without views."""
    started.views.clear()
    started.projects = {"p": 41, "q": 42}
    started.entity, started.refused = "team", ""
    return started


def made(server: Server, kind: str) -> dict:
    """Return the only view of a type."""
    (view,) = [view for view in server.views.values() if view["type"] == kind]
    return view


def test_what_is_sent_is_what_a_dry_run_writes(ledger, server, monkeypatch):
    text = dashboard(ledger, "study", dry_run=False)
    monkeypatch.setenv("WANDB_ENTITY", "team")
    dashboard(ledger, "study", dry_run=True)

    def stable(spec: dict) -> dict:
        for node in nodes(spec):
            node.pop("__id__", None)  # of panels: random
            for runs in node.get("runSets", ()):
                runs["id"] = ""
                if "project" in runs:
                    assert runs["project"].pop("id", "41") == "41"  # the server's
        return spec

    for kind, expected in zip(("project-view", "runs"), specs(ledger), strict=True):
        view = made(server, kind)
        assert stable(json.loads(view["spec"])) == stable(expected["spec"])
        assert view["project"]["entityName"] == "team" and view["displayName"] == "study"
    record = read_json(ledger.sweep_folder("study") / "dashboard.json")
    assert f"workspace created: {record['workspace']['url']}" in text
    assert f"report created: {record['report']['url']}" in text


def test_the_package_reads_what_was_sent(ledger, server):
    dashboard(ledger, "study", dry_run=False)
    record = read_json(ledger.sweep_folder("study") / "dashboard.json")
    workspace = ws.Workspace.from_url(record["workspace"]["url"])
    assert workspace.settings.x_axis == "iteration" and workspace.settings.max_runs == 3
    assert workspace.runset_settings.filters == f'Metric("ID") in {list(RUNS)}'
    assert workspace.runset_settings.baseline_run == FIRST
    panels = [panel for section in workspace.sections for panel in section.panels]
    grids = [b for b in wr.Report.from_url(record["report"]["url"]).blocks if "Grid" in repr(b)]
    panels += [panel for grid in grids for panel in grid.panels]
    assert {type(panel) for panel in panels} == {wr.LinePlot, wr.ScatterPlot}
    for grid in grids:
        boxes = [(p.layout.x, p.layout.y, p.layout.w, p.layout.h) for p in grid.panels]
        assert boxes == [(8 * (i % 3), 6 * (i // 3), 8, 6) for i in range(len(boxes))]


def test_a_second_call_updates_and_keeps_what_people_added(ledger, server):
    dashboard(ledger, "study", dry_run=False)
    ids = sorted(server.views)
    workspace, report = made(server, "project-view"), made(server, "runs")
    spec = json.loads(workspace["spec"])
    spec["section"]["customRunColors"] = {SECOND: "#ff0000"}
    spec["section"]["runSets"][0]["selections"]["tree"] = [THIRD]  # hidden
    workspace["spec"] = json.dumps(spec)
    spec = json.loads(report["spec"])
    spec["discussionThreads"] = [{"id": "thread"}]
    report["spec"] = json.dumps(spec)
    sweep = read_json(ledger.sweep_folder("study") / "sweep.json")
    sweep["runs"], sweep["question"] = sweep["runs"][1:], "Which k now?"
    write_json(ledger.sweep_folder("study") / "sweep.json", sweep)

    text = dashboard(ledger, "study", dry_run=False)
    assert sorted(server.views) == ids and "workspace updated" in text and "report updated" in text
    section = json.loads(made(server, "project-view")["spec"])["section"]
    assert section["customRunColors"] == {SECOND: "#ff0000", THIRD: ""}
    assert section["runSets"][0]["selections"]["tree"] == [THIRD]
    assert section["runSets"][0]["filters"]["filters"][0]["value"] == [SECOND, THIRD]
    assert len(section["panelBankConfig"]["sections"]) == 8
    report = made(server, "runs")
    assert report["description"] == "Which k now?"
    assert json.loads(report["spec"])["discussionThreads"] == [{"id": "thread"}]
    assert json.loads(report["spec"])["width"] == "fluid"


@pytest.mark.parametrize("kind", ["project-view", "runs"])
def test_what_was_deleted_is_created_again(ledger, server, kind):
    dashboard(ledger, "study", dry_run=False)
    del server.views[made(server, kind)["id"]]
    text = dashboard(ledger, "study", dry_run=False)
    assert len(server.views) == 2
    assert text.count("created") == 1 and text.count("updated") == 1
    assert dashboard(ledger, "study", dry_run=False).count("updated") == 2


def test_another_project_gets_its_own(ledger, server, monkeypatch):
    dashboard(ledger, "study", dry_run=False)
    monkeypatch.setenv("WANDB_PROJECT", "q")
    assert dashboard(ledger, "study", dry_run=False).count("created") == 2
    assert sorted(view["project"]["name"] for view in server.views.values()) == ["p", "p", "q", "q"]


def test_a_failure_halfway_makes_nothing_twice(ledger, server):
    server.refused = "project-view"
    with pytest.raises(ExperimentError, match="permission denied"):
        dashboard(ledger, "study", dry_run=False)
    server.refused = ""
    text = dashboard(ledger, "study", dry_run=False)
    assert "workspace created" in text and "report updated" in text and len(server.views) == 2


def test_names_that_the_package_refuses(ledger, server):
    """Its titles take no symbols and 128 characters; its URLs no ? and #."""
    name = "k=1 a?b#c" + "x" * 150
    ledger.sweep_folder("study").rename(ledger.sweep_folder(name))
    for verb in ("created", "updated"):
        assert dashboard(ledger, name, dry_run=False).count(verb) == 2
    assert made(server, "runs")["displayName"].startswith("k-1 a-b-cxxx")


# Errors


def refusal(ledger: Ledger, *, dry_run: bool = False) -> str:
    with pytest.raises(ExperimentError) as caught:
        dashboard(ledger, "study", dry_run=dry_run)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_entity(ledger, server):
    server.entity = None
    assert "WANDB_ENTITY" in refusal(ledger)


def test_no_project_makes_none(ledger, server):
    server.projects = {}
    message = refusal(ledger)
    assert "'team/p' not found" in message and "python -m experiments push study" in message
    assert not server.views


def test_runs_of_two_projects(ledger, monkeypatch):
    record = read_json(ledger.run_folder(THIRD) / "run.json")
    record["config"]["WANDB"]["PROJECT"] = "q"
    write_json(ledger.run_folder(THIRD) / "run.json", record)
    assert "'p', 'q'" in (message := refusal(ledger, dry_run=True)) and "WANDB_PROJECT" in message
    monkeypatch.setenv("WANDB_PROJECT", "q")
    dashboard(ledger, "study", dry_run=True)
    assert specs(ledger)[0]["project"] == "q"


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, "No API key configured"),
        ({"WANDB_API_KEY": API_KEY, "WANDB_HTTP_TIMEOUT": "1"}, "Failed to verify credentials"),
    ],
    ids=["no key", "no network"],
)
def test_one_line_says_what_is_missing(ledger, environment, expected):
    """In a process of its own: the client keeps a key and its time limit once it has them."""
    code = f"""
from pathlib import Path
from experiments.tracking.dashboard import dashboard
from experiments.errors import ExperimentError
from experiments.store.ledger import Ledger
try:
    dashboard(Ledger(Path({str(ledger.root)!r})), "study", dry_run=False)
except ExperimentError as error:
    print(error)
"""
    variables = {
        **{key: value for key, value in os.environ.items() if not key.startswith("WANDB")},
        "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_ERROR_REPORTING": "false",
        "NETRC": str(ledger.root / "netrc"), "WANDB_CONFIG_DIR": str(ledger.root), **environment,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=variables, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=CAP,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    for word in (expected, "WANDB_API_KEY", "wandb login", "--dry-run"):
        assert word in line, (line, done.stderr)


@pytest.mark.usefixtures("no_network")
def test_another_version_of_the_package_is_named(ledger, monkeypatch):
    monkeypatch.delattr(wr, "ScatterPlot")
    message = refusal(ledger, dry_run=True)
    assert "ScatterPlot" in message and "pip install wandb-workspaces==0.4.13" in message
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert "pip install wandb-workspaces==0.4.13" in refusal(ledger, dry_run=True)
