"""Load a config: merge files and overrides, and refuse unknown or misplaced keys."""

from __future__ import annotations

import ast
import difflib
import functools
import json
import logging
from collections.abc import Iterator, Sequence

import yaml
from detectron2.config import CfgNode, get_cfg

from yolof_d2.errors import ConfigError
from yolof_d2.modeling.families import family_of, foreign_nodes, known_families

from .defaults import add_yolof_config
from .plugins import load_plugins

logger = logging.getLogger(__name__)


def iter_keys(cfg: dict, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every leaf key of ``cfg``."""
    for key, value in cfg.items():
        if isinstance(value, dict):
            yield from iter_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def build_cfg(config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """Merge Detectron2's defaults, our keys, a config file and overrides; check; do not freeze.

    Args:
        config_file: path of a YAML file, with ``_BASE_`` if it has one; empty for none.
        overrides: ``KEY VALUE`` pairs, flat, as they stand on the command line.

    Raises:
        ConfigError: a file that cannot be read, an unknown or misplaced key, a value of the wrong
        kind. The message names every such key and the nearest right one.
    """
    if len(overrides) % 2:
        raise ConfigError(
            "expected KEY VALUE pairs after the options, got an odd number of words: "
            + " ".join(overrides)
        )
    content = _read_file(config_file) if config_file else {}
    cfg = _default_cfg(_named_plugins(content, overrides))
    defaults = cfg.clone()
    known = list(iter_keys(cfg))

    _raise_unknown(list(iter_keys(content)), known, config_file)
    _raise_unknown(overrides[::2], known, "the command line")
    try:
        if config_file:
            cfg.merge_from_file(config_file, allow_unsafe=True)
        cfg.merge_from_list(list(overrides))
    except (KeyError, ValueError, TypeError, AssertionError, SyntaxError) as error:
        raise ConfigError(f"{config_file or 'the command line'}: {_one_line(error)}") from error

    _raise_misplaced(cfg, defaults)
    validate_config(cfg)
    return cfg


def restore_cfg(values: dict) -> CfgNode:
    """Rebuild a resolved config from its plain values, as :func:`json.loads` gives them.

    Args:
        values: every key with its value, nested as in the config; lists may stand for tuples.

    Raises:
        ConfigError: a key or the kind of a value is not what this version of the code has.
    """
    cfg = _default_cfg(_named_plugins(values, ()))
    try:
        cfg.merge_from_other_cfg(CfgNode(values))
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"the saved config does not fit this version of the code: {_one_line(error)}"
        ) from error
    return cfg


def _default_cfg(plugins: Sequence[str]) -> CfgNode:
    cfg = get_cfg()
    add_yolof_config(cfg)
    for plugin in load_plugins(plugins):
        if hasattr(plugin, "add_config"):
            plugin.add_config(cfg)
    return cfg


def _read_file(config_file: str) -> dict:
    try:
        content = CfgNode.load_yaml_with_base(config_file, allow_unsafe=True)
    except (OSError, AssertionError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read the config file {config_file!r}: {_one_line(error)}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"cannot read the config file {config_file!r}: expected keys with values, "
            f"got a {type(content).__name__}"
        )
    return content


def _named_plugins(content: dict, overrides: Sequence[str]) -> Sequence[str]:
    """The value of ``PLUGINS``, wanted before the rest is merged, as plug-ins may add keys."""
    named = dict(zip(overrides[::2], overrides[1::2], strict=True)).get("PLUGINS")
    entries = content.get("PLUGINS", ()) if named is None else named
    if not isinstance(entries, str):
        return entries
    try:  # "('a.py', 'b.py')", in a file as on the command line
        return ast.literal_eval(entries)
    except (SyntaxError, ValueError):
        return entries


def validate_config(cfg: CfgNode) -> None:
    """Check the values that no part checks for itself.

    Raises:
        ConfigError: an impossible value; the message names the key.
    """
    if cfg.SOLVER.AMP.PRECISION not in ("fp16", "bf16"):
        raise ConfigError(
            f"SOLVER.AMP.PRECISION must be 'fp16' or 'bf16', got {cfg.SOLVER.AMP.PRECISION!r}"
        )
    if not 0 <= cfg.INPUT.RANDOM_SHIFT.PROB <= 1:
        raise ConfigError(
            f"INPUT.RANDOM_SHIFT.PROB must lie in [0, 1], got {cfg.INPUT.RANDOM_SHIFT.PROB}"
        )


def _raise_unknown(written: Sequence[str], known: Sequence[str], where: str) -> None:
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    unknown = [key for key in written if key not in known and key not in ("_BASE_", *nodes)]
    if unknown:
        hints = "; ".join(f"{key} (did you mean {nearest_key(key, known)}?)" for key in unknown)
        raise ConfigError(f"{where}: no such config key: {hints}")


def nearest_key(key: str, known: Sequence[str]) -> str:
    """The known key closest to ``key``: the same last name elsewhere first, then spelling."""
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [candidate for candidate in known if candidate.rsplit(".", 1)[-1] == leaf]
    similar_leaf = difflib.get_close_matches(
        leaf, {name.rsplit(".", 1)[-1] for name in known}, 1, cutoff=0.8
    )
    if not same_leaf and similar_leaf:
        same_leaf = [
            candidate for candidate in known if candidate.rsplit(".", 1)[-1] == similar_leaf[0]
        ]
    return difflib.get_close_matches(key, same_leaf or known, 1, cutoff=0)[0]


def _raise_misplaced(cfg: CfgNode, defaults: CfgNode) -> None:
    """Refuse values set for a model that is not being built: they would be ignored in silence."""
    foreign = tuple(f"MODEL.{node}." for node in foreign_nodes(family_of(cfg)))
    misplaced = [
        key
        for key in iter_keys(cfg)
        if key.startswith(foreign)
        and _get(cfg, key) != _get(defaults, key)
        # The class count is set for all models alike when it is read from the data, and so stands
        # in saved configs.
        and not (key.endswith("NUM_CLASSES") and _get(cfg, key) == str(num_classes(cfg)))
    ]
    if misplaced:
        own = [key for key in iter_keys(cfg) if not key.startswith(foreign)]
        hints = "; ".join(f"{key} (did you mean {nearest_key(key, own)}?)" for key in misplaced)
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which does not read {hints}"
        )


def num_classes_node(cfg: CfgNode) -> str:
    """Return the node under ``MODEL`` with the class count of the model; "" if it does not say."""
    return family_of(cfg).node


def num_classes(cfg: CfgNode) -> int | None:
    """Return the number of classes of the model that ``cfg`` builds; None if it does not say.

    Raises:
        ConfigError: the key that the model's family names is not there.
    """
    node = num_classes_node(cfg)
    if node and "NUM_CLASSES" not in cfg.MODEL.get(node, {}):
        raise ConfigError(
            f"the family of MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} reads "
            f"MODEL.{node}.NUM_CLASSES, but there is no such key; add it in the plug-in's "
            "add_config(cfg)"
        )
    return cfg.MODEL[node].NUM_CLASSES if node else None


def set_num_classes(cfg: CfgNode, count: int) -> None:
    """Set the number of classes of every model alike, so that they can be compared."""
    nodes = {family.node for family in known_families()}
    nodes = {node for node in nodes if "NUM_CLASSES" in cfg.MODEL.get(node, {})}
    for node in nodes:
        cfg.MODEL[node].NUM_CLASSES = count
    if not num_classes_node(cfg):
        logger.warning(
            "MODEL.META_ARCHITECTURE %s declares no family (docs/adding_a_part.md), so the key of "
            "its class count is not known. %d was written to NUM_CLASSES of %s under MODEL.",
            cfg.MODEL.META_ARCHITECTURE,
            count,
            ", ".join(sorted(nodes)),
        )


def _get(cfg: CfgNode, key: str) -> str:
    value = functools.reduce(lambda node, name: node[name], key.split("."), cfg)
    return json.dumps(value)  # nested tuples become lists when a config is saved and read again


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
