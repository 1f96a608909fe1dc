"""One rank of a run: joins the others, trains from the last checkpoint, and says how it went."""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import submitit
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from detectron2.utils.logger import setup_logger
from submitit.core.utils import UncompletedJobError

import yolof_d2
from experiments.errors import ExperimentError
from experiments.store.files import now, read_json, write_json
from experiments.store.ledger import Ledger
from experiments.tracking.wandb_identity import wandb_identity
from yolof_d2.config import restore_cfg
from yolof_d2.data import register_datasets
from yolof_d2.data.validation import check_datasets
from yolof_d2.engine import Trainer, check_launch, setup_run
from yolof_d2.errors import ConfigError, DataError, TrainingStopped, UserError
from yolof_d2.measure.provenance import describe_run

from .observe import process_start
from .rendezvous import init_process_group, leave_process_group

logger = logging.getLogger("yolof_d2.experiments")

SUPERSEDED = "superseded"
FINISHED = "finished"

_REPORT_SECONDS = 10.0  # between two writings of state.json
_WAIT_FOR_END_SECONDS = 600.0  # a preemption's grace time, at most
_FRUITLESS_STARTS = 5  # in a row without one iteration, after which a run is given up


class Start:
    """One start of a job: who this rank is, and the records that it writes."""

    def __init__(self, root: str, identity: str, token: str):
        self.ledger = Ledger(Path(root))
        self.identity = identity
        self.token = token
        self.folder = self.ledger.run_folder(identity)
        self.submission = self.ledger.read_submission(token) or {}
        self.env = submitit.JobEnvironment()
        self.rank, self.ranks = self.env.global_rank, self.env.num_tasks
        self.ranks_per_node = self.ranks // self.env.num_nodes
        # SLURM keeps the id of a requeued job and counts its restarts; submitit's local jobs keep
        # theirs too, and are never restarted while an old process is left.
        self.name = f"{self.env.job_id}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        self.state: dict[str, Any] = {}

    def is_superseded(self) -> bool:
        """Whether the run was given to another submission since."""
        claim = self.ledger.read_claim(self.identity)
        return claim is None or claim["token"] != self.token

    def begin(self) -> bool:
        """Rank 0: note the attempt; refuse to go on with a run that gets nowhere.

        Returns:
            Whether the run is still claimed for this job.

        Raises:
            ExperimentError: the last attempts did not reach a new iteration.
        """
        # Under the lock, so that a submit sees either this start or a run that is free, and this
        # job either its claim or that of the submit.
        with self._lock():
            if self.is_superseded():
                return False
            self._note_attempt()
        return True

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(self.ledger.lock())
            except ExperimentError as error:  # a disk without locks must not stop the run
                logger.warning("%s", error)
            yield

    def _note_attempt(self) -> None:
        before = self.ledger.read_state(self.identity) or {}
        attempts = before.get("attempts", [])
        fruitless = 0
        for attempt in reversed(attempts):
            if attempt["token"] != self.token or attempt["last"] > attempt["first"]:
                break
            fruitless += 1
        if fruitless >= _FRUITLESS_STARTS:
            raise ExperimentError(
                f"{fruitless} starts in a row did not reach a new iteration; given up. Look at the "
                "log, then 'retry'. A notice or a time limit too short for one iteration does this"
            )
        for path in (self.folder / "failures").glob("*.json"):
            path.unlink(missing_ok=True)
        # submitit refuses to requeue when an earlier attempt was killed while it wrote this.
        for path in self.env.paths.folder.glob(f"{self.env.job_id}_*.save_tmp"):
            path.unlink(missing_ok=True)
        self.state = {
            "iteration": 0,
            "evaluations": [],
            **before,
            "token": self.token,
            "job_id": self.env.job_id,
            "process_start": process_start(self.env.job_id),
            "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            "reason": "",
            "kind": "",
            "attempts": [
                *attempts,
                {"token": self.token, "job_id": self.env.job_id, "started": now()}
                | {"first": before.get("iteration", 0), "last": before.get("iteration", 0)},
            ],
        }
        self.report(state="starting")

    def report(self, **changes: Any) -> None:
        """Rank 0: write ``state.json``. A disk that is full for a while does not end the run."""
        self.state.update(changes, updated=now())
        if self.state["attempts"]:
            self.state["attempts"][-1]["last"] = self.state["iteration"]
        try:
            write_json(self.folder / "state.json", self.state)
        except ExperimentError as error:
            logger.warning("%s; training goes on", error)

    def failure_file(self, rank: int) -> Path:
        """Where a rank leaves word of its failure."""
        return self.folder / "failures" / f"{self.token}-{self.name}-{rank}.json"

    def fail(self, error: BaseException) -> None:
        """Any rank: leave word of a failure, for ``status``."""
        kind = ""
        if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
            kind = "out of memory"
        elif isinstance(error, UncompletedJobError):
            kind = "timed out"
        line = (str(error).strip().splitlines() or [""])[0]
        own = isinstance(error, (UserError, ExperimentError, UncompletedJobError))
        failure = {
            "rank": self.rank,
            "time": time.time(),
            "kind": kind,
            "reason": (line if own else f"{type(error).__name__}: {line}")[:500],
            "traceback": "".join(traceback.format_exception(error)),
        }
        try:
            write_json(self.failure_file(self.rank), failure)
        except ExperimentError as problem:
            logger.warning("%s", problem)


