"""Cluster files: where runs go, and what to ask for there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from experiments.errors import ExperimentError

from .source import Source

CLUSTERS = Path(__file__).parents[1] / "clusters"


class Cluster(BaseModel):
    """The content of a cluster file; see ``docs/sweeps.md``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    executor: Literal["slurm", "local", "debug"]

    ranks_per_node: int = Field(default=8, ge=1)
    gpus_per_node: int = Field(default=0, ge=0)  # 0 where ranks run on CPUs
    cpus_per_rank: int | None = Field(default=None, ge=1)
    memory_gb_per_node: float | None = Field(default=None, gt=0)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    export: str | None = None  # sbatch --export: ALL, NONE, or names
    options: dict[str, str | int | bool] = Field(default_factory=dict)  # more of sbatch's
    srun_options: list[str] = Field(default_factory=list)
    setup: list[str] = Field(default_factory=list)  # shell lines before a run, on its first node

    time_limit_minutes: int = Field(default=24 * 60, ge=1)  # the longest job that is allowed
    signal: Annotated[str, Field(pattern=r"^[A-Z]+[0-9]?$")] = "USR2"
    notice_seconds: int = Field(default=300, ge=1)  # between the signal and the end
    max_parallel: int = Field(default=8, ge=1)  # runs at a time
    max_array_size: int = Field(default=1000, ge=1)
    threads_per_rank: int | None = Field(default=None, ge=1)  # OMP_NUM_THREADS


def load_cluster(name: str, folder: Path = CLUSTERS) -> tuple[str, Cluster]:
    """Return the name and content of a cluster file, given by its name in ``folder`` or its path.

    Raises:
        ExperimentError: there is no such cluster, or its file is wrong; with file and line.
    """
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    path = Path(name) if is_path else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ExperimentError(
            f"there is no cluster {name!r}; known: {known}. Yours: copy {folder / 'slurm.yaml'}, "
            "fill in partition and account, and give its path"
        )
    source = Source(path)
    return path.stem, source.validate(Cluster, source.content)
