"""Command line of the sweeps: python -m experiments --help."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolof_d2.errors import UserError

from .errors import ExperimentError

if TYPE_CHECKING:
    from .spec.cluster import Cluster
    from .spec.resolve import ResolvedRun
    from .spec.sweep import LoadedSweep
    from .store.ledger import Ledger

EXAMPLES = """\
examples:
  python -m experiments list
  python -m experiments plan dilated_encoder
  python -m experiments submit dilated_encoder --cluster slurm
  python -m experiments submit dilated_encoder.small --cluster local --parallel 2
  python -m experiments status dilated_encoder --watch
  python -m experiments logs dilated_encoder encoder=ProjectorEncoder,matcher=UniformMatcher
  python -m experiments retry dilated_encoder
  python -m experiments report dilated_encoder
  python -m experiments push dilated_encoder
  python -m experiments dashboard dilated_encoder

A sweep is a file of experiments/sweeps/ (its variants after a dot) or a path of yours; a cluster is
a file of experiments/clusters/ or a path of yours. docs/sweeps.md has their keys.
"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    parser = argparse.ArgumentParser(
        "python -m experiments",
        description="Ablation sweeps: describe, plan, submit, watch, retry, report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path(os.environ.get("YOLOF_RUNS", "runs")),
        help="folder of all runs, seen by all nodes (default: $YOLOF_RUNS or %(default)s)",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], None], text: str,
        *, sweep: bool = True, runs: str = "", cluster: bool = False,
    ) -> argparse.ArgumentParser:  # fmt: skip
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run_command=run)
        if sweep:
            command.add_argument("sweep", help="name, name.variant, or path of a sweep file")
        if runs:
            command.add_argument("run", nargs="*", help=f"name or id of a run; default: {runs}")
        if cluster:
            command.add_argument("--cluster", default="slurm",
                                 help="name or file (default: %(default)s)")  # fmt: skip
        return command

    add("list", _list, "show the sweeps that ship, one line each", sweep=False)
    text = "show what would run, what exists, and what it would cost; changes nothing"
    add("plan", _plan, text, cluster=True).set_defaults(parallel=None)
    submit = add("submit", _submit, "submit the runs that are missing, and only those",
                 runs="all that are missing", cluster=True)  # fmt: skip
    retry = add("retry", _submit, "continue runs that ended without finishing",
                runs="all of those", cluster=True)  # fmt: skip
    for command in (submit, retry):
        command.add_argument("--parallel", type=int, help="runs at a time (default: the cluster's)")
        command.add_argument("--limit", type=int, help="submit at most this many runs now")
    submit.set_defaults(restart=False)
    retry.add_argument("--restart", action="store_true",
                       help="move their checkpoints aside and start anew")  # fmt: skip
    text = "show state, iteration, ETA, AP so far, memory, job and node of each run"
    status = add("status", _status, text)
    status.add_argument("--watch", nargs="?", type=float, const=10.0, metavar="SECONDS",
                        help="repeat (default: every 10 s)")  # fmt: skip
    logs = add("logs", _logs, "show the end of the log of runs", runs="those that failed")
    logs.add_argument("--lines", type=int, default=20)
    logs.add_argument("--job", action="store_true", help="the output of the job itself, per rank")
    cancel = add("cancel", _cancel, "cancel jobs of runs; checkpoints are kept", runs="none")
    cancel.add_argument("--all", action="store_true", help="every run of the sweep that has a job")
    report = add("report", _report, "write and show the comparison: tables, plots, a page to mail")
    report.add_argument("--no-plots", action="store_true")
    report.add_argument("--allow-mixed", action="store_true",
                        help="compare runs despite different data or schedules")  # fmt: skip
    add("push", _push, "bring Weights & Biases up to date with the files of all runs")
    dashboard = add("dashboard", _dashboard,
                    "create or update a workspace and a report in Weights & Biases")  # fmt: skip
    dashboard.add_argument("--dry-run", action="store_true",
                           help="write what would be sent; no network, no key")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("experiments").setLevel(logging.INFO)
    try:
        args.run_command(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _list(args: argparse.Namespace) -> None:
    from .spec.sweep import describe_sweeps

    rows = describe_sweeps()
    width = max(len(name) for name, _, _ in rows)
    for name, question, variants in rows:
        also = f"  [.{', .'.join(variants)}]" if variants else ""
        print(f"{name:{width}}  {question}{also}")


def _load(args: argparse.Namespace) -> tuple[Ledger, LoadedSweep, list[ResolvedRun], str, Cluster]:
    from .spec.cluster import load_cluster
    from .spec.resolve import resolve_runs
    from .spec.sweep import load_sweep
    from .store.ledger import Ledger

    loaded = load_sweep(args.sweep)
    name, cluster = load_cluster(args.cluster)
    if args.parallel is not None:
        if args.parallel < 1:
            raise ExperimentError(f"--parallel is {args.parallel}, expected 1 or more")
        cluster = cluster.model_copy(update={"max_parallel": args.parallel})
    ledger = Ledger(args.runs)
    return ledger, loaded, resolve_runs(loaded, ledger.cache), name, cluster


def _plan(args: argparse.Namespace) -> None:
    from .jobs.plan import render_plan

    print(render_plan(*_load(args)))


def _submit(args: argparse.Namespace) -> None:
    from .jobs.observe import observe
    from .jobs.state import RETRIABLE, Observation, State, count_states
    from .jobs.submit import Launcher

    ledger, loaded, resolved, cluster_name, cluster = _load(args)
    chosen = _choose({each.id: each.run.name for each in resolved}, args.run, loaded.name)
    retry = args.command == "retry"
    states = RETRIABLE if retry else frozenset({State.MISSING})
    if args.restart and args.run:
        states |= {State.FINISHED}  # named one by one: the user means it
    asked: list[str] = []

    def wanted(run: ResolvedRun, seen: Observation) -> bool:
        full = args.limit is not None and len(asked) >= args.limit
        if full or run.id not in chosen or seen.state not in states:
            return False
        asked.append(run.id)
        return True

    launcher = Launcher(ledger, loaded, resolved, cluster_name, cluster)
    submitted = launcher.submit(wanted, restart=args.restart)
    seen, remark = observe(ledger, [each.id for each in resolved])
    states_now = [each.state for each in seen.values()]
    done = "retried" if retry else "submitted"
    print(f"{len(submitted)} of {len(resolved)} runs {done}; now {count_states(states_now)}")
    for each in resolved:
        if seen[each.id].state in (State.UNREADABLE, *RETRIABLE):
            print(f"  {each.run.name}: {seen[each.id].state.value}. {seen[each.id].reason}")
    if not retry and RETRIABLE.intersection(states_now):
        print(f"To go on with those: python -m experiments retry {args.sweep}")
    if remark:
        print(remark)
    if not launcher.backend.queues and any(
        seen[each.id].state is not State.FINISHED for each in submitted
    ):
        raise ExperimentError("not every run finished; see the lines above")


def _open(args: argparse.Namespace) -> tuple[Ledger, str]:
    """Return the ledger and the name of a submitted sweep, whose file may be gone."""
    from .spec.sweep import recorded_name
    from .store.ledger import Ledger

    return Ledger(args.runs), recorded_name(args.sweep)


def _status(args: argparse.Namespace) -> None:
    from .jobs.status import status_table

    while True:
        table = status_table(*_open(args))
        if args.watch is None:
            print(table)
            return
        now = time.strftime("%H:%M:%S")
        print(f"\033[H\033[2J{table}\n\n{now}, every {args.watch:g} s", flush=True)
        time.sleep(args.watch)


def _logs(args: argparse.Namespace) -> None:
    from .jobs.logs import log_files, tail
    from .jobs.observe import observe
    from .jobs.state import RETRIABLE

    ledger, sweep = _open(args)
    names = {run.id: run.name for run in ledger.read_sweep(sweep).runs}
    seen, _ = observe(ledger, _choose(names, args.run, sweep))
    shown = [i for i in names if i in seen and (args.run or seen[i].state in RETRIABLE)]
    if not shown:
        raise ExperimentError("no run of this sweep failed; name a run to see its log")
    for identity in shown:
        files = log_files(ledger, identity, job=args.job)
        if not files:
            print(f"==> {names[identity]}  has no log yet ({seen[identity].state.value})")
        for file in files:
            print(f"==> {names[identity]}  {file}")
            print(tail(file, args.lines))
        if seen[identity].reason:
            print(f"{seen[identity].state.value}: {seen[identity].reason}")


def _cancel(args: argparse.Namespace) -> None:
    from .jobs.cancel import cancel_runs

    ledger, sweep = _open(args)
    names = {run.id: run.name for run in ledger.read_sweep(sweep).runs}
    if not args.run and not args.all:
        raise ExperimentError("name the runs to cancel, or --all")
    for identity in cancel_runs(ledger, _choose(names, args.run, sweep)):
        print(f"cancelled {names[identity]}")


def _report(args: argparse.Namespace) -> None:
    from .report.write import write_report

    text, files = write_report(*_open(args), plots=not args.no_plots, allow_mixed=args.allow_mixed)
    print(text)
    print("Written: " + ", ".join(map(str, files)))


def _push(args: argparse.Namespace) -> None:
    from .tracking.push import push

    print(push(*_open(args)))


def _dashboard(args: argparse.Namespace) -> None:
    from .tracking.dashboard import dashboard

    print(dashboard(*_open(args), dry_run=args.dry_run))


def _choose(names: dict[str, str], given: Sequence[str], sweep: str) -> list[str]:
    """Return the ids of runs given by name, id or the beginning of an id; all if none is given."""
    chosen: list[str] = []
    for word in given:
        found = [i for i, name in names.items()
                 if name == word or (len(word) > 3 and i.startswith(word))]  # fmt: skip
        if not found:
            near = difflib.get_close_matches(word, names.values(), 1, cutoff=0)
            raise ExperimentError(f"sweep {sweep!r} has no run {word!r}; did you mean {near[0]!r}?")
        chosen += found
    return chosen if given else list(names)


if __name__ == "__main__":
    sys.exit(main())