class ReportProgress(HookBase):
    """Rank 0: keeps ``state.json`` up to date from Detectron2's event storage."""

    def __init__(self, start: Start):
        self._start = start
        self._written = 0.0

    def before_train(self) -> None:
        first = self.trainer.start_iter
        self._start.state["attempts"][-1]["first"] = first
        # What came after the checkpoint will come again.
        kept = [point for point in self._start.state["evaluations"] if point[0] <= first]
        self._start.report(
            state="running",
            iteration=first,
            max_iteration=self.trainer.max_iter,
            evaluations=kept,
        )

    def after_step(self) -> None:
        if time.monotonic() - self._written >= _REPORT_SECONDS or self.trainer.agreed_stop:
            self._report(self.trainer.iter + 1)

    def after_train(self) -> None:  # after an error too
        if self.trainer.iter >= self.trainer.max_iter:
            self._report(self.trainer.max_iter)

    def _report(self, done: int) -> None:
        storage = get_event_storage()
        latest = storage.latest()
        changes: dict[str, Any] = {"iteration": done}
        if "bbox/AP" in latest:
            ap, iteration = latest["bbox/AP"]
            point = [min(iteration + 1, self.trainer.max_iter), None if math.isnan(ap) else ap]
            if point not in self._start.state["evaluations"]:
                changes["evaluations"] = [*self._start.state["evaluations"], point]
        timed = storage.histories().get("time")
        if timed is not None:
            seconds = timed.median(20)
            changes["seconds_per_iteration"] = seconds
            changes["eta_seconds"] = seconds * (self.trainer.max_iter - done)
        peaks = {
            kind: round(latest[name][0])
            for kind in ("process", "allocated", "reserved")
            if (name := f"train/memory_{kind}_mib") in latest
        }
        if peaks:
            changes["peak_memory_mib"] = peaks
        self._start.report(**changes)
        self._written = time.monotonic()


def run_rank(root: str, identity: str, token: str) -> str:
    """Train a run on this rank, from its last checkpoint.

    Args:
        root: folder of the ledger.
        identity: the run.
        token: the submission that this job belongs to; where the run has been given to another
            one since, nothing is done.

    Returns:
        ``"finished"`` or ``"superseded"``.

    Raises:
        UncompletedJobError: the time limit was reached more often than was planned.
        SystemExit: stopped by a signal; the job was requeued if the signal asked for that.
    """
    start = Start(root, identity, token)
    if start.is_superseded():
        logger.warning("Run %s was given to another submission; this job ends here", identity)
        return SUPERSEDED
    if (start.ledger.read_state(identity) or {}).get("state") == FINISHED:  # requeued all the same
        return FINISHED
    signals = _Signals(start.env)
    try:
        if start.rank == 0 and not start.begin():
            return SUPERSEDED
        stop = _train(start, signals)
        if stop is None:
            if start.rank == 0:
                start.report(state=FINISHED, eta_seconds=0)
            comm.synchronize()  # a rank that ends badly ends rank 0, which has more to do, with it
            return FINISHED
        if start.rank == 0:
            done = start.state["iteration"]
            start.report(state="stopped", reason=f"{stop}; saved at iteration {done}")
        signals.obey(stop, start.rank)
    except Exception as error:
        start.fail(error)
        raise
    finally:
        signals.restore()
        leave_process_group()
    raise SystemExit(1)  # stopped, and not requeued from here


