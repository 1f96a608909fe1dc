"""Find what makes runs unequal: data, schedule, and config keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.errors import RecordError
from experiments.spec.identity import EXCLUDED_KEYS
from experiments.store.records import ResolvedConfig, RunRecord

from .outcomes import Outcome, Row

_OWN = "<model>"  # stands for a row's node, so that keys of the same name are one knob
_IGNORED = (*EXCLUDED_KEYS, "SEED")
_LISTED = 6  # runs that a message names

_Groups = dict[str, list[Outcome]]


def find_mixes(outcomes: Sequence[Outcome]) -> list[str]:
    """Find differences that forbid a comparison of runs with results.

    Returns:
        A line for each of evaluation data, training data and length of training in which they
        differ: the values, each with the runs that have it.
    """
    mixes = {
        "evaluated on": _group_data(outcomes, "TEST"),
        "trained on": _group_data(outcomes, "TRAIN"),
        "images seen in training": _group(outcomes, _images_seen),
    }

    def name(groups: _Groups) -> str:
        names = {value: [run.name for run in runs] for value, runs in groups.items()}
        return "; ".join(f"{value} by {shorten(runs, _LISTED)}" for value, runs in names.items())

    return [f"{what}: {name(groups)}" for what, groups in mixes.items() if len(groups) > 1]


def _group(outcomes: Sequence[Outcome], value: Callable[[Outcome], str]) -> _Groups:
    groups: _Groups = {}
    for outcome in outcomes:
        groups.setdefault(value(outcome), []).append(outcome)
    return groups


def _images_seen(outcome: Outcome) -> str:
    config = _config(outcome)
    return f"{config['SOLVER.MAX_ITER'] * config['SOLVER.IMS_PER_BATCH']:,}"


def _config(outcome: Outcome) -> ResolvedConfig:
    """Return the config of a run with results."""
    if outcome.record is None:
        raise RecordError(f"run {outcome.name} has results, but no run.json")
    return outcome.record.config


def _group_data(outcomes: Sequence[Outcome], split: str) -> _Groups:
    """Group by what the data sets hold where that was recorded, else by their names."""

    def hashes(outcome: Outcome) -> list[str | None]:
        found = (outcome.data.get(name) for name in _data_names(outcome, split))
        return [None if each is None else each.sha256 for each in found]

    recorded = [outcome for outcome in outcomes if None not in hashes(outcome)]
    groups = _group(recorded, lambda outcome: str(hashes(outcome)))
    if len(groups) > 1:
        return {describe_data(runs[0], split): runs for runs in groups.values()}
    if len(recorded) == len(outcomes):
        return groups
    return _group(outcomes, lambda outcome: " + ".join(_data_names(outcome, split)))


def _data_names(outcome: Outcome, split: str) -> list[str]:
    return list(_config(outcome)[f"DATASETS.{split}"])


def describe_data(outcome: Outcome, split: str) -> str:
    """Name the data sets of a split, with the hash of their annotations if it was recorded."""
    hashes = {name: entry.sha256[:8] for name, entry in outcome.data.items()}
    return " + ".join(
        f"{name} (sha256 {hashes[name]})" if name in hashes else name
        for name in _data_names(outcome, split)
    )


def shorten(names: Iterable[str], limit: int) -> str:
    """Join the first names, and count the others."""
    names = list(names)
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Knob:
    """A config key in which rows differ."""

    key: str  # MODEL.{YOLOF,RETINANET}.X is one knob under two names
    values: dict[str, str]  # row -> value as text; without rows whose model does not read it
    asked: bool  # the sweep sets it: the comparison is about it


def unequal_knobs(rows: Sequence[Row]) -> tuple[list[Knob], list[Knob]]:
    """Find the config keys in which rows differ, except seeds and keys that cannot change results.

    Returns:
        The keys with different values, those that the sweep asks about first; and the keys that
        only some of the models read, with one value that is not the default.
    """
    records = {row.name: row.record for row in rows if row.record is not None}
    nodes = {row: record.model_node for row, record in records.items()}
    if None in nodes.values():  # a detector of no known family, which may read any node
        nodes = dict.fromkeys(nodes)
    overridden = {key for record in records.values() for key in record.overrides}
    models = set(nodes.values())
    views = {row: _view(records[row].config.root, nodes[row], models) for row in records}

    different, partial = [], []
    for key, values in _differing(views, len(views)):
        names = {row: key.replace(_OWN, f"MODEL.{nodes[row]}") for row in values}
        if _matches(key, _IGNORED):
            continue
        knob = Knob(
            _join(list(dict.fromkeys(names.values()))),
            _as_texts(values),
            any(_matches(name, overridden) for name in names.values()),
        )
        if not _all_equal(values.values()):
            different.append(knob)
        elif not _is_default(names, values, records):
            partial.append(knob)
    files = {row: record.config_file for row, record in records.items()}
    if len(set(files.values())) > 1:
        different.append(Knob("config file", files, asked=True))
    return sorted(different, key=lambda knob: not knob.asked), partial


def _view(config: dict[str, Any], node: str | None, models: set[str | None]) -> dict[str, Any]:
    """Return a config without the nodes of other models, its own model's node under ``_OWN``."""
    if node is None:
        return config
    kept = {name: value for name, value in config["MODEL"].items() if name not in models}
    return {**config, "MODEL": kept, _OWN: config["MODEL"].get(node, {})}


def _differing(
    trees: dict[str, dict[str, Any]], rows: int, prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield dotted keys that are not in all rows with one value, and the value of each row."""
    for name in dict.fromkeys(name for tree in trees.values() for name in tree):
        found = {row: tree[name] for row, tree in trees.items() if name in tree}
        if len(found) == rows and _all_equal(found.values()):
            continue
        if all(isinstance(value, dict) for value in found.values()):
            yield from _differing(found, rows, f"{prefix}{name}.")
        else:
            yield prefix + name, found


def _all_equal(values: Iterable[Any]) -> bool:
    first, *others = values
    return all(value == first for value in others)


def _matches(key: str, nodes: Iterable[str]) -> bool:
    """Whether a key is one of the nodes, or inside one."""
    return any(f"{key}.".startswith(f"{node}.") for node in nodes)


def _is_default(
    names: dict[str, str], values: dict[str, Any], records: dict[str, RunRecord]
) -> bool:
    """Whether a key has the value that it has for models that do not read it.

    A config cannot change what its model does not read (``yolof_d2.config`` refuses it).
    """
    name, value = next(iter(names.values())), next(iter(values.values()))
    other = next((record for row, record in records.items() if row not in names), None)
    return other is not None and bool(other.config.get(name) == value)


def _join(names: Sequence[str]) -> str:
    """Return one name for keys that differ in their model's node alone."""
    if len(names) == 1:
        return names[0]
    nodes = ",".join(name.split(".")[1] for name in names)
    return f"MODEL.{{{nodes}}}.{names[0].split('.', 2)[2]}"


def _as_texts(values: dict[str, Any]) -> dict[str, str]:
    """Return row -> value as text, with no more digits than show that values differ."""
    texts = {row: _as_text(value, "{:.6g}".format) for row, value in values.items()}
    full = {row: _as_text(value, repr) for row, value in values.items()}
    return texts if len(set(texts.values())) == len(set(full.values())) else full


def _as_text(value: Any, number: Callable[[float], str]) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list):
        return "[" + ", ".join(_as_text(item, number) for item in value) + "]"
    return str(value) if value != "" else '""'
