"""The contract of a backend with submit, status and cancel, tested with one that runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments.errors import ExperimentError
from experiments.jobs import submit as submitting
from experiments.jobs.backends import BACKENDS, Backend, ClaimedRun, Site, StartedJob, Watch
from experiments.jobs.cancel import cancel_runs
from experiments.jobs.observe import observe
from experiments.jobs.plan import render_plan
from experiments.jobs.state import Observation, State
from experiments.jobs.status import status_table
from experiments.jobs.submit import Launcher
from experiments.spec.cluster import Cluster
from experiments.spec.resolve import ResolvedRun
from experiments.spec.sweep import load_sweep
from experiments.store.ledger import Ledger
from experiments.store.record_files import locked
from experiments.store.records import ResolvedConfig, Submission

NAMES = ("a", "b", "c")


class FakeBackend(Backend):
    """Keeps jobs in a dict: job id -> state."""

    def __init__(self, *, queues: bool):
        self.name = "slurm" if queues else "local"  # it takes the place of that one
        self.queues = queues
        self.jobs: dict[str, State] = {}
        self.submitted: list[list[str]] = []
        self.at_once = 0
        self.refusal = ""
        self.remark = ""
        self.found: dict[str, str] = {}

    def parallel(self, site: Site) -> int:
        return 2

    def submit(self, ledger, submission, site, *, plan, slot=0) -> StartedJob:
        if self.refusal:
            raise ExperimentError(self.refusal)
        with pytest.raises(ExperimentError), locked(ledger.root / ".lock", timeout_s=0):
            pass  # the launcher holds it: no other command may claim meanwhile
        for identity in submission.runs:  # what a job checks before it trains
            assert ledger.read_claim(identity).token == submission.token
            assert ledger.read_submission(submission.token).job_id is None
        self.submitted.append(submission.runs)
        job_id = str(len(self.submitted))
        for task in range(len(submission.runs)):
            self.jobs[f"{job_id}/{task}"] = State.RUNNING
        self.at_once = max(self.at_once, list(self.jobs.values()).count(State.RUNNING))

        def is_done() -> bool:
            self.jobs[f"{job_id}/0"] = State.FAILED
            return True

        return StartedJob(job_id, is_done=is_done)

    def watch(self, submissions: Sequence[Submission]) -> Watch:
        backend = self

        class FakeWatch(Watch):
            remark = backend.remark

            def observe(self, run: ClaimedRun) -> Observation:
                job_id = f"{run.submission.job_id}/{run.claim.index}"
                state = backend.jobs.get(job_id, State.MISSING)
                return Observation(state, "", job_id, "n1", backend.name, run.progress)

        return FakeWatch()

    def cancel(self, ledger: Ledger, submission: Submission, job_ids: Sequence[str]) -> None:
        self.jobs.update(dict.fromkeys(job_ids, State.CANCELLED))

    def find_jobs_of(self, submissions: Sequence[Submission]) -> dict[str, str]:
        return {each.token: self.found[each.token] for each in submissions
                if each.token in self.found}  # fmt: skip


@pytest.fixture(params=[True, False], ids=["queues", "waits"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    fake = FakeBackend(queues=request.param)
    monkeypatch.setitem(BACKENDS, fake.name, fake)
    return fake


@pytest.fixture
def launcher(backend, tmp_path, monkeypatch) -> Launcher:
    monkeypatch.setattr(submitting, "take_snapshot", lambda folder: folder / "code")
    monkeypatch.setattr(submitting, "_POLL_SECONDS", 0)
    sweep = tmp_path / "s.yaml"
    runs = "".join(f"\n  {name}: {{}}" for name in NAMES)
    sweep.write_text(f"question: Why?\nconfig: c.yaml\nbaseline: a\nruns:{runs}\n"
                     "resources: {ranks: 1, seconds_per_iteration: 1.0}\n")  # fmt: skip
    loaded = load_sweep(str(sweep))
    config = ResolvedConfig({"SOLVER": {"MAX_ITER": 10}})
    resolved = [ResolvedRun(run.name * 12, run, config, "YOLOF") for run in loaded.runs]
    cluster = Cluster(executor=backend.name, max_array_size=2)
    return Launcher(Ledger(tmp_path / "runs"), loaded, resolved, "here", cluster)


def missing(run: ResolvedRun, seen: Observation) -> bool:
    return seen.state is State.MISSING


def test_each_run_is_handed_over_once(launcher, backend, monkeypatch):
    def claim(ledger: Ledger, token: str, identities: Sequence[str]) -> None:
        assert ledger.read_submission(token) is not None  # else a crash leaves a claim of nobody
        write(ledger, token, identities)

    write = Ledger.claim
    monkeypatch.setattr(Ledger, "claim", claim)
    assert [each.run.name for each in launcher.submit(missing)] == list(NAMES)
    ids = [name * 12 for name in NAMES]
    assert backend.submitted == ([ids[:2], ids[2:]] if backend.queues else [[i] for i in ids])
    assert launcher.submit(missing) == []
    seen, remark = observe(launcher.ledger, ids)
    expected = State.RUNNING if backend.queues else State.FAILED
    assert {each.state for each in seen.values()} == {expected} and not remark
    assert backend.queues or backend.at_once <= 2
    assert f"3 {expected.value}" in status_table(launcher.ledger, "s")
    plan = render_plan(launcher.ledger, launcher.loaded, launcher.resolved, "here",
                       launcher.site.cluster)  # fmt: skip
    assert "Nothing to submit" in plan


def test_a_refusal_leaves_every_run_missing_with_its_reason(launcher, backend):
    backend.refusal = "no such partition. Name another"
    with pytest.raises(ExperimentError, match="no such partition"):
        launcher.submit(missing)
    seen, _ = observe(launcher.ledger, [launcher.resolved[0].id])
    (only,) = seen.values()
    assert (only.state, only.reason) == (State.MISSING, backend.refusal)
    backend.refusal = ""
    assert len(launcher.submit(missing)) == 3


def test_a_backend_that_cannot_be_asked_gets_nothing(launcher, backend):
    launcher.submit(missing)
    backend.remark = "the controller does not answer\nmore"
    with pytest.raises(ExperimentError, match=r"^the controller does not answer$"):
        launcher.submit(missing)
    assert backend.remark in status_table(launcher.ledger, "s")


def test_cancel_tells_the_jobs_that_run_and_no_others(launcher, backend):
    launcher.submit(missing)
    done = cancel_runs(launcher.ledger, ["b" * 12])
    assert done == (["b" * 12] if backend.queues else [])
    cancelled = [job for job, state in backend.jobs.items() if state is State.CANCELLED]
    assert cancelled == (["1/1"] if backend.queues else [])


@pytest.mark.parametrize("backend", [True], indirect=True)
def test_a_submit_that_was_cut_off_is_adopted_or_given_up(launcher, backend):
    launcher.submit(missing)
    (first, second) = launcher.ledger.submissions()
    for each in (first, second):
        launcher.ledger.write_submission(each.model_copy(update={"job_id": None}))
    backend.found = {first.token: "1"}
    again = launcher.submit(missing)
    assert {each.id for each in again} == set(second.runs)
    notes = {each.token: each for each in launcher.ledger.submissions()}
    assert notes[first.token].job_id == "1" and not notes[first.token].error
    assert "cut off" in notes[second.token].error


@pytest.mark.parametrize("backend", [False], indirect=True)
def test_restart_moves_what_was_trained_aside_and_keeps_the_record(launcher, backend):
    launcher.submit(missing)
    folder = launcher.ledger.run_folder("a" * 12)
    (folder / "model.pth").write_text("weights")
    (folder / "discarded-before").mkdir()
    launcher.submit(lambda run, _: run.run.name == "a", restart=True)
    (kept,) = folder.glob("discarded-*/model.pth")
    assert (folder / "discarded-before").is_dir()
    assert kept.read_text() == "weights" and not (folder / "model.pth").exists()
    assert (folder / "run.json").is_file() and (folder / "submission.json").is_file()


def test_an_executor_that_this_version_does_not_know_is_unreadable(launcher, backend):
    launcher.submit(missing)
    for each in launcher.ledger.submissions():
        launcher.ledger.write_submission(each.model_copy(update={"executor": "kubernetes"}))
    seen, _ = observe(launcher.ledger, [each.id for each in launcher.resolved])
    assert all(each.state is State.UNREADABLE for each in seen.values())
    assert "'kubernetes', expected one of slurm, local, debug" in seen["a" * 12].reason


def test_every_backend_says_what_it_cannot_run(tmp_path: Path):
    def site(executor: str, ranks: int, **values: int) -> Site:
        return Site("here", Cluster(executor=executor, **values), "s", ranks)

    with pytest.raises(ExperimentError, match="runs in this process, on one rank"):
        BACKENDS["debug"].check(site("debug", 2))
    with pytest.raises(ExperimentError, match="one machine of 4 ranks"):
        BACKENDS["local"].check(site("local", 8, ranks_per_node=4))
    with pytest.raises(ExperimentError, match="3 ranks cannot be shared evenly by 2 nodes"):
        Backend.check(BACKENDS["slurm"], site("slurm", 3, ranks_per_node=2))
    assert BACKENDS["local"].parallel(site("local", 2, max_parallel=8, gpus_per_node=4)) == 2
    assert BACKENDS["local"].parallel(site("local", 2, max_parallel=3)) == 3
