"""Read YAML files, and name the line of an error in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from experiments.errors import ExperimentError

Model = TypeVar("Model", bound=BaseModel)
Location = Sequence[str | int]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Source:
    """The content of a YAML file, and the line of each of its values."""

    def __init__(self, path: Path):
        """Raise an ExperimentError if the file cannot be read, is no YAML, or repeats a key."""
        self.path = path
        self.focus: Location = ()  # a node, such as a variant, whose keys replace those at the top
        self._lines: dict[tuple[str | int, ...], int] = {}
        try:
            text = path.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=_Loader)
            self.content: Any = yaml.load(text, Loader=_Loader)
        except (OSError, UnicodeDecodeError) as error:
            raise ExperimentError(f"{path} cannot be read: {error}") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            raise ExperimentError(f"{where}: {getattr(error, 'problem', error)}") from error
        if not isinstance(root, yaml.MappingNode):
            raise ExperimentError(f"{path}:1: expected keys with values")
        self._index(root, ())

    def _index(self, node: yaml.Node, location: tuple[str | int, ...]) -> None:
        self._lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else str(key)
                line = key.start_mark.line + 1
                if name in seen:
                    raise ExperimentError(f"{self.path}:{line}: {name!r} is there twice")
                seen.add(name)
                inside = (*location, name)
                self._lines[inside] = line
                self._index(value, inside)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._index(value, (*location, index))

    def error(self, message: str, location: Location = ()) -> ExperimentError:
        """Return an error whose message begins with the file and the line of ``location``."""
        return ExperimentError(f"{self.path}:{self.line(location)}: {message}")

    def line(self, location: Location) -> int:
        """Return the line of a value, from 1; of its parent where it is not in the file."""
        if (*self.focus, *location[:1]) in self._lines:
            location = (*self.focus, *location)
        # pydantic's locations also name the alternatives of a union, which are not in the file.
        found: tuple[str | int, ...] = ()
        for part in location:
            inside = (*found, part)
            found = inside if inside in self._lines else found
        return self._lines[found]

    def validate(self, model: type[Model], content: Any) -> Model:
        """Convert ``content``, which is of this file, to ``model``.

        Raises:
            ExperimentError: the first thing that is wrong, with the right keys where a key is.
        """
        try:
            return model.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            location = tuple(first["loc"])
            if first["type"] == "extra_forbidden":
                known = ", ".join(sorted(model.model_fields))
                message = f"no such key: {location[-1]!r}; the keys are {known}"
            elif first["type"] == "missing":
                message = f"the key {location[-1]!r} is missing"
            else:
                message = f"{'.'.join(map(str, location))}: {first['msg']}"
                if not isinstance(first["input"], dict):
                    message += f", got {first['input']!r}"
            raise self.error(message, location) from error
