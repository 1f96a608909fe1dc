"""One rank of a run: join the others, train from the last checkpoint, record the outcome."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

import yolof_d2
from experiments.errors import ExperimentError
from experiments.store.record_files import read_record, write_record
from experiments.store.records import AttemptRecord, CodeState, DataFingerprint, RunRecord
from experiments.tracking.wandb_identity import wandb_identity
from yolof_d2.config import restore_cfg
from yolof_d2.data import register_datasets
from yolof_d2.engine import Launch, Trainer, preflight, setup_run
from yolof_d2.engine.run_lock import lock_run
from yolof_d2.errors import ConfigError, DataError, TrainingStopped
from yolof_d2.measure.provenance import describe_run

from .attempt import Attempt, ReportProgress
from .rendezvous import init_process_group, leave_process_group
from .signals import JobSignals

logger = logging.getLogger("yolof_d2.experiments")

SUPERSEDED = "superseded"
FINISHED = "finished"


def run_rank(root: str, identity: str, token: str) -> str:
    """Train a run of the ledger in ``root`` on this rank, from its last checkpoint.

    ``token`` is of the submission that this job belongs to.

    Returns:
        ``"finished"``, or ``"superseded"`` if another submission has claimed the run since.

    Raises:
        UncompletedJobError: the time limit was reached more often than was planned.
        SystemExit: stopped by a signal; the job was requeued if the signal asked for that.
    """
    attempt = Attempt(root, identity, token)
    if attempt.is_superseded():
        logger.warning("Run %s was given to another submission; this job ends here", identity)
        return SUPERSEDED
    before = attempt.ledger.read_progress(identity)
    if before is not None and before.state == FINISHED:  # requeued all the same
        return FINISHED
    signals = JobSignals(attempt.env)
    try:
        if attempt.rank == 0 and not attempt.begin():
            return SUPERSEDED
        stop = _train(attempt, signals)
        if stop is None:
            if attempt.rank == 0:
                attempt.report(state=FINISHED, eta_seconds=0)
            comm.synchronize()  # a rank that fails ends rank 0 with it, which is not done before
            return FINISHED
        if attempt.rank == 0:
            done = attempt.progress.iteration
            attempt.report(state="stopped", reason=f"{stop}; saved at iteration {done}")
        signals.obey(stop, attempt.rank)
    except Exception as error:  # of any kind: noted for `status`, and raised again
        attempt.fail(error)
        raise
    finally:
        signals.restore()
        leave_process_group()
    raise SystemExit(1)  # stopped, and not requeued from here


def _train(attempt: Attempt, signals: JobSignals) -> str | None:
    """Return why training stopped early, None if it is finished."""
    _check_code(attempt)
    run = attempt.ledger.require_run(attempt.identity)
    os.chdir(attempt.submission.cwd)
    os.environ.update(_wandb_environment(attempt))
    if run.config["MODEL.DEVICE"] == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for gloo, also where there are GPUs
    init_process_group(
        attempt.folder,
        attempt.name,
        attempt.failure_file(0),
        rank=attempt.rank,
        ranks=attempt.ranks,
        ranks_per_node=attempt.ranks_per_node,
    )
    _reset_loggers()
    cfg = _restore(run, attempt)
    launch = Launch(
        ranks=attempt.ranks,
        # Where each process sees its own GPU alone, it is the only one here.
        ranks_here=1 if torch.cuda.device_count() == 1 else attempt.ranks_per_node,
        resume=True,
        command=_command(run, attempt.ranks),
    )
    # SLURM has ended the job that it requeues, also on another host.
    _on_main_rank(lambda: lock_run(cfg.OUTPUT_DIR, stale_seconds=0))
    _on_main_rank(lambda: _prepare(cfg, launch, attempt))
    setup_run(cfg, launch)
    trainer = Trainer(cfg, command=launch.command)
    signals.stop_with(trainer)
    if attempt.rank == 0:
        trainer.register_hooks([ReportProgress(attempt)])
    trainer.resume_or_load(resume=True)
    try:
        trainer.train()
    except TrainingStopped as stopped:
        return str(stopped)
    return None


def _restore(run: RunRecord, attempt: Attempt) -> CfgNode:
    code = Path(attempt.submission.code)
    # A plug-in of the checkout was copied with the rest of the code; the copy is what counts.
    plugins = [
        str(code / entry) if not os.path.isabs(entry) and (code / entry).exists() else entry
        for entry in run.config["PLUGINS"]
    ]
    cfg = restore_cfg({**run.config.root, "PLUGINS": plugins})
    cfg.OUTPUT_DIR = str(attempt.folder)
    if "WANDB.ENABLED" not in run.overrides:
        cfg.WANDB.ENABLED = True
    cfg.freeze()
    return cfg


def _command(run: RunRecord, ranks: int) -> str:
    """Return the command that trains the same without a sweep."""
    words = ["python", "train_net.py", "--config-file", run.config_file, "--num-gpus", str(ranks)]
    words += [str(word) for pair in run.overrides.items() for word in pair]
    return shlex.join([*words, "SEED", str(run.config["SEED"])])


def _prepare(cfg: CfgNode, launch: Launch, attempt: Attempt) -> None:
    """Check that the run can start, and record its code, data and machine; on the main rank."""
    register_datasets(cfg)
    preflight(cfg, launch)
    data = _fingerprint_data(cfg)
    folder = attempt.folder / "attempts"
    first = read_record(folder / "1.json", AttemptRecord)
    if first is not None and first.data != data:
        changed = [name for name in data if first.data.get(name) != data[name]]
        raise DataError(
            f"the annotations of {', '.join(changed) or 'a data set'} changed since this run "
            "started, so that it would mix two data sets. Put the old ones back, or start again "
            "with 'retry --restart'"
        )
    packages = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    record = AttemptRecord(
        job_id=attempt.env.job_id,
        start=attempt.name,
        hostnames=list(attempt.env.hostnames),
        slurm={k: v for k, v in os.environ.items() if k.startswith("SLURM_JOB")},
        code=read_record(Path(attempt.submission.code) / "snapshot.json", CodeState),
        code_folder=attempt.submission.code,
        data=data,
        packages=dict(sorted(packages.items())),
        **describe_run(launch.command),
    )
    write_record(folder / f"{len(attempt.progress.attempts)}.json", record)


def _fingerprint_data(cfg: CfgNode) -> dict[str, DataFingerprint]:
    """Hash each data set's annotations."""
    found = {}
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        file = MetadataCatalog.get(name).get("json_file")
        if file is None or not os.path.isfile(file):
            continue
        digest = hashlib.sha256()
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
        found[name] = DataFingerprint(bytes=os.path.getsize(file), sha256=digest.hexdigest())
    return found


