"""Backends run jobs: on SLURM, in processes of this machine, or in this process.

A new kind of cluster is a class beside these, and a line here.
"""

from .base import Backend, ClaimedRun, Site, StartedJob, Watch
from .debug import DebugBackend
from .local import LocalBackend
from .slurm import SlurmBackend

BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (SlurmBackend(), LocalBackend(), DebugBackend())
}
"""``executor`` of a cluster file -> its backend."""

__all__ = ["BACKENDS", "Backend", "ClaimedRun", "Site", "StartedJob", "Watch"]
