"""Types of everything that is kept on disk; :mod:`experiments.store.ledger` says where.

Records only grow: a field that was added later has a default, so that old files stay readable.
Times are UTC, as :func:`experiments.store.files.now` writes them.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, RootModel, model_validator


class Record(BaseModel):
    """What every file has in common."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    format: int = 1


class ResolvedConfig(RootModel[dict[str, Any]]):
    """Every config key with its value: ``root`` is nested, as ``config.yaml`` is."""

    model_config = ConfigDict(frozen=True)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or the node, of a dotted key."""
        node: Any = self.root
        for name in key.split("."):
            if not isinstance(node, dict) or name not in node:
                return default
            node = node[name]
        return node

    def __getitem__(self, key: str) -> Any:
        missing = object()
        value = self.get(key, missing)
        if value is missing:
            raise KeyError(key)
        return value


class WandbNames(BaseModel):
    """Under which id, name and group a run is logged."""

    id: str
    name: str
    group: str


_NODES = {"YOLOF": "YOLOF", "RetinaNet": "RETINANET", "RetinaNetPlus": "RETINANET", "FCOS": "FCOS"}
"""Meta-architecture -> node, for runs that were submitted before ``model_node`` was kept."""


class RunRecord(Record):
    """``run.json``: a run as it was first asked for; written once.

    Attributes:
        id: see :func:`experiments.spec.identity.run_id`.
        name, sweep, tags: of the sweep that asked first.
        ranks: number of processes.
        config_file, overrides: what the config was resolved from, without the seed.
        wandb: where it is logged.
        config: every key.
        model_node: the node under ``MODEL`` that its detector reads, such as ``YOLOF``; None if
            its family does not say.
    """

    id: str = ""
    name: str = ""
    sweep: str = ""
    tags: list[str] = []
    created: str = ""
    ranks: int = 1
    config_file: str = ""
    overrides: dict[str, Any] = {}
    wandb: WandbNames | None = None
    config: ResolvedConfig
    model_node: str | None = None

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
    """``submission.json`` of a submission: one call of sbatch, or one process of this machine.

    Attributes:
        token: names it, also in the name of its job.
        executor: see :data:`experiments.jobs.backends.BACKENDS`.
        job_id: of the cluster, or the process id on ``host``; None until it is known.
        process_start: of a process, see :func:`experiments.jobs.backends.processes.process_start`.
        runs: their ids; the place of a run is its array task.
        code: folder of the snapshot that it runs.
        error: why the cluster refused it; it then has no job.
        cancelled: a user cancelled it, where the executor keeps no word of that.
    """

    token: str
    sweep: str = ""
    cluster: str = ""
    executor: str = ""
    job_name: str = ""
    job_id: str | None = None
    process_start: str | None = None
    host: str = ""
    runs: list[str] = []
    code: str = ""
    cwd: str = ""
    created: str = ""
    error: str = ""
    cancelled: bool = False

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
    """``state.json``: what the job itself says, every few seconds.

    Attributes:
        token: the submission whose job wrote it.
        state: ``starting``, ``running``, ``stopped``, ``failed`` or ``finished``.
        reason, kind: why it stopped or failed; ``kind`` is ``out of memory``, ``timed out`` or
            empty.
        iteration: how many are done; None before the run started.
        evaluations: iteration and AP of each; AP is None where there was none to compute.
        peak_memory_mib: by kind of memory.
        attempts: all starts so far.
    """

    token: str = ""
    job_id: str | None = None
    process_start: str | None = None
    node: str = ""
    state: str = ""
    reason: str = ""
    kind: str = ""
    iteration: int | None = None
    max_iteration: int | None = None
    evaluations: list[tuple[int, float | None]] = []
    seconds_per_iteration: float | None = None
    eta_seconds: float | None = None
    peak_memory_mib: dict[str, float] = {}
    attempts: list[AttemptSpan] = []
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
    """``attempts/<n>.json``: what one start ran with."""

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
    """``sweep.json``: what a sweep asked for when it was last submitted."""

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
