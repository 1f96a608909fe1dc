"""Train or evaluate a detector.

python train_net.py --config-file configs/yolof_R_50_C5_1x.yaml --num-gpus 8 [--resume |
--eval-only] [KEY VALUE ...]
"""

import logging
import os
import sys

from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from yolof_d2.config import build_cfg
from yolof_d2.data import resolve_datasets
from yolof_d2.engine import Launch, Trainer, preflight, setup_run
from yolof_d2.engine.checkpoint import StrictDetectionCheckpointer
from yolof_d2.engine.run_lock import lock_run
from yolof_d2.engine.stop_signals import StopSignals, pass_on_to_ranks
from yolof_d2.errors import TrainingStopped, UserError


def main(how, cfg):
    """Train or evaluate on this rank; returns the evaluation results on the main one."""
    if comm.is_main_process() and not how.eval_only:
        lock_run(cfg.OUTPUT_DIR)
    setup_run(cfg, how)
    if how.eval_only:
        model = Trainer.build_model(cfg)
        StrictDetectionCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=how.resume
        )
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    signals = StopSignals()
    trainer = Trainer(cfg)
    signals.stop_with(trainer)
    trainer.resume_or_load(resume=how.resume)
    return trainer.train()


def worker(how, cfg):
    """Run :func:`main`; an error of the user's ends in its message, not in a stack trace alone."""
    try:
        main(how, cfg)
    except UserError as error:
        logging.getLogger("yolof_d2").error(error)
        sys.exit(1)
    except TrainingStopped as stopped:
        logging.getLogger("yolof_d2").warning(
            "Stopped by %s and saved. To go on, add --resume to the same command", stopped
        )
        sys.exit(1)


if __name__ == "__main__":
    args = default_argument_parser(__doc__).parse_args()
    logging.basicConfig(format="%(message)s")  # until setup_run() gives each rank its loggers
    logging.getLogger("yolof_d2").setLevel(logging.INFO)
    ranks_here = max(1, args.num_gpus)
    how = Launch(
        ranks=ranks_here * args.num_machines,
        ranks_here=ranks_here,
        eval_only=args.eval_only,
        resume=args.resume,
        config_file=args.config_file,
    )
    try:
        cfg = build_cfg(args.config_file, args.opts or ())
        resolve_datasets(cfg, eval_only=args.eval_only)
        cfg.freeze()
        preflight(cfg, how)
    except UserError as error:
        sys.exit(f"error: {error}")
    if cfg.MODEL.DEVICE == "cpu":
        # So that Detectron2 chooses gloo, also where there are GPUs.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if args.num_gpus > 1:
        pass_on_to_ranks(args.num_gpus)
    try:
        launch(
            worker,
            args.num_gpus,
            args.num_machines,
            args.machine_rank,
            args.dist_url,
            args=(how, cfg),
        )
    except ProcessExitedException as error:
        if error.signal_name is None:  # the worker has said why
            sys.exit(error.exit_code)
        sys.exit(
            f"error: rank {error.error_index} was ended by {error.signal_name}, perhaps because "
            "memory ran out (dmesg tells). Go on with --resume"
        )