def _train(start: Start, signals: _Signals) -> str | None:
    """Returns why training stopped early, None if it is finished."""
    _check_code(start)
    run = start.ledger.read_run(start.identity)
    if run is None:
        raise ExperimentError(f"{start.folder / 'run.json'} is missing; submit the run again")
    os.chdir(start.submission["cwd"])
    os.environ.update(_wandb_environment(start))
    if run["config"]["MODEL"]["DEVICE"] == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for gloo, also where there are GPUs
    init_process_group(
        start.folder,
        start.name,
        start.failure_file(0),
        rank=start.rank,
        ranks=start.ranks,
        ranks_per_node=start.ranks_per_node,
    )
    _reset_loggers()
    cfg = _restore(run, start)
    args = _arguments(run, start)
    _on_main_rank(lambda: _prepare(cfg, args, start))
    setup_run(cfg, args)
    trainer = Trainer(cfg)
    signals.stop_with(trainer)
    if start.rank == 0:
        trainer.register_hooks([ReportProgress(start)])
    trainer.resume_or_load(resume=True)
    try:
        trainer.train()
    except TrainingStopped as stopped:
        return str(stopped)
    return None


def _restore(run: dict[str, Any], start: Start) -> CfgNode:
    values = dict(run["config"])
    code = Path(start.submission["code"])
    # A plug-in of the checkout was copied with the rest of the code; the copy is what counts.
    values["PLUGINS"] = [
        str(code / entry) if not os.path.isabs(entry) and (code / entry).exists() else entry
        for entry in values["PLUGINS"]
    ]
    cfg = restore_cfg(values)
    cfg.OUTPUT_DIR = str(start.folder)
    if "WANDB.ENABLED" not in run["overrides"]:
        cfg.WANDB.ENABLED = True
    cfg.freeze()
    return cfg


def _arguments(run: dict[str, Any], start: Start) -> argparse.Namespace:
    words = [str(word) for pair in run["overrides"].items() for word in pair]
    words += ["SEED", str(run["config"]["SEED"])]
    # The summary of a run holds the command that trains the same without a sweep.
    sys.argv = ["train_net.py", "--config-file", run["config_file"]]
    sys.argv += ["--num-gpus", str(start.ranks), *words]
    visible = torch.cuda.device_count()
    per_node = start.ranks_per_node if visible != 1 else 1
    return argparse.Namespace(
        config_file="",
        eval_only=False,
        resume=True,
        num_gpus=per_node,
        num_machines=start.ranks // per_node,
    )


def _prepare(cfg: CfgNode, args: argparse.Namespace, start: Start) -> None:
    """Main rank: check what would stop the run, and record what it runs with."""
    register_datasets(cfg)
    check_launch(cfg, args)
    check_datasets(cfg)
    data = _fingerprint_data(cfg)
    folder = start.folder / "attempts"
    first = read_json(folder / "1.json")
    if first is not None and first["data"] != data:
        changed = [name for name in data if first["data"].get(name) != data[name]]
        raise DataError(
            f"the annotations of {', '.join(changed) or 'a data set'} changed since this run "
            "started, so that it would mix two data sets. Put the old ones back, or start again "
            "with 'retry --restart'"
        )
    snapshot = read_json(Path(start.submission["code"]) / "snapshot.json")
    packages = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    write_json(
        folder / f"{len(start.state['attempts'])}.json",
        {
            "job_id": start.env.job_id,
            "start": start.name,
            "hostnames": list(start.env.hostnames),
            "slurm": {k: v for k, v in os.environ.items() if k.startswith("SLURM_JOB")},
            "code": snapshot,
            "code_folder": start.submission["code"],
            "data": data,
            **describe_run(),
            "packages": dict(sorted(packages.items())),
        },
    )


