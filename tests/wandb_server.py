"""A server on this machine that speaks as much of Weights & Biases' protocol as its client needs.

It keeps what it is sent, in the way the real one does as far as clients can tell: lines of history
go where the client says they go, and a client that resumes a run is told how many there are and
what the last one was.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "0123456789" * 4
ENTITY = "me"


@dataclass
class ServedRun:
    """A run as the server has it."""

    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    state: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    overwritten: int = 0  # lines that came twice

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was logged, without what the client adds itself, but with ``_step``."""
        return [_without_private(json.loads(line)) for line in self.lines]

    def plain_config(self) -> dict[str, Any]:
        """The config, without the client's notes."""
        return {key: item["value"] for key, item in self.config.items() if key != "_wandb"}


def _without_private(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key == "_step" or key[0] != "_"}


class WandbServer:
    """Use as a context manager.

    Attributes:
        url: for ``WANDB_BASE_URL``.
        runs: by id.
        artifacts: names of what was logged as one.
        failed: requests that got no good answer.
        behaviour: ``"fine"``; ``"error"`` (500 to everything), ``"hang"`` (it takes requests and
            does not answer), ``"refuse"`` (403 to figures).
    """

    def __init__(self) -> None:
        self.runs: dict[str, ServedRun] = {}
        self.artifacts: list[str] = []
        self.behaviour = "fine"
        self.failed = 0
        self._lock = threading.Lock()
        self._released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._serve()

            do_POST = do_PUT = do_GET

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                status, answer = server._answer(self.path, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:  # a client that was killed
                pass

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def recover(self) -> None:
        """Behave from now on; what hangs gets an error."""
        self.behaviour = "fine"
        self._released.set()

    def lines(self) -> int:
        """Lines of history of all runs; for other processes too."""
        with urllib.request.urlopen(f"{self.url}/lines") as answer:
            return int(answer.read())

    def __exit__(self, *_: Any) -> None:
        self._released.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, path: str, body: bytes) -> tuple[int, Any]:
        figures = path.endswith("/file_stream")
        if self.behaviour == "hang":
            self.failed += 1
            self._released.wait()
            return 500, {"errors": [{"message": "it hung"}]}
        if self.behaviour == "error" or (self.behaviour == "refuse" and figures):
            self.failed += 1
            status = 500 if self.behaviour == "error" else 403
            return status, {"errors": [{"message": self.behaviour}]}
        with self._lock:
            if figures:
                self._take(path.split("/")[-2], json.loads(body))
                return 200, {"exitcode": None, "limits": {}}
            if path == "/graphql":
                request = json.loads(body)
                try:
                    data = self._query(request["query"], request.get("variables") or {})
                except (AssertionError, PermissionError) as error:
                    return 200, {"errors": [{"message": str(error)}]}
                return 200, {"data": data}
            if path == "/lines":
                return 200, sum(len(run.lines) for run in self.runs.values())
            if path.startswith("/upload/"):
                _, _, run, name = path.split("/", 3)
                self.runs[run].files[name] = body
            return 200, {}

    def _take(self, identity: str, message: dict[str, Any]) -> None:
        run = self.runs[identity]
        files = message.get("files", {})
        if "wandb-history.jsonl" in files:
            chunk = files["wandb-history.jsonl"]
            assert chunk["offset"] <= len(run.lines), "a hole in the history"
            run.overwritten += len(run.lines) - chunk["offset"]
            run.lines[chunk["offset"] :] = chunk["content"]
        if "wandb-summary.json" in files:
            run.summary = json.loads(files["wandb-summary.json"]["content"][-1])
        if message.get("complete"):
            run.state = "failed" if message["exitcode"] else "finished"

    def _query(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
        handler = getattr(self, f"_on_{operation[1]}" if operation else "", None)
        if handler is not None:
            return handler(variables)
        root = re.search(r"\{\s*(\w+)", query)  # what is not known here does not exist
        return {root[1]: None} if root else {}

    def _on_ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        features = [{"name": "EXPAND_DEFINED_METRIC_GLOBS", "isEnabled": True}]
        return {"serverInfo": {"features": features}}

    def _on_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        # Of a server that is newer than the client, so that it waits for no artifact.
        info = {"cliVersionInfo": {"max_cli_version": "1000.0.0"}, "latestLocalVersionInfo": None}
        viewer |= {"admin": False, "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": info}

    def _on_GetDefaultEntity(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "1", "entity": ENTITY}}

    def _on_RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        bucket = None
        if run is not None:
            bucket = {
                "id": variables["name"],
                "name": variables["name"],
                "displayName": run.name,
                "summaryMetrics": json.dumps(run.summary),
                "historyLineCount": len(run.lines),
                "historyTail": json.dumps(run.lines[-1:]),
                "eventsLineCount": 0,
                "eventsTail": "[]",
                "logLineCount": 0,
                "config": json.dumps(run.config),
                "tags": run.tags,
                "notes": "",
                "wandbConfig": json.dumps({"t": 1}),
            }
        project = variables["project"]
        entity = {"id": "1", "name": ENTITY}
        return {"model": {"id": "1", "name": project, "entity": entity, "bucket": bucket}}

    def _on_UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        identity = variables["name"]
        is_new = identity not in self.runs
        run = self.runs.setdefault(identity, ServedRun())
        run.name = variables.get("displayName") or run.name
        run.group = variables.get("groupName") or run.group
        run.job_type = variables.get("jobType") or run.job_type
        run.tags = variables.get("tags") or run.tags
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        run.state = "running"
        entity = {"id": "1", "name": ENTITY}
        bucket = {
            "id": identity,
            "name": identity,
            "displayName": run.name,
            "description": "",
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": {"id": "1", "name": variables["project"], "entity": entity},
            "historyLineCount": len(run.lines),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def _on_CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"}
            for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _on_CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        # As if it had these very files already, so that the client sends none.
        self.artifacts.append(variables["input"]["artifactCollectionName"])
        artifact = {"id": "1", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _on_Run(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        if run is None:
            return {"project": {"run": None}}
        found = {
            "id": variables["name"],
            "name": variables["name"],
            "displayName": run.name,
            "tags": run.tags,
            "state": run.state,
            "config": json.dumps(run.config),
            "group": run.group,
            "jobType": run.job_type,
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.lines),
            "historyKeys": None,
            "user": {"name": ENTITY, "username": ENTITY},
        }
        return {"project": {"internalId": "1", "run": found}}

    def _on_RunHistoryKeys(self, variables: dict[str, Any]) -> dict[str, Any]:
        last = self.runs[variables["name"]].history[-1:]
        keys = {"lastStep": last[0]["_step"]} if last else {}
        return {"project": {"run": {"historyKeys": keys}}}
