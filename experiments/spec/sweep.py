"""Sweep files: the runs that answer one question.

A file in ``experiments/sweeps/`` has a base config, axes of named overrides, seeds, resources and
the row that the others are compared with; ``docs/sweeps.md`` describes each key. Config files are
not opened here.
"""

from __future__ import annotations

import difflib
import itertools
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from experiments.errors import ExperimentError

from .source import Source

SWEEPS = Path(__file__).parents[1] / "sweeps"

ConfigKey = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)*$")]
Overrides = dict[ConfigKey, Any]
Choices = Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(_Strict):
    """One value of an axis, or one run of an explicit list."""

    config: str | None = None
    overrides: Overrides = Field(default_factory=dict)


class KeyAxis(_Strict):
    """An axis over the values of one config key."""

    key: ConfigKey
    values: list[Any] = Field(min_length=1)


def _kind_of_axis(value: Any) -> str:
    return "key" if isinstance(value, dict) and {"key", "values"} & set(value) else "named"


Axis = Annotated[
    Annotated[KeyAxis, Tag("key")]
    | Annotated[dict[str, Choice], Field(min_length=1), Tag("named")],
    Discriminator(_kind_of_axis),
]


class Resources(_Strict):
    """What one run needs."""

    ranks: int = Field(default=8, ge=1)  # processes, one GPU each where there are GPUs
    seconds_per_iteration: float | None = Field(default=None, gt=0)  # until one is measured


class Data(_Strict):
    """Data that a command makes, for sweeps that need no download."""

    file: str  # made by the command; where it is there, the command is not run
    command: list[str] = Field(min_length=1)  # "python" is the running one


class Sweep(_Strict):
    """The content of a sweep file; see ``docs/sweeps.md``."""

    question: str = Field(min_length=1)
    config: str
    overrides: Overrides = Field(default_factory=dict)
    axes: dict[str, Axis] = Field(default_factory=dict)
    zip: list[list[str]] = Field(default_factory=list)
    exclude: list[dict[str, Choices]] = Field(default_factory=list)
    runs: dict[str, Choice] = Field(default_factory=dict)
    baseline: str | dict[str, str]
    seeds: list[int] = Field(default=[0], min_length=1)
    resources: Resources = Field(default_factory=Resources)
    tags: list[str] = Field(default_factory=list)
    data: Data | None = None


@dataclass(frozen=True)
class Run:
    """A run that a sweep asks for."""

    name: str  # what differs from the other runs, such as encoder=Projector,seed=1
    row: str  # the name without the seed: runs of one row differ in nothing else
    cells: dict[str, str]  # axis -> choice; for a run of the explicit list "run" -> its name
    config: str  # path of the config file
    overrides: dict[str, Any]  # without the seed
    seed: int
    line: int  # of the sweep file


class LoadedSweep:
    """A sweep, its name, and the file it is from."""

    def __init__(self, name: str, sweep: Sweep, source: Source):
        self.name = name
        self.sweep = sweep
        self.path = source.path
        self._source = source
        self.runs = self._expand()
        self.baseline = self._find_baseline()

    def error(self, message: str, line: int) -> ExperimentError:
        """Return an error that names the file and a line of it."""
        return ExperimentError(f"{self.path}:{line}: {message}")

    def line(self, *location: str | int) -> int:
        """Return the line of a key of the sweep."""
        return self._source.line(location)

    def _expand(self) -> list[Run]:
        rows = [*self._product(), *self._explicit()]
        if not rows:
            raise self.error("no run: give 'axes' or 'runs', and exclude less", 1)
        seeds = self.sweep.seeds
        if len(set(seeds)) < len(seeds):
            raise self.error(f"seeds: each only once, got {seeds}", self.line("seeds"))
        runs: dict[str, Run] = {}
        for row, seed in itertools.product(rows, seeds):
            name = f"{row.name},seed={seed}" if len(seeds) > 1 else row.name
            if name in runs:
                other = runs[name].line
                raise self.error(f"two runs are named {name!r} (the other: line {other})", row.line)
            if "SEED" in row.overrides:
                raise self.error("SEED is set by 'seeds'; remove the override", row.line)
            runs[name] = replace(row, name=name, seed=seed)
        return list(runs.values())

    def _product(self) -> list[Run]:
        axes = {name: self._choices(name) for name in self.sweep.axes}
        if not axes:
            return []
        rows = []
        for picked in itertools.product(*self._groups(axes)):
            cells = dict(itertools.chain(*picked))
            cells = {axis: cells[axis] for axis in axes}  # in the order of the file
            if not any(
                all(cells[axis] in choices for axis, choices in rule.items())
                for rule in self.sweep.exclude
            ):
                rows.append(self._row(cells, {axis: axes[axis][cells[axis]] for axis in axes}))
        return rows

    def _choices(self, axis: str) -> dict[str, Choice]:
        value = self.sweep.axes[axis]
        if not isinstance(value, KeyAxis):
            return value
        choices = {_name(item): Choice(overrides={value.key: item}) for item in value.values}
        if len(choices) < len(value.values):
            raise self.error(f"axis {axis!r} has a value twice", self.line("axes", axis, "values"))
        return choices

    def _groups(self, axes: dict[str, dict[str, Choice]]) -> list[list[list[tuple[str, str]]]]:
        """Group axes that advance together; each other axis is a group of its own."""
        groups, zipped = [], set()
        for index, names in enumerate(self.sweep.zip):
            line = self.line("zip", index)
            for name in names:
                if name not in axes or name in zipped:
                    what = "is in two groups" if name in zipped else f"is none of {list(axes)}"
                    raise self.error(f"zip: axis {name!r} {what}", line)
                zipped.add(name)
            lengths = {name: len(axes[name]) for name in names}
            if len(set(lengths.values())) != 1:
                raise self.error(f"zip: axes of one length are wanted, got {lengths}", line)
            columns = zip(*(axes[name] for name in names), strict=True)
            groups.append([list(zip(names, column, strict=True)) for column in columns])
        for name in axes:
            if name not in zipped:
                groups.append([[(name, choice)] for choice in axes[name]])
        for index, rule in enumerate(self.sweep.exclude):
            for axis, choices in rule.items():
                unknown = [choice for choice in choices if choice not in axes.get(axis, {})]
                if unknown:
                    known = list(axes.get(axis, axes))
                    message = f"exclude: there is no {axis}={unknown[0]}; known: {known}"
                    raise self.error(message, self.line("exclude", index))
        return groups

    def _row(self, cells: dict[str, str], choices: dict[str, Choice]) -> Run:
        overrides = dict(self.sweep.overrides)
        config, set_by = self.sweep.config, dict[str, str]()
        for axis, choice in choices.items():
            line = self.line("axes", axis, cells[axis])
            for key in [*choice.overrides, *(["config"] if choice.config else [])]:
                if key in set_by:
                    message = f"axes {set_by[key]!r} and {axis!r} both set {key}; expected one"
                    raise self.error(message, line)
                set_by[key] = axis
            overrides.update(choice.overrides)
            config = choice.config or config
        name = ",".join(f"{axis}={choice}" for axis, choice in cells.items())
        first = next(iter(cells))
        return Run(name, name, cells, config, overrides, 0, self.line("axes", first, cells[first]))

    def _explicit(self) -> list[Run]:
        return [
            Run(name, name, {"run": name}, choice.config or self.sweep.config,
                {**self.sweep.overrides, **choice.overrides}, 0, self.line("runs", name))
            for name, choice in self.sweep.runs.items()
        ]  # fmt: skip

    def _find_baseline(self) -> str:
        wanted = self.sweep.baseline
        cells = {"run": wanted} if isinstance(wanted, str) else wanted
        found = {run.row for run in self.runs if cells.items() <= run.cells.items()}
        if len(found) != 1:
            rows = list(dict.fromkeys(run.row for run in self.runs))
            expected = f"expected exactly one of {', '.join(rows[:12])}"
            message = f"baseline: {wanted!r} fits {len(found)} rows, {expected}"
            raise self.error(message, self.line("baseline"))
        return found.pop()


