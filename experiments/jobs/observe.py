"""The state of each run, from its own records and from what its backend says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from experiments.errors import RecordError
from experiments.store.ledger import Ledger
from experiments.store.record_files import read_record
from experiments.store.records import Claim, Failure, Progress, Submission

from .backends import BACKENDS, ClaimedRun, Watch
from .state import Observation, State


def observe(ledger: Ledger, identities: Sequence[str]) -> tuple[dict[str, Observation], str]:
    """Return run id -> observation, and a remark for the user if a backend could not be asked."""
    observer = _Observer(ledger, identities)
    return {identity: observer.observe(identity) for identity in identities}, observer.remark


class _Observer:
    def __init__(self, ledger: Ledger, identities: Sequence[str]):
        self._ledger = ledger
        self._claims: dict[str, Claim] = {}
        self._progress: dict[str, Progress] = {}
        self._submissions: dict[str, Submission] = {}
        self._damaged: dict[str, str] = {}
        for identity in identities:
            try:
                claim = ledger.read_claim(identity)
                self._progress[identity] = ledger.read_progress(identity) or Progress()
                if claim is not None:
                    self._claims[identity] = claim
            except RecordError as error:
                self._damaged[identity] = str(error)
        for token in {claim.token for claim in self._claims.values()}:
            try:
                submission = ledger.read_submission(token) or Submission(token=token)
                if submission.executor not in ("", *BACKENDS):
                    raise RecordError(
                        f"submission {token} has executor {submission.executor!r}, expected one of "
                        f"{', '.join(BACKENDS)}"
                    )
                self._submissions[token] = submission
            except RecordError as error:
                for identity, claim in self._claims.items():
                    if claim.token == token:
                        self._damaged[identity] = str(error)
        self._watches = self._ask()
        self.remark = "\n".join(filter(None, (each.remark for each in self._watches.values())))

    def _ask(self) -> dict[str, Watch]:
        """Ask each backend once, for the submissions with runs that are not finished."""
        asked: dict[str, dict[str, Submission]] = defaultdict(dict)
        for identity, claim in self._claims.items():
            submission = self._submissions.get(claim.token)
            if submission is not None and self._progress[identity].state != "finished":
                asked[submission.executor][claim.token] = submission
        return {
            name: BACKENDS[name].watch(list(submissions.values()))
            for name, submissions in asked.items()
            if name
        }

    def observe(self, identity: str) -> Observation:
        if identity in self._damaged:
            advice = "Move the file away after a look at squeue, then submit again"
            return Observation(State.UNREADABLE, f"{self._damaged[identity]}. {advice}")
        claim, progress = self._claims.get(identity), self._progress[identity]
        if claim is None:
            return Observation(State.MISSING)
        submission = self._submissions[claim.token]
        executor = submission.executor
        if progress.state == "finished":
            place = (progress.job_id, progress.node, executor)
            return Observation(State.FINISHED, "", *place, progress)
        if submission.error or not executor:
            reason = submission.error or "being submitted, or cut off"
            return Observation(State.MISSING, reason, progress=progress)
        # What another submission's job wrote says how far the run came, not how it fares now.
        current = progress if progress.token == claim.token else Progress()
        failure = first_failure(self._ledger.run_folder(identity), claim.token)
        if failure is not None:
            update = {"state": "failed", "reason": failure.reason, "kind": failure.kind}
            current = current.model_copy(update=update)
        run = ClaimedRun(self._ledger, claim, submission, progress, current)
        return self._watches[executor].observe(run)


# In the errors of the other ranks when one has failed.
_ECHOES = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl", "process group")


def first_failure(run_folder: Path, token: str) -> Failure | None:
    """Return the first failure that the ranks of a submission wrote; None if no rank failed."""
    failures = []
    for path in (run_folder / "failures").glob(f"{token}-*.json"):
        with suppress(RecordError):
            failures.append(read_record(path, Failure) or Failure())
    first = min(failures, key=lambda each: (_is_echo(each), each.time), default=None)
    if first is not None and _is_echo(first):
        said = f"rank {first.rank} says: {first.reason}"
        reason = f"a rank was killed, or its node was lost, without a word; {said}"
        first = first.model_copy(update={"reason": reason})
    return first


def _is_echo(failure: Failure) -> bool:
    return any(echo in failure.reason.lower() for echo in _ECHOES)