def _on_main_rank(action: Callable[[], None]) -> None:
    """Call ``action`` on rank 0; if it fails, all ranks fail, and none waits for the others."""
    message = ""
    error: Exception | None = None
    if comm.is_main_process():
        try:
            action()
        except Exception as caught:  # noqa: BLE001  else the other ranks wait; raised below
            error, message = caught, f"{type(caught).__name__}: {caught}"
    messages = comm.all_gather(message)
    if error is not None:
        raise error
    if messages[0]:
        raise ConfigError(f"rank 0, over gloo: {messages[0]}")


def _check_code(attempt: Attempt) -> None:
    """Refuse to run code other than the snapshot of the submission."""
    if attempt.env.cluster == "debug":  # this very process
        return
    here = Path(yolof_d2.__file__).resolve()
    if Path(attempt.submission.code).resolve() not in here.parents:
        raise ExperimentError(
            f"this job imported yolof_d2 from {here.parent}, expected the copy in "
            f"{attempt.submission.code}. Does the cluster's set-up change PYTHONPATH?"
        )


def _wandb_environment(attempt: Attempt) -> dict[str, str]:
    """Return what makes a requeued job log to the same run of Weights & Biases."""
    here = wandb_identity(attempt.ledger, attempt.identity)
    return {
        "WANDB_RUN_ID": here.id,
        "WANDB_NAME": here.name,
        "WANDB_RUN_GROUP": here.group,
        "WANDB_TAGS": ",".join(filter(None, [os.environ.get("WANDB_TAGS"), *here.tags])),
    }


def _reset_loggers() -> None:
    """Give each run in one process (``--cluster debug``) a log of its own."""
    for name in ("detectron2", "fvcore", "yolof_d2"):
        logging.getLogger(name).handlers.clear()
    setup_logger.cache_clear()