def _fingerprint_data(cfg: CfgNode) -> dict[str, Any]:
    """Size and hash of each data set's annotations."""
    found = {}
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        file = MetadataCatalog.get(name).get("json_file")
        if file is None or not os.path.isfile(file):
            continue
        digest = hashlib.sha256()
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
        found[name] = {"bytes": os.path.getsize(file), "sha256": digest.hexdigest()}
    return found


def _on_main_rank(action: Any) -> None:
    """Do something on rank 0; where it fails, all ranks fail, and none waits for the others."""
    message = ""
    error: Exception | None = None
    if comm.is_main_process():
        try:
            action()
        except Exception as caught:  # noqa: BLE001  told to the other ranks, and raised below
            error, message = caught, f"{type(caught).__name__}: {caught}"
    messages = comm.all_gather(message)
    if error is not None:
        raise error
    if messages[0]:
        raise ConfigError(f"rank 0, over gloo: {messages[0]}")


def _check_code(start: Start) -> None:
    """Refuse to run other code than what was copied when the run was submitted."""
    if start.submission["executor"] == "debug":  # this very process
        return
    here = Path(yolof_d2.__file__).resolve()
    if Path(start.submission["code"]).resolve() not in here.parents:
        raise ExperimentError(
            f"this job imported yolof_d2 from {here.parent}, expected the copy in "
            f"{start.submission['code']}. Does the cluster's set-up change PYTHONPATH?"
        )


def _wandb_environment(start: Start) -> dict[str, str]:
    """So that what logs to Weights & Biases goes on in the same run after a requeue."""
    here = wandb_identity(start.ledger, start.identity)
    return {
        "WANDB_RUN_ID": here["id"],
        "WANDB_NAME": here["name"],
        "WANDB_RUN_GROUP": here["group"],
        "WANDB_TAGS": ",".join(filter(None, [os.environ.get("WANDB_TAGS"), *here["tags"]])),
    }


def _reset_loggers() -> None:
    """Several runs in one process (``--cluster debug``): each has a log of its own."""
    for name in ("detectron2", "fvcore", "yolof_d2"):
        logging.getLogger(name).handlers.clear()
    setup_logger.cache_clear()


class _Signals:
    """Signals become requests to stop; nothing is saved inside a handler.

    submitit's own handler, which requeues, is kept and called when the run has saved. SIGTERM alone
    (``scancel``, or a preemption that SLURM requeues by itself) saves and waits for the end: SLURM
    does not requeue a job that ends before it is ended.
    """

    def __init__(self, env: submitit.JobEnvironment):
        self._env = env
        self._requeue_signal = env._usr_sig()
        self._trainer: Trainer | None = None
        self._received = ""
        numbers = [signal.SIGTERM, self._requeue_signal]
        if env.cluster == "local":
            numbers.append(signal.SIGINT)  # Ctrl-C on the submit that started it
        self._before = {number: signal.signal(number, self._receive) for number in numbers}

    def _receive(self, signum: int, frame: Any) -> None:
        name = signal.Signals(signum).name
        if signum == self._requeue_signal or not self._received:
            self._received = name
        if self._trainer is not None:
            self._trainer.request_stop(self._received)

    def stop_with(self, trainer: Trainer) -> None:
        """Pass requests on to a trainer, also one that came before it was there."""
        self._trainer = trainer
        if self._received:
            trainer.request_stop(self._received)

    def obey(self, name: str, rank: int) -> None:
        """Requeue, if the signal that stopped the run asks for it."""
        comm.synchronize()  # until rank 0 has saved
        requeue = name == self._requeue_signal.name
        if requeue and rank == 0:
            handler = self._before[self._requeue_signal]
            if callable(handler):
                handler(self._requeue_signal, None)
        elif self._env.cluster == "slurm":
            # SLURM ends the other ranks when it requeues. One that left earlier would end rank 0.
            time.sleep(_WAIT_FOR_END_SECONDS)
        if requeue:
            raise SystemExit(0)

    def restore(self) -> None:
        """Put the former handlers back."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
