"""Types of all files of runs and sweeps; :mod:`experiments.store.ledger` says where they lie.

Records only grow: a field that was added later has a default, so that old files stay readable.
Times are UTC, as :func:`experiments.store.record_files.now` writes them.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

from pydantic import BaseModel, ConfigDict, RootModel, model_validator


class Record(BaseModel):
    """The base of all records."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    format: int = 1


class ResolvedConfig(RootModel[dict[str, Any]]):
    """Every config key with its value: ``root`` is nested, as ``config.yaml`` is."""

    model_config = ConfigDict(frozen=True)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or the node, of a dotted key."""
        try:
            return self[key]
        except (KeyError, TypeError):  # a value on the way is no node
            return default

    def __getitem__(self, key: str) -> Any:
        return functools.reduce(operator.getitem, key.split("."), self.root)


class WandbNames(BaseModel):
    """Id, name and group of a run in W&B."""

    id: str
    name: str
    group: str


_NODES = {"YOLOF": "YOLOF", "RetinaNet": "RETINANET", "RetinaNetPlus": "RETINANET", "FCOS": "FCOS"}
"""Meta-architecture -> node, for runs that were submitted before ``model_node`` was kept."""


class RunRecord(Record):
    """``run.json``: a run as it was first asked for; written once."""

    id: str = ""  # see experiments.spec.identity.run_id
    name: str = ""
    sweep: str = ""  # the one that asked first, as for name and tags
    tags: list[str] = []
    created: str = ""
    ranks: int = 1
    config_file: str = ""  # with overrides, what the config was resolved from, less the seed
    overrides: dict[str, Any] = {}
    wandb: WandbNames | None = None
    config: ResolvedConfig
    model_node: str | None = None  # node under MODEL of its detector, such as YOLOF, if known

    @model_validator(mode="before")
    @classmethod
    def _name_node(cls, values: Any) -> Any:
        if isinstance(values, dict) and "model_node" not in values:
            model = (values.get("config") or {}).get("MODEL") or {}
            return {**values, "model_node": _NODES.get(model.get("META_ARCHITECTURE", ""))}
        return values


class Claim(Record):
    """``submission.json`` of a run: the submission that may train it, and the run's place in it."""

    token: str
    index: int
    claimed: str = ""


class Submission(Record):
    """``submission.json`` of a submission: one call of sbatch, or one process of this machine."""

    token: str  # names it, also in the name of its job
    sweep: str = ""
    cluster: str = ""
    executor: str = ""  # a key of experiments.jobs.backends.BACKENDS
    job_name: str = ""
    job_id: str | None = None  # of the cluster, or the process id on host; None until it is known
    process_start: str | None = None  # see experiments.jobs.backends.processes.process_start
    host: str = ""
    runs: list[str] = []  # ids; the place of a run is its array task
    code: str = ""  # folder of the snapshot that it runs
    cwd: str = ""
    created: str = ""
    error: str = ""  # why the cluster refused it; it then has no job
    cancelled: bool = False  # by a user, where the executor does not record that

    def task_id(self, index: int) -> str:
        """Return the cluster's id of the job of one run; an array of one is no array."""
        return f"{self.job_id}_{index}" if len(self.runs) > 1 else str(self.job_id)


class AttemptSpan(BaseModel):
    """One start of a run's job, and the iterations at which it began and ended."""

    token: str = ""
    job_id: str | None = None
    started: str = ""
    first: int = 0
    last: int = 0


class Progress(Record):
    """``state.json``: what the job itself reports, every few seconds."""

    token: str = ""  # the submission whose job wrote it
    job_id: str | None = None
    process_start: str | None = None
    node: str = ""
    state: str = ""  # starting, running, stopped, failed or finished
    reason: str = ""  # why it stopped or failed
    kind: str = ""  # of a failure: out of memory, timed out, or empty
    iteration: int | None = None  # how many are done; None before the run started
    max_iteration: int | None = None
    evaluations: list[tuple[int, float | None]] = []  # iteration, AP (None if not computed)
    seconds_per_iteration: float | None = None
    eta_seconds: float | None = None
    peak_memory_mib: dict[str, float] = {}  # by kind of memory
    attempts: list[AttemptSpan] = []  # all starts so far
    updated: str | None = None


class Failure(Record):
    """``failures/*.json``: how one rank of one start failed."""

    rank: int | None = None
    time: float = 0.0
    kind: str = ""
    reason: str = ""
    traceback: str = ""


class DataFingerprint(BaseModel):
    """Size and hash of the annotations of a data set."""

    bytes: int
    sha256: str


class CodeState(Record):
    """``snapshot.json``: commit of the copied code, and what differed; None outside git."""

    commit: str | None = None
    dirty: bool | None = None
    changed: list[str] = []
    taken: str = ""


class Hardware(BaseModel):
    """The machine that trained."""

    cpu: str | None = None
    cpus: int | None = None
    gpus: list[str] = []


class AttemptRecord(Record):
    """``attempts/<n>.json``: code, data and machine of one start."""

    job_id: str = ""
    start: str = ""
    hostnames: list[str] = []
    slurm: dict[str, str] = {}
    code: CodeState | None = None
    code_folder: str = ""
    data: dict[str, DataFingerprint] = {}
    commit: str | None = None
    command: str = ""
    versions: dict[str, str | None] = {}
    hardware: Hardware = Hardware()
    started: str = ""
    packages: dict[str, str] = {}


class SweepRun(BaseModel):
    """A run as a sweep asks for it: ``row`` is the name without the seed."""

    id: str
    name: str
    row: str
    cells: dict[str, str]
    seed: int
    iterations: int = 0


class SweepRecord(Record):
    """``sweep.json``: the runs of a sweep when it was last submitted."""

    sweep: str
    file: str = ""
    question: str
    baseline: str
    tags: list[str] = []
    ranks: int = 1
    seconds_per_iteration: float | None = None
    submitted: str = ""
    runs: list[SweepRun]


METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RECALLS = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
SIZES = ("", "_small", "_medium", "_large")
SHARES = ("positive", "ignored", "contested")
"""Names of figures in a summary: of ``results.bbox``, ``results.errors`` and ``matching``."""


class EvaluationCost(BaseModel):
    """Medians of the evaluations of a run, and their highest memory."""

    seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_mib: dict[str, float] = {}


class Summary(BaseModel):
    """``summary.json``, which ``yolof_d2`` writes at the end of a run.

    ``docs/measurements.md`` describes each figure. What a run did not measure is None or absent.
    """

    model_config = ConfigDict(frozen=True)

    iterations: int | None = None
    batch_size: int | None = None
    world_size: int | None = None
    median_seconds_per_iteration: float | None = None
    training_minutes: float | None = None
    images_per_second: float | None = None
    data_time_share: float | None = None
    checkpoint_seconds: float | None = None
    peak_memory_mib: dict[str, float] = {}
    evaluation: EvaluationCost = EvaluationCost()
    matching: dict[str, float | None] = {}
    results: dict[str, dict[str, float | None]] = {}
    stream: str | None = None  # which samples it saw in which order; None where it is not known
    commit: str | None = None
    command: str | None = None
    versions: dict[str, str | None] = {}
    hardware: Hardware = Hardware()
    started: str | None = None

    def figure(self, path: str) -> Any:
        """Return a figure by its dotted name, such as ``results.bbox.AP``; None if it is absent."""
        value: Any = self
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
        return value