def sweep_names(folder: Path = SWEEPS) -> list[str]:
    """List the sweeps in a folder, without their variants."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_sweep(name: str, folder: Path = SWEEPS) -> LoadedSweep:
    """Read a sweep, given by its name in ``folder`` or the path of its file.

    A variant stands after a dot (``dilated_encoder.small``) or colon (``my/sweep.yaml:small``).

    Raises:
        ExperimentError: there is no such sweep or variant, or its file is wrong, with the line.
    """
    path, variant = _locate(name, folder)
    source = Source(path)
    content = dict(source.content)
    variants = content.pop("variants", None) or {}
    if not isinstance(variants, dict) or not all(isinstance(v, dict) for v in variants.values()):
        raise source.error("variants: expected names with keys under them", ("variants",))
    if variant:
        if variant not in variants:
            known = ", ".join(variants) or "it has none"
            raise source.error(f"there is no variant {variant!r}; its variants: {known}")
        content.update(variants[variant])
        source.focus = ("variants", variant)
    return LoadedSweep(recorded_name(name), source.validate(Sweep, content), source)


def recorded_name(given: str) -> str:
    """Return the name under which a sweep is submitted, whether or not its file exists."""
    file, variant = _split(given)
    return f"{Path(file).stem}.{variant}" if variant else Path(file).stem


def describe_sweeps(folder: Path = SWEEPS) -> list[tuple[str, str, list[str]]]:
    """List name, question and variants of each sweep in a folder."""
    rows = []
    for name in sweep_names(folder):
        content = Source(folder / f"{name}.yaml").content
        rows.append((name, str(content.get("question", "")), list(content.get("variants") or {})))
    return rows


def _split(name: str) -> tuple[str, str]:
    """Split a shipped sweep's name, or a path, from its variant."""
    name, separator = (name, ":") if _is_path(name) else (name.replace(":", "."), ".")
    file, _, variant = name.partition(separator)
    return file, variant


def _is_path(name: str) -> bool:
    return "/" in name or name.split(":")[0].endswith((".yaml", ".yml"))


def _locate(name: str, folder: Path) -> tuple[Path, str]:
    stem, variant = _split(name)
    if _is_path(name):
        if not Path(stem).is_file():
            raise ExperimentError(f"there is no sweep file {stem}")
        return Path(stem), variant
    path = folder / f"{stem}.yaml"
    if not path.is_file():
        known = sweep_names(folder)
        near = difflib.get_close_matches(stem, known, 1, cutoff=0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ExperimentError(
            f"there is no sweep {stem!r} in {folder}{hint} 'python -m experiments list' shows "
            "them; for one of your own give the path of its file"
        )
    with suppress(ValueError):
        path = path.relative_to(Path.cwd())  # as short as it can be in messages
    return path, variant


def _name(value: Any) -> str:
    """Return a value as part of a run's name, fit for a file name."""
    text = "-".join(map(_name, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text) or "empty"
