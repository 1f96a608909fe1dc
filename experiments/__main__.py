"""Command line of the sweeps: python -m experiments --help."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .errors import ExperimentError

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

    def add(name: str, text: str, *, sweep: bool = True, runs: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        if sweep:
            command.add_argument("sweep", help="name, name.variant, or path of a sweep file")
        if runs:
            command.add_argument("run", nargs="*", help=f"name or id of a run; default: {runs}")
        return command

    add("list", "show the sweeps that ship, one line each", sweep=False)

    plan = add("plan", "show what would run, what exists, and what it would cost; changes nothing")
    plan.add_argument("--cluster", default="slurm", help="name or file (default: %(default)s)")

    for name, text, runs in (
        ("submit", "submit the runs that are missing, and only those", "all that are missing"),
        ("retry", "go on with runs that ended without finishing", "all of those"),
    ):
        command = add(name, text, runs=runs)
        command.add_argument(
            "--cluster", default="slurm", help="name or file (default: %(default)s)"
        )
        command.add_argument("--parallel", type=int, help="runs at a time (default: the cluster's)")
        command.add_argument("--limit", type=int, help="at most so many runs now")
        if name == "retry":
            command.add_argument(
                "--restart",
                action="store_true",
                help="put away their checkpoints and begin anew, instead of going on from them",
            )

    status = add(
        "status", "show state, iteration, ETA, AP so far, memory, job and node of each run"
    )
    status.add_argument("--watch", nargs="?", type=float, const=10.0, metavar="SECONDS",
                        help="show it again and again (default: every 10 s)")  # fmt: skip
    logs = add("logs", "show the end of the log of runs", runs="those that failed")
    logs.add_argument("--lines", type=int, default=20)
    logs.add_argument("--job", action="store_true", help="what the job itself printed, per rank")
    cancel = add("cancel", "cancel jobs of runs; what they saved is kept", runs="none")
    cancel.add_argument("--all", action="store_true", help="every run of the sweep that has a job")
    report = add("report", "write and show the comparison: tables, plots, a page to mail")
    report.add_argument("--no-plots", action="store_true")
    report.add_argument(
        "--allow-mixed",
        action="store_true",
        help="compare runs of different evaluation sets or schedules all the same",
    )
    add("push", "bring Weights & Biases up to date with the files of all runs")
    dashboard = add("dashboard", "create or update a workspace and a report in Weights & Biases")
    dashboard.add_argument(
        "--dry-run", action="store_true", help="write what would be sent; no network, no key"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("experiments").setLevel(logging.INFO)
    commands = {
        "list": _list,
        "plan": _plan,
        "submit": _submit,
        "retry": _submit,
        "status": _status,
        "logs": _logs,
        "cancel": _cancel,
        "report": _report,
        "push": _push,
        "dashboard": _dashboard,
    }
    try:
        commands[args.command](args)
    except ExperimentError as error:
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


def _plan(args: argparse.Namespace) -> None:
    from .jobs.plan import render_plan
    from .spec.cluster import load_cluster
    from .spec.resolve import resolve_runs
    from .spec.sweep import load_sweep
    from .store.ledger import Ledger

    loaded = load_sweep(args.sweep)
    name, cluster = load_cluster(args.cluster)
    ledger = Ledger(args.runs)
    print(render_plan(ledger, loaded, resolve_runs(loaded, ledger.cache), name, cluster))


def _submit(args: argparse.Namespace) -> None:
    from .jobs.observe import observe
    from .jobs.state import RETRIABLE, Observation, State
    from .jobs.submit import Launcher
    from .spec.cluster import load_cluster
    from .spec.resolve import ResolvedRun, resolve_runs
    from .spec.sweep import load_sweep
    from .store.ledger import Ledger

    loaded = load_sweep(args.sweep)
    name, cluster = load_cluster(args.cluster)
    if args.parallel is not None:
        if args.parallel < 1:
            raise ExperimentError(f"--parallel is {args.parallel}, expected 1 or more")
        cluster = cluster.model_copy(update={"max_parallel": args.parallel})
    ledger = Ledger(args.runs)
    resolved = resolve_runs(loaded, ledger.cache)
    chosen = _choose([(each.id, each.run.name) for each in resolved], args.run, loaded.name)
    retry = args.command == "retry"
    states = RETRIABLE if retry else frozenset({State.MISSING})
    if retry and args.restart and args.run:
        states = states | {State.FINISHED}  # named one by one: the user means it
    asked: list[str] = []

    def wanted(run: ResolvedRun, seen: Observation) -> bool:
        yes = run.id in chosen and seen.state in states
        yes = yes and (args.limit is None or len(asked) < args.limit)
        if yes:
            asked.append(run.id)
        return yes

    launcher = Launcher(ledger, loaded, resolved, name, cluster)
    submitted = launcher.submit(wanted, restart=retry and args.restart)
    seen, remark = observe(ledger, [each.id for each in resolved])
    counts = Counter(seen[each.id].state for each in resolved)
    print(
        f"{len(submitted)} of {len(resolved)} runs {'retried' if retry else 'submitted'}; now "
        + ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
    )
    for each in resolved:
        if seen[each.id].state in (State.UNREADABLE, *RETRIABLE):
            print(f"  {each.run.name}: {seen[each.id].state.value}. {seen[each.id].reason}")
    if not retry and any(counts[state] for state in RETRIABLE):
        print(f"To go on with those: python -m experiments retry {args.sweep}")
    if remark:
        print(remark)
    if not launcher.backend.queues and any(
        seen[each.id].state is not State.FINISHED for each in submitted
    ):
        raise ExperimentError("not every run finished; see the lines above")


def _status(args: argparse.Namespace) -> None:
    from .jobs.status import status_table
    from .store.ledger import Ledger

    name = _sweep_name(args.sweep)
    while True:
        table = status_table(Ledger(args.runs), name)
        if args.watch is None:
            print(table)
            return
        print(
            f"\033[H\033[2J{table}\n\n{time.strftime('%H:%M:%S')}, every {args.watch:g} s",
            flush=True,
        )
        time.sleep(args.watch)


def _logs(args: argparse.Namespace) -> None:
    from .jobs.logs import log_files, tail
    from .jobs.observe import observe
    from .jobs.state import RETRIABLE
    from .store.ledger import Ledger

    ledger = Ledger(args.runs)
    sweep = ledger.read_sweep(_sweep_name(args.sweep))
    names = {run.id: run.name for run in sweep.runs}
    chosen = _choose(list(names.items()), args.run, sweep.sweep)
    seen, _ = observe(ledger, [identity for identity in names if identity in chosen])
    shown = [i for i in seen if args.run or seen[i].state in RETRIABLE]
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
    from .store.ledger import Ledger

    ledger = Ledger(args.runs)
    sweep = ledger.read_sweep(_sweep_name(args.sweep))
    if not args.run and not args.all:
        raise ExperimentError("name the runs to cancel, or --all")
    names = {run.id: run.name for run in sweep.runs}
    for identity in cancel_runs(ledger, _choose(list(names.items()), args.run, sweep.sweep)):
        print(f"cancelled {names[identity]}")


def _report(args: argparse.Namespace) -> None:
    from .report.write import write_report
    from .store.ledger import Ledger

    text, files = write_report(
        Ledger(args.runs),
        _sweep_name(args.sweep),
        plots=not args.no_plots,
        allow_mixed=args.allow_mixed,
    )
    print(text)
    print("Written: " + ", ".join(map(str, files)))


def _push(args: argparse.Namespace) -> None:
    from .store.ledger import Ledger
    from .tracking.push import push

    print(push(Ledger(args.runs), _sweep_name(args.sweep)))


def _dashboard(args: argparse.Namespace) -> None:
    from .store.ledger import Ledger
    from .tracking.dashboard import dashboard

    print(dashboard(Ledger(args.runs), _sweep_name(args.sweep), dry_run=args.dry_run))


def _sweep_name(given: str) -> str:
    """The name under which a sweep was submitted, without reading its file, which may be gone."""
    if "/" not in given and ".yaml" not in given:
        return given.replace(":", ".")
    file, _, variant = given.partition(":")
    return Path(file).stem + (f".{variant}" if variant else "")


def _choose(runs: list[tuple[str, str]], named: Sequence[str], sweep: str) -> list[str]:
    """Ids of the runs that are named by name, id, or the beginning of an id; all if none is."""
    if not named:
        return [identity for identity, _ in runs]
    chosen = []
    for word in named:
        found = [i for i, name in runs if name == word or (len(word) > 3 and i.startswith(word))]
        if not found:
            import difflib

            near = difflib.get_close_matches(word, [name for _, name in runs], 1, cutoff=0)
            raise ExperimentError(f"sweep {sweep!r} has no run {word!r}; did you mean {near[0]!r}?")
        chosen += found
    return chosen


if __name__ == "__main__":
    sys.exit(main())
